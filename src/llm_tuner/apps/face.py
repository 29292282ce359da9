"""An operation as a command of the terminal: its arguments as arguments and options, `--json`, and `--yes` where it
destroys. Written once, so that a command cannot differ from what MCP and the dashboard offer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

import typer

from llm_tuner.apps.console import Json, drive, out
from llm_tuner.operations import Operation, perform

Text = Callable[[Any], str]
"""The result as people read it."""


def add(app: typer.Typer, operation: Operation, text: Text) -> None:
    """`operation` as a command of `app`, under the last word of its `command`."""
    app.command(operation.command[-1], help=operation.help)(command(operation, text))


def command(operation: Operation, text: Text) -> Callable[..., None]:
    """The function that Typer takes. What has no default is an argument, all else an option."""

    def run(**given: Any) -> None:
        json, yes = given.pop("json"), given.pop("yes", None)
        if yes is None:
            result = drive(perform(operation, given))
        else:
            plan = drive(perform(operation, given | {"confirm": False}))
            if not yes and not plan["done"]:
                typer.echo("\n".join(plan["sentences"]), err=True)
                typer.confirm("Go on?", abort=True, err=True)
            result = plan if plan["done"] else drive(perform(operation, given | {"confirm": True}))
        out(result, json, lambda: text(result))

    own = [_typed(one) for name, one in operation.parameters.items() if name != "confirm"]
    if operation.effect == "destroys":
        own.append(_option("yes", Annotated[bool, typer.Option("--yes", help="Do not ask.")]))
    own.append(_option("json", Json))
    run.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in own}
    return run


def sentences(result: Any) -> str:
    """A Change as text."""
    return "\n".join(result["sentences"])


def _typed(one: inspect.Parameter) -> inspect.Parameter:
    kind, help = one.annotation, ""
    if get_origin(kind) is Annotated:
        kind, field = get_args(kind)[:2]
        help = getattr(field, "description", None) or ""
    required = one.default is inspect.Parameter.empty
    told = typer.Argument(help=help) if required else typer.Option(help=help)
    return one.replace(annotation=Annotated[kind, told], kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _option(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False, annotation=annotation)
