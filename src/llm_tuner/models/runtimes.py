"""Where a tuned model is installed and served: the embedded runtime, or an Ollama server. Same verbs, same order.

Not a backend: a runtime opens one. The rule it protects: a candidate never replaces what serves; only `promote` moves
`stable`, and `rollback` moves it back.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from llm_tuner.models.chat_template import require_chat_template
from llm_tuner.models.llamacpp import Embedded
from llm_tuner.models.ollama import Ollama, OllamaServer
from llm_tuner.models.ollama_templates import GO_TEMPLATES, PROBES, kept
from llm_tuner.models.versions import Versions
from llm_tuner.types import (
    GREEDY,
    ChatOptions,
    Event,
    Json,
    Message,
    ModelError,
    Reply,
    RuntimeUnavailable,
    SetupError,
    ToolSpec,
    UnknownModel,
    Value,
    content_hash,
)


class Served(Value):
    """A model that a runtime can open. `reference` is the runtime's own name for it, `gguf` the file it was made of."""

    reference: str
    gguf: Path
    sha256: str


class Model(Protocol):
    """An opened model: it answers, and it shows what it makes of a conversation."""

    @property
    def name(self) -> str: ...

    def chat(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY
    ) -> Reply: ...

    def render(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), generation_prompt: bool = True
    ) -> str: ...

    def tokenize(self, text: str) -> list[int]: ...

    def detokenize(self, tokens: Sequence[int]) -> str: ...

    def end_tokens(self) -> frozenset[int]: ...


class Runtime(Protocol):
    """The verbs that the loop uses. `name` is the tuned model's name, without an alias."""

    kind: str

    def identity(self) -> dict[str, str]: ...

    def stock(self, name: str, gguf: Path, sha256: str) -> Generator[Event, None, Served]: ...

    def stable(self, name: str) -> Served | None: ...

    def open(
        self, served: Served, *, adapters: Sequence[Path] = (), slots: int = 1, context: int | None = None
    ) -> AbstractContextManager[Model]:
        """The model, for as long as the context is open. `adapters` are LoRA GGUFs beside it, `slots` how many may ask
        it at once, `context` another window than the runtime's own. Raises SetupError for what it cannot do."""
        ...

    def install(self, name: str, gguf: Path, lineage: dict[str, Json]) -> Generator[Event, None, Served]: ...

    def aliases(self, name: str) -> dict[str, str]:
        """Alias -> what it serves: a version, or the beginning of a digest."""
        ...

    def note(self, served: Served, measured: dict[str, Json]) -> None:
        """Keeps what was measured of an installed model, where the runtime has a place for it."""
        ...

    def promote(self, name: str) -> str: ...

    def rollback(self, name: str) -> str: ...


class EmbeddedRuntime:
    """llama.cpp in a child process; versions and aliases are files (`Versions`)."""

    kind = "embedded"

    def __init__(self, versions: Versions | None = None, *, context: int = 8192) -> None:
        self.versions = versions or Versions()
        self.context = context

    def identity(self) -> dict[str, str]:
        """What makes two measurements through this runtime comparable."""
        return {"runtime": self.kind, "context": str(self.context)}

    def stock(self, name: str, gguf: Path, sha256: str) -> Generator[Event, None, Served]:
        """The untuned base needs no installing: it is served from where it lies. Raises TemplateMismatch where the file
        has no chat template."""
        require_chat_template(gguf)
        yield Event(step="install", message=f"{gguf.name} is served as it is")
        return Served(reference="stock", gguf=gguf, sha256=sha256)

    def stable(self, name: str) -> Served | None:
        return self._at(name, "stable") if name in self.versions.names() else None

    def _at(self, name: str, alias: str) -> Served | None:
        if alias not in self.versions.aliases(name):
            return None
        reference = f"{name}:{alias}"
        return Served(
            reference=reference,
            gguf=self.versions.path(reference),
            sha256=self.versions.version(reference).sha256,
        )

    @contextmanager
    def open(
        self, served: Served, *, adapters: Sequence[Path] = (), slots: int = 1, context: int | None = None
    ) -> Iterator[Model]:
        window = context or self.context
        with Embedded(served.gguf, name=served.reference, context=window, adapters=adapters, slots=slots) as model:
            yield model

    def install(self, name: str, gguf: Path, lineage: dict[str, Json]) -> Generator[Event, None, Served]:
        yield Event(step="install", message=f"installing {name}:candidate")
        version = self.versions.install(name, gguf, lineage)
        yield Event(step="install", message=f"{name}:candidate is {version.version}", done=1, total=1)
        reference = f"{name}:candidate"
        return Served(reference=reference, gguf=self.versions.path(reference), sha256=version.sha256)

    def aliases(self, name: str) -> dict[str, str]:
        return self.versions.aliases(name)

    def note(self, served: Served, measured: dict[str, Json]) -> None:
        self.versions.note(served.reference, measured)

    def promote(self, name: str) -> str:
        return self.versions.promote(name).version

    def rollback(self, name: str) -> str:
        return self.versions.rollback(name).version


class OllamaRuntime:
    """An Ollama server: aliases are tags (`name:candidate`, `name:stable`, `name:previous`), moved by /api/copy.

    `template` is the Go template given to every model made here; "" leaves the choice to the server. Where none is
    given, `stock` takes the one of ours that renders the base as llama.cpp does, byte for byte.
    """

    kind = "ollama"

    def __init__(self, host: str | None = None, *, context: int = 8192, template: str | None = None) -> None:
        self.host = host
        self.server = OllamaServer(host)
        self.context = context
        self.template = template
        self._base: Path | None = None

    def identity(self) -> dict[str, str]:
        """Server, context and template decide what a measurement means."""
        template = content_hash(self.template or "")
        return {"runtime": self.kind, "context": str(self.context), "host": self.server.url, "template": template}

    def stock(self, name: str, gguf: Path, sha256: str) -> Generator[Event, None, Served]:
        """The base as `name:stock`, with the same template as the tuned one: the comparison is of weights alone."""
        self.server.version()
        if self.template is None:
            require_chat_template(gguf)
            self.template = yield from self._fitting(f"{name}:probe", gguf)
        self._base = gguf
        yield from self._create(f"{name}:stock", gguf, self.template)
        return Served(reference=f"{name}:stock", gguf=gguf, sha256=sha256)

    def _fitting(self, tag: str, gguf: Path) -> Generator[Event, None, str]:
        """The first of our templates with which this server renders every probe as llama.cpp does; "" if none does."""
        with Embedded(gguf, context=1024) as own:
            blind = own.render(*PROBES[0]) == own.render(PROBES[0][0], _offered())
            wanted = {place: _shown(own, place) for place, (_, tools) in enumerate(PROBES) if not (blind and tools)}
        wanted = {place: text for place, text in wanted.items() if text is not None}
        try:
            for family, template in GO_TEMPLATES.items():
                yield from self._create(tag, gguf, template)
                with self._opened(tag, gguf) as model:
                    fits = all(_shown(model, place) == text for place, text in wanted.items())
                self.server.unload(tag)
                if fits:
                    yield Event(step="install", message=f"the server renders {family}'s template as llama.cpp does")
                    return template
        finally:
            self.server.delete(tag)
        yield Event(step="install", message="no template of ours renders this base as llama.cpp does: the server's own")
        return ""

    def _create(self, tag: str, gguf: Path, template: str) -> Generator[Event, None, None]:
        parameters: dict[str, Json] = {"num_ctx": self.context, "temperature": 0}
        yield from self.server.create(tag, gguf, template=template, parameters=parameters)

    def stable(self, name: str) -> Served | None:
        found = self._digests().get(f"{name}:stable")
        if found is None or self._base is None:
            return None
        return Served(reference=f"{name}:stable", gguf=self._base, sha256=found)

    def _digests(self) -> dict[str, str]:
        return {str(model["name"]): str(model["digest"]) for model in self.server.models()}

    @contextmanager
    def open(
        self, served: Served, *, adapters: Sequence[Path] = (), slots: int = 1, context: int | None = None
    ) -> Iterator[Model]:
        """Rendered by Ollama; tokenised by the embedded runtime on the same file, since Ollama offers no tokenizer. The
        server itself decides how many may ask at once (OLLAMA_NUM_PARALLEL), and the context is the runtime's own."""
        if adapters:
            raise SetupError("Ollama serves no adapter beside a model. Merge it, and install what comes of it.")
        with self._opened(served.reference, served.gguf, native=not self.template) as model:
            yield model

    @contextmanager
    def _opened(self, reference: str, gguf: Path, *, native: bool = False) -> Iterator[Model]:
        backend = Ollama(reference, self.host, self.context)
        model = (_Native if native and self.server.renders_jinja() else _WithTokenizer)(backend, gguf)
        try:
            yield model
        finally:
            model.close()

    def install(self, name: str, gguf: Path, lineage: dict[str, Json]) -> Generator[Event, None, Served]:
        yield from self._create(f"{name}:candidate", gguf, self.template or "")
        digest = self._digests().get(f"{name}:candidate", "")
        return Served(reference=f"{name}:candidate", gguf=gguf, sha256=digest)

    def aliases(self, name: str) -> dict[str, str]:
        tags = {tag.partition(":"): digest for tag, digest in self._digests().items()}
        return {alias: digest[:12] for (model, _, alias), digest in tags.items() if model == name}

    def note(self, served: Served, measured: dict[str, Json]) -> None:
        """An Ollama server keeps nothing beside a model; the run folders have it."""

    def promote(self, name: str) -> str:
        """Three requests, each of which leaves something that serves: killed in between, the same again ends it."""
        digests = self._digests()
        candidate, stable = digests.get(f"{name}:candidate"), digests.get(f"{name}:stable")
        if candidate is None:
            raise UnknownModel(f'"{name}" has no candidate in Ollama ({self._found(name)}). Run: llm-tuner tune')
        if stable not in (None, candidate):
            self.server.copy(f"{name}:stable", f"{name}:previous")
        self.server.copy(f"{name}:candidate", f"{name}:stable")
        self.server.delete(f"{name}:candidate")
        return candidate[:12]

    def rollback(self, name: str) -> str:
        if f"{name}:previous" not in self._digests():
            raise UnknownModel(
                f'"{name}" has no earlier stable in Ollama ({self._found(name)}). Only a promotion leaves one.'
            )
        self.server.copy(f"{name}:previous", f"{name}:stable")
        self.server.delete(f"{name}:previous")
        return self._digests()[f"{name}:stable"][:12]

    def _found(self, name: str) -> str:
        return "found: " + (", ".join(tag for tag in self._digests() if tag.startswith(f"{name}:")) or "none")


def open_runtime(kind: str) -> Runtime:
    """The runtime of that kind, "embedded" or "ollama". Raises SetupError for another word."""
    if kind == "embedded":
        return EmbeddedRuntime()
    if kind == "ollama":
        return OllamaRuntime()
    raise SetupError(f'No runtime "{kind}". Choose embedded or ollama.')


class _WithTokenizer:
    """An Ollama model whose token ids come from the embedded runtime, started only when they are asked for."""

    def __init__(self, backend: Ollama, gguf: Path) -> None:
        self._backend = backend
        self._gguf = gguf
        self._tokenizer: Embedded | None = None

    @property
    def name(self) -> str:
        return self._backend.name

    def chat(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY) -> Reply:
        return self._backend.chat(messages, tools, options)

    def render(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), generation_prompt: bool = True
    ) -> str:
        """As the model is fed: Ollama adds the leading token (BOS) that a model wants after it has rendered."""
        text, leading = self._backend.render(messages, tools, generation_prompt), self._embedded().leading
        return text if text.startswith(leading) else leading + text

    def tokenize(self, text: str) -> list[int]:
        return self._embedded().tokenize(text)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self._embedded().detokenize(tokens)

    def end_tokens(self) -> frozenset[int]:
        return self._embedded().end_tokens()

    def _embedded(self) -> Embedded:
        if self._tokenizer is None:
            self._tokenizer = Embedded(self._gguf, context=512)
        return self._tokenizer

    def close(self) -> None:
        if self._tokenizer is not None:
            self._tokenizer.close()
        self._backend.close()


class _Native(_WithTokenizer):
    """Where Ollama has llama.cpp render the file's own template it can show prompts, but it continues an answer instead
    of finishing it. Finished answers are rendered by the embedded llama.cpp, from the tools that Ollama hands on."""

    def render(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), generation_prompt: bool = True
    ) -> str:
        if generation_prompt:
            return super().render(messages, tools)
        return self._embedded().render(messages, [kept(tool) for tool in tools], False)


def _shown(model: Model, place: int) -> str | None:
    """How a model renders a probe; None where its template or its server refuses it."""
    said, tools = PROBES[place]
    try:
        return model.render(said, tools, said[-1].role != "assistant")
    except RuntimeUnavailable:
        raise
    except ModelError:
        return None


def _offered() -> Sequence[ToolSpec]:
    return next(tools for _, tools in PROBES if tools)
