"""An embedded model: a GGUF file served by llama.cpp in a process of our own, on loopback, for as long as we want it.

Not a model manager: it takes a path and knows no names. The rule it protects: nothing a model file does can take the
caller down (the server is a child process), and nothing is lost silently (a prompt that does not fit is an error).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import httpx2
import psutil

from llm_tuner.models import openai_wire
from llm_tuner.models.https import trust
from llm_tuner.models.sources.weights import check_gguf
from llm_tuner.types import (
    GREEDY,
    Backend,
    ChatOptions,
    CorruptModel,
    Json,
    Message,
    MissingExtra,
    ModelError,
    Reply,
    RuntimeUnavailable,
    SetupError,
    ToolSpec,
)

LAST_WORDS = 6
"""Lines of the child's standard error that an error message shows."""

LEAST = -104.0
"""The server's own probabilities end at float32's smallest number: what it takes for impossible is counted as this."""

_MANY, _ALL = 3000, 1 << 30  # likeliest tokens asked for; the whole vocabulary takes seconds
_CERTAIN = 1e6  # added to a logit
_FORKED = "prompt"  # the file that a slot's state goes through


class Embedded:
    """A GGUF file as a Backend and a Renderer. Starts on construction, ends on `close()`, after `with`, or with us.

    `context` is the window of each of `slots` parallel requests, in tokens; with several it can `fork`. `adapters` are
    LoRA GGUFs, all applied at scale 1. `threads` 0 means the physical cores. `states` is a folder where the server may
    save what its slots hold (`/slots/N?action=save`); with several slots it has one of its own otherwise.
    `speculation`: what stands in the prompt already is guessed and checked in one go, which changes no greedy answer
    but where two tokens are equally likely.
    `startup_timeout` and `timeout` (of one answer) are seconds.

    Raises MissingExtra without xllamacpp, CorruptModel for a file that llama.cpp cannot load, RuntimeUnavailable when
    the child cannot start. Safe to use from several threads.
    """

    def __init__(
        self,
        gguf: Path,
        *,
        name: str = "",
        context: int = 8192,
        adapters: Sequence[Path] = (),
        threads: int = 0,
        slots: int = 1,
        states: Path | None = None,
        speculation: bool = False,
        startup_timeout: float = 120,
        timeout: float = 600,
    ) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise MissingExtra(
                "Serving a GGUF needs xllamacpp, which is not installed. Run: pip install 'llm-tuner[serve]'"
            )
        for path in (gguf, *adapters):
            check_gguf(path)
        self._name = name or gguf.stem
        self._context = context
        self._slots = slots
        self._forking = threading.Lock()
        prompts, self._emptied = str(states or ""), None
        if states is not None:
            states.mkdir(parents=True, exist_ok=True, mode=0o700)
        elif slots > 1:
            prompts = tempfile.mkdtemp(prefix="llm-tuner-prompts-")
            self._emptied = weakref.finalize(self, shutil.rmtree, prompts, ignore_errors=True)
        self._settings: dict[str, Json] = {
            "gguf": str(gguf),
            "context": context,
            "slots": slots,
            "prompts": prompts,
            "speculation": speculation,
            "threads": threads or _cores(),
            "adapters": [str(path) for path in adapters],
        }
        self._gguf, self._startup_timeout, self._timeout = gguf, startup_timeout, timeout
        self._reviving, self._closed = threading.Lock(), False
        self._start()
        self.leading = self._leading_token()
        """The text of the token (BOS) that the server puts before every prompt; "" where it adds none."""
        self._ends: frozenset[int] | None = None

    @property
    def name(self) -> str:
        return self._name

    def _start(self) -> None:
        self._child = _Child(self._settings)
        self._finalizer = weakref.finalize(self, self._child.stop)
        self.address = self._started(self._gguf, self._startup_timeout)
        """Base URL of the child's own server, which also speaks OpenAI's API under /v1."""
        # Loopback never goes through a proxy.
        timeout = httpx2.Timeout(self._timeout, connect=10)
        self._http = httpx2.Client(
            base_url=self.address, timeout=timeout, verify=trust(self.address), trust_env=False, follow_redirects=False
        )
        weakref.finalize(self, self._http.close)

    def revive(self) -> str:
        """Starts the child again if it has ended, and says where it is; its slots are empty then. Raises what starting
        raises, and RuntimeUnavailable after `close()`."""
        with self._reviving:
            if self._closed:
                raise RuntimeUnavailable(f"{self._name} is closed. Make a new Embedded to ask it again.")
            if self._child.process.poll() is not None:  # also where the last revival failed
                self._http.close()
                self._finalizer()
                self._start()
            return self.address

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.process.pid

    def chat(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY) -> Reply:
        """One answer. Raises ModelError if the prompt exceeds the context, RuntimeUnavailable if the child died."""
        return self._chat(messages, tools, options, {})

    def fork(self, messages: Sequence[Message], tools: Sequence[ToolSpec], count: int) -> tuple[Backend, ...]:
        """`count` backends, each with a slot of its own that holds this prompt already: it is read once, and its state
        is copied. They may be asked at the same time, and go on with what follows the prompt; a later fork takes the
        slots over. Raises SetupError where there are fewer slots, ModelError where the prompt does not fit."""
        if count > self._slots:
            raise SetupError(f"{self._name} was started with slots={self._slots}. Start it with slots={count}.")
        with self._forking:
            self._chat(messages, tools, ChatOptions(max_tokens=1), {"id_slot": 0})
            if count > 1:
                self._ask("POST", "/slots/0?action=save", {"filename": _FORKED})
            for slot in range(1, count):
                self._ask("POST", f"/slots/{slot}?action=restore", {"filename": _FORKED})
        return tuple(_Slot(self, slot) for slot in range(count))

    def _chat(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], options: ChatOptions, more: dict[str, Json]
    ) -> Reply:
        body = openai_wire.request(messages, tools, options) | {"cache_prompt": True} | more
        started = time.monotonic()
        answer = self._ask("POST", "/v1/chat/completions", body, tools)
        return openai_wire.reply(answer, tools, (time.monotonic() - started) * 1000)

    def render(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), generation_prompt: bool = True
    ) -> str:
        """The exact text that `chat` feeds the model, special tokens spelled out, a leading BOS included where the
        server adds one. A trailing assistant message is rendered as a finished turn."""
        body = openai_wire.request(messages, tools, GREEDY) | {"add_generation_prompt": generation_prompt}
        return self.leading + str(self._ask("POST", "/apply-template", body, tools)["prompt"])

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a rendered text: special tokens are read as such, none is added."""
        body: dict[str, Json] = {"content": text, "add_special": False, "parse_special": True}
        return [int(token) for token in self._ask("POST", "/tokenize", body)["tokens"]]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of these tokens, special ones spelled out."""
        return str(self._ask("POST", "/detokenize", {"tokens": list(tokens)})["content"])

    def end_tokens(self) -> frozenset[int]:
        """The tokens that end generation for this server, whatever the file calls them."""
        if self._ends is None:
            # The server does not list them, but it shows what it forbids when it is told to ignore them.
            body: dict[str, Json] = {"prompt": self._before_text()[:1], "n_predict": 1, "ignore_eos": True}
            said = self._ask("POST", "/completion", body)["generation_settings"]["logit_bias"]
            self._ends = frozenset(int(one["token"]) for one in said)
        return self._ends

    def log_probabilities(self, text: str) -> list[float]:
        """ln p of each token of the text, given those before it; the first one, given the model's BOS (or its EOS).

        The server says nothing about the tokens of a prompt, but the exact log-probability of the token that it writes,
        taken from all logits before any sampling. So each token is forced in its turn, by a bias that only sampling
        sees: one request of one token, the rest comes from the prompt cache. Exact but for the server's float32 softmax
        (a few 1e-4). Raises ModelError where the text does not fit the context.
        """
        tokens, lead = self.tokenize(text), self._before_text()
        return [self._said([*lead, *tokens[:place]], token)[0] for place, token in enumerate(tokens)]

    def predict(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> tuple[list[float], list[int]]:
        """Of each completion token ln p, given those before it, and the token that is likeliest at its place.

        Token ids as they are, nothing is added in front. Exact and slow as `log_probabilities`.
        """
        before = list(prompt_ids)
        said = [self._said([*before, *completion_ids[:n]], token) for n, token in enumerate(completion_ids)]
        return [log_probability for log_probability, _ in said], [likeliest for _, likeliest in said]

    def _before_text(self) -> list[int]:
        known = self._ask("GET", "/props")
        return self.tokenize(str(known.get("bos_token") or known["eos_token"]))

    def _said(self, before: list[int], token: int) -> tuple[float, int]:
        """ln p of the token after these, and the likeliest one there."""
        said = self._forced(before, token, 1)
        if said is not None and said["id"] == token:
            return max(float(said["logprob"]), LEAST), int(said["top_logprobs"][0]["id"])
        # Of a token that ends within a character the server keeps no probabilities: it is found among those of a token
        # that does not.
        whole = self.tokenize("\n")[0]
        for most in (_MANY, _ALL):
            among = self._forced(before, whole, most) or {"top_logprobs": []}
            for other in among["top_logprobs"]:
                if other["id"] == token:
                    return max(float(other["logprob"]), LEAST), int(among["top_logprobs"][0]["id"])
        raise ModelError(f"llama.cpp does not say how probable token {token} of the text is to {self._name}.")

    def _forced(self, before: list[int], token: int, most: int) -> dict[str, Any] | None:
        """What the server says about the next token, which is made to be `token`, and the `most` likeliest others."""
        body: dict[str, Json] = {"prompt": before, "n_predict": 1, "temperature": 0, "n_probs": most}
        body |= {"logit_bias": [[token, _CERTAIN]], "cache_prompt": True}
        said = self._ask("POST", "/completion", body).get("completion_probabilities")
        return dict(said[0]) if said else None

    def close(self) -> None:
        """End the child and give its memory back. May be called again."""
        self._closed = True
        self._http.close()
        self._finalizer()
        if self._emptied is not None:
            self._emptied()

    def __enter__(self) -> Embedded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Embedded({self._name!r}, context={self._context})"

    def _started(self, gguf: Path, timeout: float) -> str:
        try:
            answer = self._child.answer.get(timeout=timeout)
        except queue.Empty:
            self._finalizer()
            raise RuntimeUnavailable(
                f"llama.cpp did not load {gguf.name} within {timeout:g} s. "
                f"Give it longer (startup_timeout).{self._child.last_words()}"
            ) from None
        if answer.startswith("{") and (address := json.loads(answer).get("address")):
            return str(address)
        self._finalizer()
        code = self._child.process.returncode
        if code == -9:
            raise RuntimeUnavailable(
                f"The process that was loading {gguf.name} was killed, most likely for want of memory "
                f"({psutil.virtual_memory().available >> 20} MiB are free now). "
                f"Use a smaller model or a smaller context.{self._child.last_words()}"
            )
        raise CorruptModel(
            f"llama.cpp cannot load {gguf.name} (exit code {code}, {gguf.stat().st_size} bytes). "
            f"Fetch or export the file again.{self._child.last_words()}"
        )

    def _leading_token(self) -> str:
        # The server strips a BOS that the template wrote and adds it again as a token, if the model wants one at all.
        added = self._ask("POST", "/tokenize", {"content": "", "add_special": True})["tokens"]
        return str(self._ask("GET", "/props")["bos_token"]) if added else ""

    def _ask(
        self, method: str, path: str, body: dict[str, Json] | None = None, tools: Sequence[ToolSpec] = ()
    ) -> dict[str, Any]:
        if not self._finalizer.alive:
            raise RuntimeUnavailable(f"{self._name} is closed. Make a new Embedded to ask it again.")
        try:
            answer = self._http.request(method, path, json=body)
        except httpx2.TimeoutException as e:
            raise ModelError(f"{self._name} did not answer in time ({self._http.timeout.read:g} s).") from e
        except httpx2.TransportError as e:
            raise RuntimeUnavailable(self._obituary(e)) from e
        if answer.is_success:
            return dict(answer.json())
        raise ModelError(self._refusal(answer, tools))

    def _obituary(self, error: Exception) -> str:
        try:
            code = self._child.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return f"The connection to {self._name} broke ({type(error).__name__}), but its process lives."
        return (
            f"The process that served {self._name} ended with code {code} while it was asked. "
            f"Make a new Embedded to go on.{self._child.last_words()}"
        )

    def _refusal(self, answer: httpx2.Response, tools: Sequence[ToolSpec]) -> str:
        try:
            error = answer.json()["error"]
        except (ValueError, KeyError):
            error = {"message": answer.text[:500]}
        if error.get("type") == "exceed_context_size_error":
            return (
                f"The prompt has {error['n_prompt_tokens']} tokens with {len(tools)} tools, but {self._name} has a "
                f"context of {error['n_ctx']}. Offer fewer tools or start it with a larger context."
            )
        return f"llama.cpp refused the request to {self._name} (HTTP {answer.status_code}): {error.get('message')}"


class _Slot:
    """One of an embedded model's slots as a Backend."""

    def __init__(self, owner: Embedded, slot: int) -> None:
        self._owner, self._slot = owner, slot

    @property
    def name(self) -> str:
        return self._owner.name

    def chat(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), options: ChatOptions = GREEDY) -> Reply:
        return self._owner._chat(messages, tools, options, {"id_slot": self._slot})


class _Child:
    """The process and its pipes. Never refers to its owner, so that an unused Embedded can be collected."""

    def __init__(self, settings: dict[str, Json]) -> None:
        self.process = subprocess.Popen(
            # It reads its settings from its input; the model stands here for whoever lists processes.
            [sys.executable, "-m", "llm_tuner.models.llamacpp_child", "--model", str(settings["gguf"])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self.answer: queue.Queue[str] = queue.Queue()
        self._lines: deque[str] = deque(maxlen=LAST_WORDS)
        stdin, stdout, stderr = self.process.stdin, self.process.stdout, self.process.stderr
        assert stdin is not None
        assert stdout is not None
        assert stderr is not None
        self._readers = (
            threading.Thread(target=_first_line, args=(stdout, self.answer), daemon=True),
            threading.Thread(target=_drain, args=(stderr, self._lines), daemon=True),
        )
        for reader in self._readers:
            reader.start()
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps(settings) + "\n")
            stdin.flush()

    def last_words(self) -> str:
        """The last lines of standard error, indented, or nothing."""
        return "".join(f"\n  {line}" for line in self._lines)

    def stop(self) -> None:
        """End the process: its input ends, then it is made to."""
        with contextlib.suppress(BrokenPipeError):
            if self.process.stdin:
                self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join(timeout=5)


def _first_line(pipe: IO[str], answer: queue.Queue[str]) -> None:
    with pipe:
        answer.put(pipe.readline())


def _drain(pipe: IO[str], lines: deque[str]) -> None:
    with pipe:
        for line in pipe:
            lines.append(line.rstrip())


def _cores() -> int:
    """Physical cores that this process may use."""
    physical = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    return max(1, min(physical, allowed))
