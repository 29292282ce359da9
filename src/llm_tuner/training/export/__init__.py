"""Export: an adapter (a PEFT folder) and the GGUF that it was trained on -> files for every runtime.

Not a converter: whatever was not trained is copied from the base. The rule that it protects: a file holds exactly what
was trained, rounded once into its own format; what would not be exact is refused, with why and what to do.

    adapter.py       a PEFT folder as matrices under GGUF names; LoRA, rsLoRA, DoRA
    mix.py           which type each tensor has in each format, as llama.cpp chooses it
    quantise.py      a matrix -> its bytes in a type, by ggml
    merge.py         base + adapter -> one GGUF, for every runtime
    adapter_file.py  the adapter alone as a GGUF, for llama.cpp
    huggingface.py   PEFT and safetensors folders
    modelfile.py     what Ollama needs beside a GGUF
    card.py          what people need beside any of them
"""

from llm_tuner.training.export.adapter import Adapter
from llm_tuner.training.export.adapter_file import adapter_gguf
from llm_tuner.training.export.merge import merge
from llm_tuner.training.export.quantise import quantise

__all__ = ["Adapter", "adapter_gguf", "merge", "quantise"]
