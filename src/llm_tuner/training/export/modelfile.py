"""The Modelfile beside a merged GGUF, for `ollama create NAME -f Modelfile`.

Not an installer (models/ollama.py is). The rule that it protects: Ollama must give the model the bytes that it was
trained on, so a template stands here only where the rows were rendered with it; otherwise the GGUF's own is to be used.
"""

from __future__ import annotations

from pathlib import Path

from llm_tuner.types import TrainingError


def modelfile(gguf_file: Path, *, context: int, template: str = "") -> str:
    """The text. `context` in tokens (0: the model's own); `template` is a Go template, "" for the GGUF's own.

    The token that ends a turn is a stop, since older servers know only some of them by themselves.
    """
    import gguf

    fields = gguf.GGUFReader(gguf_file).fields
    architecture = fields["general.architecture"].contents()
    length = int(fields[f"{architecture}.context_length"].contents())
    lines = [f"FROM ./{gguf_file.name}", f"PARAMETER num_ctx {min(context, length) if context else length}"]
    lines += ["PARAMETER temperature 0"]
    if "tokenizer.ggml.eos_token_id" in fields:
        stop = fields["tokenizer.ggml.tokens"].contents()[int(fields["tokenizer.ggml.eos_token_id"].contents())]
        lines.append(f"PARAMETER stop {_quoted(str(stop))}")
    if template:
        if '"""' in template:
            raise TrainingError(
                'A template that contains """ cannot stand in a Modelfile. Install it by the API instead.'
            )
        lines.append(f'TEMPLATE """{template}"""')
    elif "tokenizer.chat_template" in fields:
        lines.append("# The template is the GGUF's own, which Ollama uses from release 0.30 on.")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
