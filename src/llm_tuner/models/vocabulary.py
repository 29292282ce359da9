"""Which of its own tokens a model cannot tell apart.

Not a tokenizer. Some publishers reserve tokens in the vocabulary (`<tool_call>` in Qwen2.5-Coder) whose rows training
never touched: they are still equal, as they were initialised. No change to the layers below can raise the probability
of one of them without raising that of all, so a tuned model must not be asked to write them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SAME = 0.999
"""Cosine from which two rows count as one. Qwen2.5-Coder 0.5B: reserved tokens 1.0000, trained ones 0.94 or less."""

_CONTROL, _USER_DEFINED = 3, 4


def indistinct_tokens(gguf_file: Path) -> frozenset[str]:
    """The user-defined tokens (those that servers show as plain text) whose output row equals another special token's.

    Only these few rows are read. A file without a tokenizer has none.
    """
    import gguf

    reader = gguf.GGUFReader(gguf_file)
    if "tokenizer.ggml.token_type" not in reader.fields:
        return frozenset()
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    special = [token for token, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED)]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    output = tensors.get("output.weight") or tensors["token_embd.weight"]  # tied
    rows = gguf.dequantize(output.data[special], output.tensor_type).astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    texts = reader.fields["tokenizer.ggml.tokens"].contents()
    return frozenset(
        texts[token]
        for place, token in enumerate(special)
        if types[token] == _USER_DEFINED and np.count_nonzero(rows @ rows[place] > SAME) > 1
    )
