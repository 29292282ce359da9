"""`llm-tuner ollama`: an Ollama server from the terminal; and `run`, a chat in which the model may use your tools."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_tuner.apps import face
from llm_tuner.apps.console import note, table
from llm_tuner.operations import amount
from llm_tuner.operations import ollama as operations

if TYPE_CHECKING:
    from llm_tuner.types import Message, ToolCall

app = typer.Typer(help="An Ollama server: list, pull, update, rm, show, ps, load, run, ...", no_args_is_help=True)


def _listed(found: dict[str, Any]) -> str:
    rows = [
        [m["name"], amount(m["size"]), m["digest"][:12], m["modified_at"][:16].replace("T", " "),
         "; ".join(m["trouble"]) or ("in memory" if m["loaded"] else "")] for m in found["models"]
    ]  # fmt: skip
    head = f"Ollama {found['server']} at {found['url']}" if found["server"] else f"{found['why']} On disk:"
    return f"{head}\n{table(rows, ['name', 'size', 'digest', 'modified', 'state'])}"


def _shown(found: dict[str, Any]) -> str:
    details = found["details"] or {}
    rows = [
        ["size", str(details.get("parameter_size", "?"))],
        ["quantisation", str(details.get("quantization_level", "?"))],
        ["window", f"{found['context_length'] or '?'} tokens"],
        ["capabilities", ", ".join(found["capabilities"] or ["not said"])],
        ["place for tools", "yes" if found["place_for_tools"] else "no"],
    ]
    return f"{table(rows, [found['name'], ''])}\n\n{found['parameters'] or ''}\n\n{found['template'] or ''}".rstrip()


def _running(found: dict[str, Any]) -> str:
    rows = [
        [
            m["name"],
            amount(m["size"]),
            amount(m["size_vram"]),
            str(m.get("context_length") or "?"),
            m["expires_at"][:19],
        ]
        for m in found["models"]
    ]
    return table(rows, ["name", "memory", "on GPU", "window", "until"]) if rows else "No model is in memory."


def _updated(found: dict[str, Any]) -> str:
    rows = []
    for m in found["models"]:
        what = ", ".join(c["kind"] + (f" ({amount(c['bytes'])})" if c["bytes"] else "") for c in m["changes"])
        rows.append([m["name"], m["state"], what or m.get("why", "")])
    return table(rows, ["name", "state", "changed"])


def _generated(found: dict[str, Any]) -> str:
    speed = f", {found['tokens_per_s']} tokens/s" if found["tokens_per_s"] else ""
    note(f"{found['model']}: {found['completion_tokens']} tokens in {found['ms']} ms{speed}")
    return str(found["code"] if "code" in found else found["text"])


_TEXTS: dict[str, face.Text] = {
    "ollama_list_models": _listed,
    "ollama_show": _shown,
    "ollama_ps": _running,
    "ollama_pull": lambda found: f"{found['name']}: {str(found['digest'])[:12]}",
    "ollama_update": _updated,
    "ollama_remove": face.sentences,
    "ollama_copy": lambda found: f"{found['destination']} is {found['source']}.",
    "ollama_load": _running,
    "ollama_unload": _running,
    "ollama_generate": _generated,
    "ollama_code": _generated,
}
for _operation in operations.OPERATIONS:
    face.add(app, _operation, _TEXTS[_operation.name])

END = "/bye"


@app.command()
def run(
    model: Annotated[str, typer.Argument(help="A model's name.")],
    prompt: Annotated[str, typer.Argument(help="Ask this and end; without it, a chat.")] = "",
    hub: Annotated[str, typer.Option(help='Tools that the model may call: an mcpServers JSON file, or "demo".')] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Run every call without asking.")] = False,
    context: Annotated[int, typer.Option(min=512, help="Window in tokens.")] = 8192,
    turns: Annotated[int, typer.Option(min=1, help="Answers with calls in a row, at most.")] = 8,
    host: Annotated[str, typer.Option(help="Ollama server; OLLAMA_HOST when empty.")] = "",
) -> None:
    """Talk to a model. With a hub it may use your tools: each call is shown and asked about before it runs, also one
    that the model wrote as text.

    A request may also come from standard input. /bye ends a chat.

    Example: llm-tuner ollama run qwen2.5-coder:1.5b --hub demo
    """
    from contextlib import ExitStack

    from llm_tuner.loop import Tune, workshop
    from llm_tuner.models.ollama import Ollama
    from llm_tuner.types import Message, canonical_json

    with ExitStack() as stack:
        backend = Ollama(model, host or None, context)
        stack.callback(backend.close)
        tools = stack.enter_context(workshop(Tune(hub=hub)))[0] if hub else None
        said: list[Message] = []
        for request in _requests(prompt):
            said.append(Message(role="user", text=request))
            offered, made = tools.specs() if tools else (), set[str]()
            for _ in range(turns):
                answer = backend.chat(said, offered).message
                calls = answer.tool_calls or answer.text_calls
                wanted = {canonical_json([call.name, call.arguments]) for call in calls}
                if calls and wanted <= made:  # small models ask for what they know: they get no tools, and answer
                    answer = backend.chat(said).message
                    calls = ()
                made |= wanted
                said.append(answer.model_copy(update={"tool_calls": calls, "text_calls": ()}))
                if not calls or tools is None:
                    print(answer.text, flush=True)
                    break
                said += [_ran(call, tools, yes) for call in calls]
            else:
                note(f"Stopped after {turns} answers with calls.")


def _requests(prompt: str) -> Any:
    """The one request, the lines of a pipe as one, or a chat's until it ends."""
    if prompt:
        yield prompt
    elif not sys.stdin.isatty():
        if text := sys.stdin.read().strip():
            yield text
    else:
        while True:
            try:
                line = input(">>> ").strip()
            except EOFError:
                return
            if line == END:
                return
            if line:
                yield line


def _ran(call: ToolCall, tools: Any, yes: bool) -> Message:
    import json

    from llm_tuner.types import Message, ToolResult

    note(f"{call.name} {json.dumps(call.arguments, ensure_ascii=False)}{f' ({call.error})' if call.error else ''}")
    if yes or typer.confirm("Run it?", err=True):
        result = tools.call(call)
        note(result.content[:500] + ("..." if len(result.content) > 500 else ""))
    else:
        result = ToolResult(call_id=call.id, content="The user did not allow this call.", is_error=True)
    return Message(role="tool", result=result)
