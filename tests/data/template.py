"""Renderers with a template that one can see: one character a token."""

from __future__ import annotations

import re

from llm_tuner.types import canonical_json


class Template:
    """A renderer with a visible template: one character a token."""

    end = "$\n"

    def render(self, messages, tools=(), generation_prompt=True):
        said = "".join(f"<{m.role}>{m.text}{''.join(c.name for c in m.tool_calls)}{self.end}" for m in messages)
        return f"[{','.join(t.name for t in tools)}]{said}" + ("<assistant>" if generation_prompt else "")

    def tokenize(self, text):
        return [ord(c) for c in text]

    def detokenize(self, tokens):
        return "".join(map(chr, tokens))

    def end_tokens(self):
        return frozenset({ord("$")})


TAGS = {"<t>": 0, "</t>": 1}


class Tags(Template):
    """Calls stand in <t> tags; <t> and </t> are one token each."""

    def render(self, messages, tools=(), generation_prompt=True):
        text = super().render(messages, tools, generation_prompt)
        return text.replace("add$", "<t>add</t>\n<t>add</t>$")

    def tokenize(self, text):
        return [TAGS[part] if part in TAGS else ord(part) for part in re.findall("</?t>|.|\n", text)]

    def detokenize(self, tokens):
        names = {number: tag for tag, number in TAGS.items()}
        return "".join(names.get(token) or chr(token) for token in tokens)


class Calls(Template):
    """Calls with their arguments, and results."""

    def render(self, messages, tools=(), generation_prompt=True):
        said = "".join(f"<{m.role}>{_said(m)}{self.end}" for m in messages)
        return f"[{','.join(t.name for t in tools)}]{said}" + ("<assistant>" if generation_prompt else "")


def _said(message):
    calls = "".join(f"<t>{canonical_json([call.name, call.arguments])}</t>" for call in message.tool_calls)
    return message.text + calls + (message.result.content if message.result else "")
