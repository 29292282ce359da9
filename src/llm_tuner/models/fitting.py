"""Tools under a token budget: which are offered, in which form, and what was left out.

Not a ranking: the order of likelihood comes from whoever knows the request (tools/retrieval.py). The rule it protects:
nothing is lost silently. What is not offered is named, and what cannot fit is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from llm_tuner.models.signatures import Rendering
from llm_tuner.types import ModelError, ToolSpec, Value, by_name

Count = Callable[[Sequence[ToolSpec], Rendering], int]
"""What tools take of a prompt in a rendering: a `window.Meter`, or `window.guessed`."""

SURE = 8
"""So many of the likeliest tools must stand in what was offered before, for it to be offered again."""


class Fitted(Value):
    """What is offered. `tools` are as their servers describe them (calls are validated against these), in the
    catalogue's order, the search tool first where there is one; they are shown in `rendering`. `left_out` are the names
    of the others."""

    tools: tuple[ToolSpec, ...]
    rendering: Rendering
    tokens: int
    left_out: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tool.name for tool in self.tools)


def fit(
    tools: Sequence[ToolSpec],
    budget: int,
    count: Count,
    *,
    ranked: Sequence[ToolSpec] = (),
    needed: Collection[str] = (),
    kept: Sequence[str] = (),
    before: Sequence[str] = (),
    renderings: Sequence[Rendering] = ("full", "compressed"),
    search: ToolSpec | None = None,
) -> Fitted:
    """The first of `renderings` in which all tools take at most `budget` tokens; else fewer tools, in the last one.

    Fewer are, in this order, as long as there is room: `search` (offered only then), the `needed` ones (a tool that was
    asked for by name), those `kept` from the conversation, the last one first, and the `ranked` ones (the catalogue's
    order where none are given). One that alone is too long for what is left is passed over. What was offered `before`
    to this client is offered again as long as it holds the needed and kept tools and the SURE likeliest, so that a
    server finds its prompt cache. Of tools with one name the first counts.

    Raises ModelError where the search tool and the needed tools do not fit, or nothing does.
    """
    offered = tuple(by_name(tools).values())
    for rendering in renderings:
        if (tokens := count(offered, rendering)) <= budget:
            return Fitted(tools=offered, rendering=rendering, tokens=tokens)
    rendering = renderings[-1]
    known = {tool.name: tool for tool in offered}
    must = [name for name in dict.fromkeys(needed) if name in known]
    wanted = dict.fromkeys([*must, *(name for name in reversed(kept) if name in known)])
    likely = list(dict.fromkeys(tool.name for tool in (ranked or offered) if tool.name in known))
    again = {name for name in before if name in known}

    def chosen(names: Collection[str]) -> tuple[ToolSpec, ...]:
        return (*((search,) if search else ()), *(tool for tool in offered if tool.name in names))

    def fits(names: Collection[str]) -> bool:
        return count(chosen(names), rendering) <= budget

    names = again if again >= {*wanted, *likely[:SURE]} and fits(again) else set(must)
    if names is not again:
        if not fits(names):
            raise ModelError(_refusal(chosen(names), rendering, count, budget, len(offered)))
        for name in (*wanted, *likely):
            if name not in names and fits({*names, name}):
                names.add(name)
    if not names:
        least = min(offered, key=lambda tool: count([tool], rendering))
        raise ModelError(_refusal(chosen([least.name]), rendering, count, budget, len(offered)))
    tools = chosen(names)
    left_out = tuple(tool.name for tool in offered if tool.name not in names)
    return Fitted(tools=tools, rendering=rendering, tokens=count(tools, rendering), left_out=left_out)


def _refusal(least: Sequence[ToolSpec], rendering: Rendering, count: Count, budget: int, of: int) -> str:
    names = ", ".join(tool.name for tool in least[:8]) + (f" and {len(least) - 8} more" if len(least) > 8 else "")
    return (
        f"{of} tools do not fit into {max(0, budget)} tokens: {names} ({rendering}) alone take "
        f"{count(least, rendering)}. Give the model a larger context, or offer shorter tools."
    )
