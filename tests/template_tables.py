"""The tables of docs/templates.md, measured: what is trained of each family, and whether every runtime renders it.

    python tests/template_tables.py            prints them
    python tests/template_tables.py --write    puts them into docs/templates.md

An Ollama of 0.30 or later is measured too where `tests/ollama_current.py` built it, or where LLM_TUNER_OLLAMA_NATIVE
names its program; tests/ollama_server.py builds the older one.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import ollama_current
import ollama_server
from llm_tuner.data.masks import Turn, left_out, numbered, require_place_for_tools, row
from llm_tuner.models.llamacpp import Embedded
from llm_tuner.models.runtimes import OllamaRuntime
from llm_tuner.types import AnyCall, DataError, Message, Renderer, Row, Task
from template_families import CONVERSATIONS, FAMILIES, Conversation, write

DOCS = Path(__file__).parent.parent / "docs" / "templates.md"
REFUSALS = {
    "does not continue its own prompt": "not continued",
    "are one": "one token",
    "Nothing ends": "no end",
    "drops calls": "calls dropped",
    "drops a tool's result": "result dropped",
    "before its end": "more behind the end",
    "cannot render": "refused",
}
"""What stands in an error, and the word for it in the table."""


class Cell(NamedTuple):
    """One conversation under one template: a word, and the row where there is one."""

    word: str
    row: Row | None = None


def cell(conversation: Conversation, renderer: Renderer) -> Cell:
    """What is trained of a conversation's last message: "yes", what is left out, or why it is refused."""
    before, answer = conversation.messages[:-1], conversation.messages[-1]
    task = Task(messages=before, tools=conversation.tools, expect=AnyCall())
    turn = Turn(0, before, answer)
    try:
        made = row(task, turn, renderer)
    except DataError as error:
        return Cell(next(word for part, word in REFUSALS.items() if part in str(error)))
    lost = left_out(turn, made)
    return Cell(f"yes, no {', no '.join(lost)}" if lost else "yes", made)


def cells(renderer: Renderer) -> dict[str, Cell]:
    return {name: cell(conversation, renderer) for name, conversation in CONVERSATIONS.items()}


def sees_tools(renderer: Renderer) -> bool:
    """Whether the template shows tools to the model."""
    tools = next(conversation.tools for conversation in CONVERSATIONS.values() if conversation.tools)
    try:
        require_place_for_tools(tools, renderer)
    except DataError:
        return False
    return True


# --------------------------------------------------------------------------------------------------------- witnesses


class Transformers:
    """The same file's template and tokenizer, as transformers reads them: an independent witness."""

    def __init__(self, gguf: Path) -> None:
        from transformers import AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)

    def agrees(self, made: Row, conversation: Conversation) -> str:
        """ "same" bytes and ids of prompt and completion, or what differs."""
        tools: list[Any] = [tool.openai() for tool in conversation.tools]
        prompt = whole = ""
        for as_text in (False, True):  # some templates want arguments as an object, some as JSON
            messages = [_hugging_face(message, as_text) for message in numbered(conversation.messages)]
            try:
                prompt, whole = self._render(messages[:-1], tools, True), self._render(messages, tools, False)
                break
            except Exception as error:
                refusal = f"cannot render ({type(error).__name__})"
        else:
            return refusal
        if prompt != made.prompt:
            return "other prompt"
        if not (whole.startswith(prompt + made.completion) or whole.rstrip().endswith(made.completion)):
            return "other completion"
        ids = self._tokenizer(prompt + made.completion, add_special_tokens=False).input_ids
        return "same" if tuple(ids) == (*made.prompt_ids, *made.completion_ids) else "other ids"

    def _render(self, messages: list[Any], tools: list[Any], generation_prompt: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages,
                tools=tools or None,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                date_string=datetime.now().strftime("%d %b %Y"),  # as llama.cpp does
            )
        )


def _hugging_face(message: Message, as_text: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"role": message.role, "content": message.result.content if message.result else message.text}
    if message.thinking:
        body["reasoning_content"] = message.thinking
    if message.result:
        body["tool_call_id"] = message.result.call_id
    if message.tool_calls:
        body["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": arguments}}
            for call in message.tool_calls
            for arguments in [json.dumps(call.arguments, ensure_ascii=False) if as_text else call.arguments]
        ]
    return body


def agrees(served: Cell, trained: Cell) -> str:
    """ "same" where a server makes the row that was trained, or what differs."""
    if served.row is None or trained.row is None:
        return "same" if served.word == trained.word else served.word
    if served.row.prompt != trained.row.prompt:
        return "other prompt"
    if served.row.completion != trained.row.completion:
        return "other completion"
    return "same" if served.row == trained.row else "other ids"


@contextmanager
def on_ollama(url: str, name: str, gguf: Path) -> Iterator[tuple[Renderer, str]]:
    """The file as `llm-tuner tune --runtime ollama` would serve it, and what became of the template."""
    runtime = OllamaRuntime(url, context=4096)
    steps, said = runtime.stock(name, gguf, "0" * 64), ""
    while True:
        try:
            event = next(steps)
            said = event.message if "template" in event.message and event.step == "install" else said
        except StopIteration as end:
            served = end.value
            break
    found = re.search(r"renders (.*)'s template", said)
    with runtime.open(served) as model:
        yield model, f"our {found[1]}" if found else "the server's own"
    runtime.server.unload(served.reference)


# ------------------------------------------------------------------------------------------------------------ tables


def servers() -> list[tuple[str, Path | None]]:
    """Names and programs of the Ollama servers at hand."""
    native = ollama_current.binary()
    return [(ollama_server.VERSION, ollama_server.binary()), *([("native", native)] if native else [])]


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def family_tables(smol: Path, folder: Path) -> tuple[str, str]:
    """Families x conversations, and families x runtimes."""
    masks: dict[str, dict[str, Cell]] = {}
    files = {
        name: write(folder / f"{place}.gguf", smol, family) for place, (name, family) in enumerate(FAMILIES.items())
    }
    lines = {}
    for name, gguf in files.items():
        with Embedded(gguf, context=4096) as embedded:
            masks[name] = cells(embedded)
            lines[name] = [name, "yes" if sees_tools(embedded) else "no", *[c.word for c in masks[name].values()]]
    first = markdown(["template", "shows tools", *CONVERSATIONS], list(lines.values()))
    runtimes: dict[str, list[str]] = {}
    for name, gguf in files.items():
        witness, trained = Transformers(gguf), {key: c for key, c in masks[name].items() if c.row is not None}
        said = {key: witness.agrees(c.row, CONVERSATIONS[key]) for key, c in trained.items() if c.row is not None}
        runtimes[name] = [name, _counted(said)]
    head = ["template", "transformers"]
    for version, program in servers():
        with ollama_server.serve(folder / version, program) as url:
            head.append(f"Ollama {_version(url)}")
            for place, (name, gguf) in enumerate(files.items()):
                with on_ollama(url, f"family{place}", gguf) as (model, template):
                    seen = cells(model)
                trained = {key: c for key, c in masks[name].items() if c.row is not None}
                said = {key: agrees(seen[key], c) for key, c in trained.items()}
                own = sum(c.row is not None for c in seen.values())
                runtimes[name].append(f"{_counted(said)}; {template}; {own} rows of its own")
    return first, markdown(head, list(runtimes.values()))


def _counted(said: dict[str, str]) -> str:
    same = sum(word == "same" for word in said.values())
    words = sorted({word for word in said.values() if word != "same"})
    return f"{same} of {len(said)}" + (f" ({', '.join(words)})" if words else "")


def _version(url: str) -> str:
    from llm_tuner.models.ollama import OllamaServer

    return OllamaServer(url).version()


def model_table(name: str, gguf: Path, folder: Path) -> str:
    """Conversations x runtimes of one real model."""
    with Embedded(gguf, context=4096) as embedded:
        trained = cells(embedded)
    witness = Transformers(gguf)
    columns: dict[str, dict[str, str]] = {}
    columns["transformers"] = {
        key: witness.agrees(c.row, CONVERSATIONS[key]) if c.row else "-" for key, c in trained.items()
    }
    for version, program in servers():
        with ollama_server.serve(folder / f"{name}-{version}", program) as url:
            with on_ollama(url, "model", gguf) as (model, template):
                seen = cells(model)
            column = f"Ollama {_version(url)}, {template}"
            columns[column] = {key: agrees(seen[key], c) for key, c in trained.items()}
    rows = [[key, c.word, *[column[key] for column in columns.values()]] for key, c in trained.items()]
    return markdown([name, "llama.cpp = trained", *columns], rows)


def main() -> None:
    from llm_tuner.models.sources import fetch

    def fetched(reference: str) -> Path:
        steps = fetch(reference)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return Path(end.value)

    smol, qwen = fetched("smollm2:135m"), fetched("qwen2.5-coder:0.5b")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        first, second = family_tables(smol, folder)
        tables = {"masks": first, "families": second}
        for name, title, gguf in (("qwen", "Qwen2.5-Coder-0.5B", qwen), ("smol", "SmolLM2-135M", smol)):
            tables[name] = model_table(title, gguf, folder)
    for name, table in tables.items():
        print(f"<!-- {name} -->\n{table}")
    if "--write" in sys.argv:
        text = DOCS.read_text(encoding="utf-8")
        for name, table in tables.items():
            text = re.sub(
                rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, t=table: m[1] + t + m[2], text, flags=re.DOTALL
            )
        DOCS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
