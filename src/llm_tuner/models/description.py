"""What a model file is, for reports: how many weights, in which quantisation.

Not a loader and not a check (sources/weights.py is). The rule it protects: a size is counted from the tensors, never
read out of a name.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path

from llm_tuner.types import Value


class Description(Value):
    """`parameters` counts weights (0: not known); `quantisation` is ggml's word, such as "Q4_K_M" ("": not known)."""

    parameters: int = 0
    quantisation: str = ""
    architecture: str = ""


def describe(gguf_file: Path) -> Description:
    """Of a GGUF file. Where it does not name its quantisation, that of most of its weights."""
    import gguf

    reader = gguf.GGUFReader(gguf_file)
    weights: Counter[str] = Counter()
    for tensor in reader.tensors:
        weights[tensor.tensor_type.name] += prod(map(int, tensor.shape))
    named = reader.fields.get("general.file_type")
    architecture = reader.fields.get("general.architecture")
    try:
        quantisation = gguf.LlamaFileType(int(named.contents())).name if named else ""
    except ValueError:  # a file type newer than the gguf package
        quantisation = ""
    return Description(
        parameters=weights.total(),
        quantisation=quantisation.removeprefix("MOSTLY_").removeprefix("ALL_") or max(weights, key=weights.__getitem__),
        architecture=str(architecture.contents()) if architecture else "",
    )
