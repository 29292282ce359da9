"""What tools take of a context window: tokens in the served model's own template, and whether that leaves room.

Not a choice of tools (fitting.py). The rule it protects: tokens are counted on the bytes that the server makes, never
guessed where the server can be asked, and a template that leaves tools out is an error, not a small number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from llm_tuner.models.kv_cache import KvCache
from llm_tuner.models.signatures import RENDERINGS, Rendering, shown
from llm_tuner.types import Message, ModelError, Renderer, TemplateMismatch, ToolSpec, Value, canonical_json

Verdict = Literal["fits", "tight", "does not fit"]

WINDOWS = (200_000, 32_768, 8_192)

ROOM = 1_024
"""Tokens that a window must have besides the tools, or they do not fit: half for a request, half for its answer."""
AT_EASE = 0.25
"""Share up to which tools fit. An agent's steps (calls, results, answers) stay in the conversation, and a result is
easily 1,000 tokens: three quarters of an 8K window are five or six such steps, of half a window three."""

BYTES_A_TOKEN = 3.0
"""Where no tokenizer is at hand. Definitions in English have 3.9 bytes a token, in Japanese more; fewer counts more."""

_PROBE = (Message(role="system", text="You are a helpful assistant."), Message(role="user", text="Hello."))
_A = ToolSpec(
    name="alpha", description="Says a.", parameters={"type": "object", "properties": {"x": {"type": "string"}}}
)
_B = _A.model_copy(update={"name": "beta", "description": "Says b."})


class Meter:
    """Counts what tools take in one served model's prompts.

    `exact` renders the whole; calling it (`meter(tools, rendering)`) adds up what each tool takes beside others, which
    is asked for once a definition and then remembered: within a token a tool of the exact number, and free.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._probe: tuple[Message, ...] = _PROBE
        self._bare = self._started()
        self._around: dict[str, int] = {}
        self._shares: dict[tuple[str, str], int] = {}

    def __call__(self, tools: Sequence[ToolSpec], rendering: Rendering = "full") -> int:
        if not tools:
            return 0
        return self.around(rendering) + sum(self.share(tool, rendering) for tool in tools)

    def exact(self, tools: Sequence[ToolSpec], rendering: Rendering = "full") -> int:
        """The tokens that these tools add to a prompt. Raises TemplateMismatch where the model's template leaves them
        out, ModelError where the server refuses to render them."""
        if not tools:
            return 0
        added = self.prompt(self._probe, tools, rendering) - self._bare
        if added <= 0:
            raise TemplateMismatch(
                f"The chat template leaves tools out: {len(tools)} tools add nothing to the prompt. Show them in the "
                'system message instead (rendering "compact").'
            )
        return added

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), rendering: Rendering = "full") -> int:
        """The tokens of a whole prompt, up to where the answer begins."""
        said, offered = shown(messages, tools, rendering)
        return len(self._renderer.tokenize(self._renderer.render(said, offered)))

    def around(self, rendering: Rendering) -> int:
        """What a template writes once around all tools."""
        if rendering not in self._around:
            both = self.exact([_A, _B], rendering)
            self._around[rendering] = self.exact([_A], rendering) + self.exact([_B], rendering) - both
        return self._around[rendering]

    def share(self, tool: ToolSpec, rendering: Rendering) -> int:
        """What one tool takes beside others."""
        key = (tool.fingerprint, rendering)
        if key not in self._shares:
            self._shares[key] = self.exact([tool], rendering) - self.around(rendering)
        return self._shares[key]

    def _started(self) -> int:
        try:
            return self.prompt(self._probe)
        except ModelError:  # a template without a place for a system message
            self._probe = _PROBE[1:]
            return self.prompt(self._probe)


def guessed(tools: Sequence[ToolSpec], rendering: Rendering = "full") -> int:
    """What tools take where no renderer is at hand (a foreign server): bytes over BYTES_A_TOKEN, rather too many."""
    if not tools:
        return 0
    said, offered = shown(_PROBE, tools, rendering)
    text = said[0].text if not offered else canonical_json([tool.openai() for tool in offered])
    return round(len(text.encode()) / BYTES_A_TOKEN)


# -------------------------------------------------------------------------------------------------------- the table


class ToolTokens(Value):
    """What one tool takes beside others, by rendering."""

    name: str
    server: str
    tokens: dict[Rendering, int]


class Use(Value):
    """A catalogue in a window. `left` is what it leaves for the conversation, negative where it is longer itself."""

    window: int
    rendering: Rendering
    tokens: int
    share: float
    left: int
    verdict: Verdict


class Budget(Value):
    """What a catalogue takes: of each tool and server (their sums leave out what stands once `around` all tools), of
    the whole, and of windows, by rendering; one that the model's template leaves out is not there. `kv_bytes`: the KV
    cache of each window; empty where the model's file is not at hand. `trained`: the longest context that the model was
    trained on, 0 for not known."""

    tools: tuple[ToolTokens, ...]
    servers: dict[str, dict[Rendering, int]]
    around: dict[Rendering, int]
    whole: dict[Rendering, int]
    windows: tuple[Use, ...]
    kv_bytes: dict[int, int] = Field(default_factory=dict)
    trained: int = 0


def verdict(tokens: int, window: int) -> Verdict:
    """Whether tools of so many tokens leave room in a window: see ROOM and AT_EASE."""
    if tokens + ROOM > window:
        return "does not fit"
    return "fits" if tokens <= AT_EASE * window else "tight"


def budget(
    tools: Sequence[ToolSpec],
    meter: Meter,
    windows: Sequence[int] = WINDOWS,
    cache: KvCache | None = None,
    kind: str = "f16",
) -> Budget:
    """Counts every tool in every rendering that the model's template shows, and the whole."""
    whole: dict[Rendering, int] = {}
    for rendering in RENDERINGS:
        with contextlib.suppress(TemplateMismatch):
            whole[rendering] = meter.exact(tools, rendering)
    each = tuple(ToolTokens(name=t.name, server=t.server, tokens={r: meter.share(t, r) for r in whole}) for t in tools)
    servers: dict[str, dict[Rendering, int]] = {}
    for one in each:
        sums = servers.setdefault(one.server, dict.fromkeys(whole, 0))
        for rendering in whole:
            sums[rendering] += one.tokens[rendering]
    return Budget(
        tools=each,
        servers=servers,
        around={rendering: meter.around(rendering) for rendering in whole},
        whole=whole,
        windows=uses(whole, windows),
        kv_bytes={window: cache.bytes(window, kind) for window in windows} if cache else {},
        trained=cache.trained if cache else 0,
    )


def uses(whole: Mapping[Rendering, int], windows: Sequence[int]) -> tuple[Use, ...]:
    """A catalogue of so many tokens by rendering, in each window."""
    return tuple(_use(whole, window, rendering) for window in windows for rendering in whole)


def _use(whole: Mapping[Rendering, int], window: int, rendering: Rendering) -> Use:
    tokens = whole[rendering]
    return Use(
        window=window, rendering=rendering, tokens=tokens, share=tokens / window, left=window - tokens,
        verdict=verdict(tokens, window),
    )  # fmt: skip
