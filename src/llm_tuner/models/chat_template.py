"""The chat template that a GGUF file carries.

Not a renderer: servers render. The rule it protects: a file without one is told before anything is made of it, because
llama.cpp would silently take another model's (ChatML).
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from llm_tuner.types import TemplateMismatch

_KEY = b"tokenizer.chat_template"
_STRING = 8


def chat_template(gguf: Path) -> str:
    """The Jinja text of `tokenizer.chat_template`, or "" where there is none. Nothing else of the file is read."""
    key = struct.pack("<Q", len(_KEY)) + _KEY + struct.pack("<I", _STRING)
    with gguf.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(key)
        if at < 0:
            return ""
        at += len(key)
        (length,) = struct.unpack("<Q", content[at : at + 8])
        return content[at + 8 : at + 8 + length].decode("utf-8", "replace")


def require_chat_template(gguf: Path) -> None:
    """Raises TemplateMismatch for a file that says nothing about how a conversation is written."""
    if not chat_template(gguf).strip():
        raise TemplateMismatch(
            f"{gguf.name} has no chat template (tokenizer.chat_template): nobody knows how this model is to be asked, "
            "and a server would take another model's. Take the instruct version of the model, or write its template "
            f"into a copy: gguf-new-metadata --chat-template-file TEMPLATE.jinja {gguf.name} COPY.gguf"
        )
