"""The words that every room speaks: frozen values, two protocols, the error tree.

No I/O, no behaviour beyond naming and hashing. One word per thing, no synonyms anywhere (docs/glossary.md).
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

Json = Any
"""A JSON value: None, bool, int, float, str, list or dict of these."""


def canonical_json(value: Json) -> str:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8 kept. Hash this, never `str(value)`."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def content_hash(value: Json) -> str:
    """16 hex digits (64 bits) of the SHA-256 of the value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


class Value(BaseModel):
    """A frozen value. Unknown keys are errors: a record written by another version must not lose fields silently."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# --------------------------------------------------------------------------------------------------- tools and calls


class ToolSpec(Value):
    """A tool as its server describes it. `parameters` is the original JSON Schema, never rebuilt."""

    name: str
    description: str = ""
    parameters: dict[str, Json] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    server: str = ""

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the name, the description or the schema changes; the server's name does not count."""
        return content_hash([self.name, self.description, self.parameters])

    def openai(self) -> dict[str, Json]:
        """The wrapping that chat templates and OpenAI-style servers take."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


class ToolCall(Value):
    """A call that a model made. A bad one is a value too: then `error` says what is wrong with `raw`."""

    name: str
    arguments: dict[str, Json] = Field(default_factory=dict)
    id: str = ""
    raw: str = ""
    error: str = ""


class ToolResult(Value):
    """What a tool answered. `content` is untrusted text."""

    call_id: str = ""
    content: str = ""
    is_error: bool = False


class Message(Value):
    """One turn. A conversation is a tuple of them.

    `tool_calls` holds what the runtime itself surfaced (the *native* calls). `text_calls` holds the calls that a
    dialect found written in `text`: what the *lenient* reading adds.
    """

    role: Literal["system", "user", "assistant", "tool"]
    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    text_calls: tuple[ToolCall, ...] = ()
    result: ToolResult | None = None


# ------------------------------------------------------------------------------------------------------------- tasks


class ExactCalls(Value):
    """These calls, with these arguments, in any order unless `ordered`. Leaving out an argument or passing its schema
    default mean the same."""

    kind: Literal["exact"] = "exact"
    calls: tuple[ToolCall, ...]
    ordered: bool = False


class AllowedCall(Value):
    """One call whose every argument has a list of allowed values; `""` among them: it may be left out (BFCL).

    `source_types` is for arguments that are passed as source text of another language (BFCL's Java and JavaScript):
    the language, the type, and the type of its items, as in `("java", "ArrayList", "String")`.
    """

    name: str
    arguments: dict[str, list[Json]] = Field(default_factory=dict)
    source_types: dict[str, tuple[str, ...]] = Field(default_factory=dict, exclude_if=operator.not_)


class AllowedCalls(Value):
    """These calls, each argument with one of its allowed values; in any order unless `ordered`."""

    kind: Literal["allowed"] = "allowed"
    calls: tuple[AllowedCall, ...]
    ordered: bool = False


class AnyCall(Value):
    """At least one call, whatever it is: a right answer does not do without a tool (BFCL's relevance)."""

    kind: Literal["any"] = "any"


class NoCall(Value):
    """No tool fits or a value is missing: a right answer calls nothing. `reply` is a reference text for training."""

    kind: Literal["none"] = "none"
    reply: str = ""


Expectation = Annotated[ExactCalls | AllowedCalls | AnyCall | NoCall, Field(discriminator="kind")]

Side = Literal["train", "held-out"]
HELD_OUT_SHARE = 0.2


class Task(Value):
    """A request with its tools and what a right answer looks like.

    `id` is the content hash of messages, tools and expectation. `split` fixes the side; where it is empty the hash of
    the *request text* decides, so that one request never stands on both sides with two catalogues.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    expect: Expectation
    category: str = ""
    source: str = ""
    licence: str = ""
    language: str = ""
    split: Side | None = None
    tags: dict[str, str] = Field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        return content_hash(
            [
                [m.model_dump(exclude_defaults=True) for m in self.messages],
                [[t.name, t.description, t.parameters] for t in self.tools],
                self.expect.model_dump(),
            ]
        )

    @property
    def request(self) -> str:
        """The last thing the user said."""
        return next((m.text for m in reversed(self.messages) if m.role == "user"), "")

    @property
    def side(self) -> Side:
        if self.split is not None:
            return self.split
        words = " ".join(self.request.split()).casefold()
        share = int(hashlib.sha256(words.encode()).hexdigest()[:8], 16) / 0x1_0000_0000
        return "held-out" if share < HELD_OUT_SHARE else "train"


# ---------------------------------------------------------------------------------------------------------- attempts


class Usage(Value):
    """Tokens, as the runtime counted them."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class Timing(Value):
    """Milliseconds, wall clock, seen from the client; `prompt_ms` and `generate_ms` as the runtime reports them."""

    total_ms: float = 0.0
    first_token_ms: float | None = None
    prompt_ms: float | None = None
    generate_ms: float | None = None


class ChatOptions(Value):
    """How to decode. `parallel`: the runtime may surface more than one call in a turn.

    `on_policy`: sample from the model's whole distribution at this temperature, without the cuts that runtimes make by
    themselves (top-k, top-p, min-p), and say what was written token by token where the runtime can: what reinforcement
    learns from.
    """

    temperature: float = 0.0
    max_tokens: int = 256
    seed: int = 0
    parallel: bool = True
    on_policy: bool = False


GREEDY = ChatOptions()
"""Temperature 0: what measuring uses unless told otherwise."""


class Written(Value):
    """The very tokens of an answer, the one that ended the turn among them (none where the limit cut it off), and the
    text that they are without that one."""

    text: str
    ids: tuple[int, ...]


class Reply(Value):
    """One answer of a backend. `finish`: "stop", "length", "tool_calls" or what the runtime said. `written` is None
    unless it was asked for (`ChatOptions.on_policy`) and the runtime says it."""

    message: Message
    usage: Usage = Usage()
    timing: Timing = Timing()
    finish: str = ""
    written: Written | None = None


Reason = Literal[
    "ok",
    "no_call",  # a call was wanted, none was made
    "call_as_text",  # a call was written as text: the runtime surfaced none
    "unwanted_call",  # no call was wanted, one was made (natively or as text)
    "broken_call",  # a call could not be read (broken JSON, no name)
    "unknown_tool",  # a name that was not offered
    "wrong_tool",  # an offered tool, but not the expected one
    "wrong_count",  # fewer or more calls than expected
    "wrong_order",
    "missing_parameter",
    "unexpected_parameter",
    "wrong_type",
    "wrong_value",
    "wrong_state",  # a turn left the environment in another state than wanted
    "missing_result",  # a wanted call's result is not among those that the model has had
    "endless_turn",  # the model called and called, and the turn was cut off
    "backend_error",  # the model could not be asked, or it timed out
]


class Verdict(Value):
    """The judge's word on one attempt. `score` is 1.0 exactly when `ok`."""

    ok: bool
    selection_ok: bool
    parameters_ok: bool
    score: float
    reason: Reason
    detail: str = ""


class Attempt(Value):
    """One try at one task by one backend: the record that data, training, evaluation and feedback all share."""

    task_id: str
    backend: str
    messages: tuple[Message, ...] = ()
    results: tuple[ToolResult, ...] = ()
    usage: Usage = Usage()
    timing: Timing = Timing()
    error: str = ""
    verdict: Verdict | None = None


class Row(Value):
    """A training example: the token ids of a prompt and of its completion, exactly as the serving runtime made them.

    Loss falls on `completion_ids` only; its last id is the token that ends the turn. `prompt` and `completion` are the
    same in text, kept for people and for the parity check. `turn` counts the answers of one attempt, from 0.
    """

    task_id: str
    turn: int = Field(0, ge=0)
    prompt: str
    completion: str
    prompt_ids: tuple[int, ...] = Field(min_length=2)
    completion_ids: tuple[int, ...] = Field(min_length=1)

    @property
    def length(self) -> int:
        """Tokens of the whole row."""
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def fingerprint(self) -> str:
        """Hash of its token ids; a task with several turns has several rows."""
        return content_hash([list(self.prompt_ids), list(self.completion_ids)])


class Pair(Value):
    """A preference: two completions of one prompt, the `chosen` one right and the `rejected` one wrong for `reason`.

    Both rows have the same prompt. `origin` says who wrote the rejected one: the model "itself", or it was "made" from
    the right answer because the model had no mistake to offer.
    """

    chosen: Row
    rejected: Row
    reason: Reason
    origin: Literal["itself", "made"] = "itself"


class Rollout(Value):
    """One try at a task by the model in training, for reinforcement: a row for each turn that it wrote (the prompt of a
    later turn holds the earlier ones and the tools' results), and the reward 0..1 for the whole of it. Rollouts of one
    task form a group."""

    task_id: str
    rows: tuple[Row, ...]
    reward: float
    reason: Reason = "ok"


class Prediction(Value):
    """What a model foresees of a row (its fingerprint) when the completion is forced on it: of each completion token
    ln p, given all before it, and the token that the model itself held likeliest at that place."""

    row: str
    log_probabilities: tuple[float, ...]
    greedy: tuple[int, ...]


# ---------------------------------------------------------------------------------------------------- reports, gates


class Rate(Value):
    """`k` of `n`, with its 95 % Wilson score interval (Wilson 1927). All None where n = 0."""

    k: int
    n: int
    value: float | None
    low: float | None
    high: float | None


class Latency(Value):
    """End-to-end milliseconds a request, over `n` requests; `tokens_per_s` is generated tokens over generation time."""

    n: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    first_token_p50_ms: float | None = None
    tokens_per_s: float | None = None


class Tokens(Value):
    """Tokens of the `n` answers: medians a request, and all of them together."""

    n: int = 0
    prompt_p50: float | None = None
    completion_p50: float | None = None
    prompt: int = 0
    cached: int = 0
    completion: int = 0


class Passage(Value):
    """What one passage of a text was to a model: `nats` is the sum of -ln p over its `tokens`; `bytes` are UTF-8."""

    id: str
    kind: str
    hash: str
    bytes: int
    tokens: int
    nats: float


class Estimate(Value):
    """A number with its 95 % interval over what it was averaged over."""

    value: float
    low: float
    high: float


class Perplexity(Value):
    """How well a model foresees a fixed text, `text` (its hash).

    `bits_per_byte` and `perplexity` (a token) are by kind of passage, "all" among them; both are lower where the text
    is foreseen better, and only the first compares models with different tokenizers. Where it cannot be measured there
    are no passages, and `why` says so.
    """

    text: str
    passages: tuple[Passage, ...] = ()
    bits_per_byte: dict[str, Estimate] = Field(default_factory=dict)
    perplexity: dict[str, Estimate] = Field(default_factory=dict)
    why: str = ""


class Report(Value):
    """What a suite measured of a backend.

    `rates` are over the whole suite, `groups` over parts of it (`groups["language"]["ja"]["selection"]`).
    `verdicts` (native reading) by task id make two reports comparable task by task; `lenient` holds the verdicts of the
    lenient reading where they differ, `wanted` the ids of the tasks that want a call. `confusion[wanted][called]`
    counts the tasks that want one call, by the tool that was called (lenient reading). `perplexity` is of the check of
    general skill alone.
    """

    suite: str
    suite_hash: str
    backend: str
    n: int
    rates: dict[str, Rate]
    groups: dict[str, dict[str, dict[str, Rate]]] = Field(default_factory=dict)
    latency: Latency = Latency()
    tokens: Tokens = Tokens()
    reasons: dict[str, int] = Field(default_factory=dict)
    confusion: dict[str, dict[str, int]] = Field(default_factory=dict)
    rules: str = ""
    verdicts: dict[str, Verdict] = Field(default_factory=dict)
    lenient: dict[str, Verdict] = Field(default_factory=dict)
    wanted: tuple[str, ...] = ()
    machine: dict[str, str] = Field(default_factory=dict)
    model_sha256: str = ""
    perplexity: Perplexity | None = Field(default=None, exclude_if=operator.not_)


class Trial(Value):
    """One try of a search. `settings` are what was tried; `losses` (share of the training done, loss on judging tasks)
    came on the way; `accuracy` is the share of judging tasks answered right, None unless it finished; `why` says what
    failed."""

    number: int
    settings: dict[str, float]
    state: Literal["done", "pruned", "failed", "running"]
    accuracy: float | None = None
    losses: tuple[tuple[float, float], ...] = ()
    seconds: float = 0.0
    why: str = ""


class Search(Value):
    """What a search found. `best` is the number of the best finished trial; `importance` says how much of the
    accuracy's spread goes back to each setting (sums to 1; empty while there are too few trials to tell)."""

    trials: tuple[Trial, ...]
    best: int | None = None
    importance: dict[str, float] = Field(default_factory=dict)
    tasks: int = 0
    rows: int = 0


class Check(Value):
    """One rule of the gate, and what it saw."""

    rule: str
    passed: bool
    sentence: str


class Decision(Value):
    """The gate's word. `promote` is true exactly when every check passed."""

    promote: bool
    checks: tuple[Check, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(c.sentence for c in self.checks)


class Run(Value):
    """One finished step: where a served model comes from. `key` is the hash of kind, config and inputs."""

    id: str
    kind: str
    key: str
    config: dict[str, Json] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)
    outputs: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, Json] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    seed: int = 0
    started: str = ""
    finished: str = ""
    seconds: float = 0.0


class Event(Value):
    """A sign of life from a long step. `done` of `total` in `unit` (0 = unknown); the caller decides how to show it.

    A long step is a generator of events whose return value is its result: `run = yield from step(config, inputs)`.
    """

    step: str
    message: str = ""
    done: float = 0
    total: float = 0
    unit: str = ""
    data: dict[str, Json] = Field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------------- protocols


@runtime_checkable
class Backend(Protocol):
    """A model as served. `chat` never raises for what the model writes, only when it cannot be reached (ModelError)."""

    @property
    def name(self) -> str: ...

    def chat(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY
    ) -> Reply: ...


@runtime_checkable
class Renderer(Protocol):
    """What a runtime makes of a conversation: the exact text, its token ids. Training takes its bytes from here.

    `tokenize` reads special tokens as such, `detokenize` writes them out, `end_tokens` are those that end generation.
    """

    def render(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), generation_prompt: bool = True
    ) -> str: ...

    def tokenize(self, text: str) -> list[int]: ...

    def detokenize(self, tokens: Sequence[int]) -> str: ...

    def end_tokens(self) -> frozenset[int]: ...


@runtime_checkable
class Forking(Protocol):
    """A backend that can go on from one prompt several times at once without reading it again."""

    def fork(self, messages: Sequence[Message], tools: Sequence[ToolSpec], count: int) -> Sequence[Backend]:
        """`count` backends that have this prompt in their caches; they may be asked at the same time."""
        ...


@runtime_checkable
class Toolbox(Protocol):
    """Tools that can be called. `call` never raises for what a tool does: a failure is a ToolResult with is_error."""

    def specs(self) -> tuple[ToolSpec, ...]: ...

    def call(self, call: ToolCall) -> ToolResult: ...


# ------------------------------------------------------------------------------------------------------------- errors


class TunerError(Exception):
    """Every error that llm-tuner raises on purpose. The message says what happened, what was found, what to do."""

    exit_code: ClassVar[int] = 1


class SetupError(TunerError):
    """Yours to fix: a missing extra, a bad option, no space. No traceback is shown."""

    exit_code = 4


class DiskFull(SetupError):
    exit_code = 5


class MissingExtra(SetupError):
    exit_code = 6


class ModelError(TunerError):
    exit_code = 10


class UnknownModel(ModelError):
    exit_code = 11


class ChecksumMismatch(ModelError):
    exit_code = 12


class CorruptModel(ModelError):
    exit_code = 13


class SourceUnreachable(ModelError):
    exit_code = 14


class RuntimeUnavailable(ModelError):
    exit_code = 15


class RuntimeTooOld(ModelError):
    exit_code = 16


class TemplateMismatch(ModelError):
    exit_code = 17


class PromptTooLong(ModelError):
    exit_code = 18


class ToolError(TunerError):
    exit_code = 20


class ServerStartError(ToolError):
    exit_code = 21


class DataError(TunerError):
    exit_code = 30


class EmptyData(DataError):
    exit_code = 31


class TrainingError(TunerError):
    exit_code = 40


class TrainingInterrupted(TrainingError):
    exit_code = 41


GATE_REFUSED = 3
"""Exit code of a command whose work succeeded but whose gate refused the candidate."""


def by_name(tools: Sequence[ToolSpec]) -> Mapping[str, ToolSpec]:
    """Tools by their name; the first wins."""
    out = {tool.name: tool for tool in tools}
    if len(out) < len(tools):
        for tool in reversed(tools):
            out[tool.name] = tool
    return out
