"""Tokens whose rows are equal are found in the file itself."""

import gguf
import numpy as np
import pytest

from llm_tuner.models.vocabulary import indistinct_tokens

CONTROL, USER, NORMAL = 3, 4, 1


def write(path, rows, *, tied=False):
    """A GGUF of (text, token type, output row)."""
    writer = gguf.GGUFWriter(path, "llama")
    if rows[0][0]:
        writer.add_token_list([text for text, _, _ in rows])
        writer.add_token_types([kind for _, kind, _ in rows])
    weights = np.array([row for _, _, row in rows], dtype=np.float32)
    writer.add_tensor("token_embd.weight", weights if tied else np.ones_like(weights))
    if not tied:
        writer.add_tensor("output.weight", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [False, True])
def test_only_shown_tokens_whose_row_another_special_token_has(tmp_path, tied):
    rows = [
        ("a", NORMAL, (1, 0, 0)),
        ("<|pad|>", CONTROL, (1, 1, 0)),
        ("<call>", USER, (2, 2, 0)),  # the direction of <|pad|>
        ("</call>", USER, (0, 1, 1)),
        ("<think>", USER, (1, 0, 0)),  # equal to an ordinary token only: something trained it
        ("<|end|>", CONTROL, (1, 1.02, 0)),
    ]
    assert indistinct_tokens(write(tmp_path / "m.gguf", rows, tied=tied)) == {"<call>"}


def test_a_file_without_a_tokenizer_has_none(tmp_path):
    assert indistinct_tokens(write(tmp_path / "m.gguf", [("", NORMAL, (1, 0))])) == frozenset()


@pytest.mark.weights
def test_the_call_tags_of_qwen_coder_were_never_trained(qwen_gguf, smol_gguf):
    assert indistinct_tokens(qwen_gguf) == {"<tool_call>", "</tool_call>"}
    assert indistinct_tokens(smol_gguf) == frozenset()
