"""An Ollama server as operations: what `ollama list, pull, rm, run` do, and what they do not say: what moved in the
registry, what a removal frees, what is broken on disk."""

from __future__ import annotations

import re
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from llm_tuner.operations import Change, Operation, amount
from llm_tuner.types import Event, Json, ModelError, RuntimeUnavailable, SourceUnreachable, UnknownModel

if TYPE_CHECKING:
    from llm_tuner.models.ollama import OllamaServer
    from llm_tuner.models.ollama_store import OllamaStore

Host = Annotated[str, Field(description="Ollama server; OLLAMA_HOST when empty.")]
Model = Annotated[str, Field(description="A model's name: qwen2.5-coder:1.5b, NAME:stable.")]
Insecure = Annotated[bool, Field(description="Allow a registry over plain http (on this machine always).")]
Confirm = Annotated[bool, Field(description="False: only say what would be done.")]
Context = Annotated[int, Field(ge=256, description="Window in tokens. A longer prompt is refused, never cut.")]

CODERS = ("qwen2.5-coder:1.5b", "qwen2.5-coder:7b", "deepseek-coder:1.3b", "qwen2.5-coder:0.5b")
"""Who writes code where nobody is named: the first that is installed."""

_FENCE = re.compile(r"```[\w+#.-]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


def ollama_list_models(host: Host = "") -> dict[str, Json]:
    """The models of an Ollama server; where none answers on this machine, those that lie on its disk.

    Example: llm-tuner ollama list
    """
    server = _server(host, timeout=10)
    try:
        version, models = server.version(), server.models()
        running = {str(one["name"]) for one in server.running()}
    except RuntimeUnavailable as error:
        store = _store(server)
        if store is None:
            raise
        listed: list[Json] = [
            {"name": m.name, "size": m.size, "digest": m.digest, "modified_at": m.modified, "loaded": False,
             "trouble": list(m.trouble)} for m in store.models()
        ]  # fmt: skip
        return {"server": None, "url": server.url, "why": str(error), "models": listed}
    troubles = {m.name: list(m.trouble) for m in store.models()} if (store := _store(server)) else {}
    listed = [
        {"name": m["name"], "size": m["size"], "digest": m["digest"], "modified_at": m["modified_at"],
         "loaded": m["name"] in running, "trouble": troubles.get(str(m["name"]), []), "details": m.get("details")}
        for m in models
    ]  # fmt: skip
    return {"server": version, "url": server.url, "why": "", "models": listed}


def ollama_show(name: Model, host: Host = "") -> dict[str, Json]:
    """What a model is: template and whether it has a place for tools, parameters, window, capabilities, licence.

    Example: llm-tuner ollama show qwen2.5-coder:1.5b
    """
    found = _server(host).show(name)
    info = found.get("model_info") or {}
    window = next((value for key, value in info.items() if key.endswith(".context_length")), None)
    template = str(found.get("template") or "")
    keep = ("template", "parameters", "details", "capabilities", "system", "license")
    return {
        "name": name,
        "context_length": window,
        "place_for_tools": ".Tools" in template or "tools" in (found.get("capabilities") or ()),
        **{key: found.get(key) for key in keep},
    }


def ollama_ps(host: Host = "") -> dict[str, Json]:
    """The models in memory: their size, what of it is on a GPU, their window, until when they stay.

    Example: llm-tuner ollama ps
    """
    return {"models": list(_server(host).running())}


def ollama_pull(name: Model, insecure: Insecure = False, host: Host = "") -> Generator[Event, None, dict[str, Json]]:
    """Fetch a model from its registry. Stopped in the middle, the same command goes on.

    Example: llm-tuner ollama pull qwen2.5-coder:1.5b
    """
    server = _server(host)
    server.version()
    yield from server.pull(name, insecure=_insecure(name, insecure))
    found = {str(model["name"]): model for model in server.models()}
    return {"name": name, "digest": found.get(_tagged(name), {}).get("digest")}


def ollama_update(
    name: Annotated[str, Field(description="One model; all where empty.")] = "",
    check: Annotated[bool, Field(description="Only say what moved.")] = False,
    insecure: Insecure = False,
    host: Host = "",
) -> Generator[Event, None, dict[str, Json]]:
    """Fetch again the models whose tag moved in their registry, and say what changed in each.

    Models that were made here are in no registry and are left alone.

    Example: llm-tuner ollama update --check
    """
    from llm_tuner.models.ollama_registry import changes, published

    server = _server(host)
    here = {str(model["name"]): model for model in server.models()}
    if name and _tagged(name) not in here:
        raise UnknownModel(f'No model "{name}" in Ollama (found: {", ".join(here) or "none"}).')
    store = _store(server)
    found: list[Json] = []
    chosen = [_tagged(name)] if name else list(here)
    for number, one in enumerate(chosen, start=1):
        yield Event(step="update", message=one, done=number - 1, total=len(chosen), unit="model")
        try:
            tag = published(one, insecure=_insecure(one, insecure))
        except UnknownModel:
            found.append({"name": one, "state": "made here", "changes": []})
            continue
        except (SourceUnreachable, ModelError) as error:
            found.append({"name": one, "state": "unknown", "changes": [], "why": str(error)})
            continue
        if str(here[one]["digest"]).removeprefix("sha256:") in tag.digests:
            found.append({"name": one, "state": "current", "changes": []})
            continue
        before = store.model(one).layers if store else ()
        moved = [change.model_dump(mode="json") for change in changes(before, tag.layers)]
        if store and not moved:  # the same parts: a manifest that was pushed from here has another wording
            found.append({"name": one, "state": "current", "changes": []})
            continue
        if not check:
            yield from server.pull(one, insecure=_insecure(one, insecure))
        found.append({"name": one, "state": "moved" if check else "updated", "changes": list(moved)})
    return {"models": found}


def ollama_remove(
    name: Model,
    force: Annotated[bool, Field(description="Also one that is in memory or serves as stable.")] = False,
    host: Host = "",
    confirm: Confirm = False,
) -> Change:
    """Remove a model from Ollama. Says what space it really frees: models share their parts.

    Example: llm-tuner ollama rm qwen2.5-coder:0.5b
    """
    server = _server(host)
    here = {str(model["name"]): model for model in server.models()}
    tag = _tagged(name)
    if tag not in here:
        raise UnknownModel(f'No model "{name}" in Ollama (found: {", ".join(here) or "none"}).')
    uses = ["it is in memory"] if any(one["name"] == tag for one in server.running()) else []
    uses += ["it serves as stable"] if tag.endswith(":stable") else []
    if uses and not force:
        raise ModelError(f"{tag} is not removed: {' and '.join(uses)}. Unload or roll back first, or use --force.")
    size, words = int(here[tag]["size"]), "what other models share stays"
    facts: dict[str, Json] = {"name": tag, "size": size}
    if (store := _store(server)) is not None and any(model.name == tag for model in store.models()):
        freed = store.freed(tag)
        facts |= freed.model_dump(mode="json")
        words = f"frees {amount(freed.bytes)}"
        if freed.shared:
            words += f", {amount(freed.shared)} stay for {', '.join(freed.shared_with)}"
    if not confirm:
        return Change(done=False, sentences=(f"Would remove {tag} ({amount(size)}): {words}.",), facts=facts)
    server.delete(tag)
    return Change(done=True, sentences=(f"Removed {tag}: {words}.",), facts=facts)


def ollama_copy(
    source: Model, destination: Annotated[str, Field(description="The second name.")], host: Host = ""
) -> dict[str, Json]:
    """Give a model a second name. No bytes are copied.

    Example: llm-tuner ollama cp qwen2.5-coder:1.5b worker:stable
    """
    _server(host).copy(source, destination)
    return {"source": source, "destination": destination}


def ollama_load(
    name: Model,
    keep_alive: Annotated[str, Field(description='How long it stays: "1h", "-1" for ever.')] = "",
    host: Host = "",
) -> dict[str, Json]:
    """Have a model in memory before it is asked.

    Example: llm-tuner ollama load qwen2.5-coder:1.5b --keep-alive 1h
    """
    server = _server(host)
    server.load(name, keep_alive)
    return {"name": name, "models": list(server.running())}


def ollama_unload(name: Model, host: Host = "") -> dict[str, Json]:
    """Give a model's memory back.

    Example: llm-tuner ollama unload qwen2.5-coder:1.5b
    """
    server = _server(host)
    server.unload(name)
    return {"name": name, "models": list(server.running())}


def ollama_generate(
    model: Model,
    prompt: Annotated[str, Field(description="What is asked.")],
    system: Annotated[str, Field(description="System message.")] = "",
    temperature: Annotated[float, Field(ge=0, le=2, description="0: always the likeliest.")] = 0,
    max_tokens: Annotated[int, Field(ge=1, description="Of the answer.")] = 512,
    context: Context = 8192,
    host: Host = "",
) -> dict[str, Json]:
    """One answer of a local model, with its tokens and time.

    Example: llm-tuner ollama generate qwen2.5-coder:1.5b "Say hello."
    """
    answer, took = _asked(_server(host), model, prompt, system, temperature, max_tokens, context)
    return {"model": model, "text": str(answer["message"].get("content") or ""), **_counts(answer, took)}


def ollama_code(
    task: Annotated[str, Field(description="What the code must do.")],
    language: Annotated[str, Field(description="Programming language.")] = "Python",
    code: Annotated[str, Field(description="Code that is there already and is to be changed.")] = "",
    model: Annotated[str, Field(description="Default: the first installed of the known coding models.")] = "",
    max_tokens: Annotated[int, Field(ge=1, description="Of the answer.")] = 1024,
    context: Context = 8192,
    host: Host = "",
) -> dict[str, Json]:
    """Code of a local model: the code alone, and the text that it came in.

    Example: llm-tuner ollama code "Reverse a string." --language Go
    """
    server = _server(host)
    model = model or _coder(server)
    system = f"You write {language}. Answer with one code block and nothing else. 日本語の依頼でも同じです。"
    prompt = f"{task}\n\nThe code now:\n```\n{code}\n```" if code else task
    answer, took = _asked(server, model, prompt, system, 0, max_tokens, context)
    text = str(answer["message"].get("content") or "")
    return {"model": model, "code": fenced(text), "text": text, **_counts(answer, took)}


def fenced(text: str) -> str:
    """The code of an answer: its fenced blocks, one after the other; the whole text where there is none."""
    blocks = [block.strip("\n") for block in _FENCE.findall(text)]
    return "\n\n".join(blocks) if blocks else text.strip()


# ---------------------------------------------------------------------------------------------------------------------


def _server(host: str, timeout: float = 600) -> OllamaServer:
    from llm_tuner.models.ollama import OllamaServer

    return OllamaServer(host or None, timeout=timeout)


def _store(server: OllamaServer) -> OllamaStore | None:
    """The server's store, where it is one of this machine."""
    from llm_tuner.models.ollama import is_loopback
    from llm_tuner.models.ollama_store import OllamaStore

    if not is_loopback(server.url):
        return None
    store = OllamaStore()
    return store if (store.root / "manifests").is_dir() else None


def _insecure(name: str, given: bool) -> bool:
    from llm_tuner.models.ollama import is_loopback
    from llm_tuner.models.ollama_registry import located

    return given or is_loopback(f"//{located(name)[0]}")


def _tagged(name: str) -> str:
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _coder(server: OllamaServer) -> str:
    here = [str(model["name"]) for model in server.models()]
    for name in (*CODERS, *(one for one in here if "code" in one)):
        if name in here:
            return name
    raise UnknownModel(f"No coding model in Ollama (found: {', '.join(here) or 'none'}). Run: ollama pull {CODERS[0]}")


def _asked(
    server: OllamaServer, model: str, prompt: str, system: str, temperature: float, max_tokens: int, context: int
) -> tuple[dict[str, Any], float]:
    messages: list[Json] = [{"role": "system", "content": system}] if system else []
    body: dict[str, Json] = {
        "model": model,
        "messages": [*messages, {"role": "user", "content": prompt}],
        "options": {"temperature": temperature, "num_predict": max_tokens, "num_ctx": context},
        "stream": False,
        "truncate": False,
    }
    server.version()
    started = time.monotonic()
    answer = server.ask("POST", "/api/chat", body, model=model)
    if not isinstance(answer.get("message"), dict):
        raise ModelError(f"Ollama at {server.url} answered without a message: {str(answer)[:200]}")
    return answer, time.monotonic() - started


def _counts(answer: dict[str, Any], took: float) -> dict[str, Json]:
    tokens, spent = int(answer.get("eval_count") or 0), int(answer.get("eval_duration") or 0)
    return {
        "prompt_tokens": int(answer.get("prompt_eval_count") or 0),
        "completion_tokens": tokens,
        "tokens_per_s": round(tokens / spent * 1e9, 1) if spent else None,
        "ms": round(took * 1000),
        "finish": answer.get("done_reason") or "",
    }


OPERATIONS = (
    Operation("ollama_list_models", ollama_list_models, ("ollama", "list"), "Ollama のモデルを一覧します。"),
    Operation("ollama_show", ollama_show, ("ollama", "show"), "モデルのテンプレートや能力を示します。"),
    Operation("ollama_ps", ollama_ps, ("ollama", "ps"), "メモリー上のモデルを示します。"),
    Operation("ollama_pull", ollama_pull, ("ollama", "pull"), "モデルを取得します(中断しても続きから)。", "changes"),
    Operation(
        "ollama_update", ollama_update, ("ollama", "update"), "更新のあったモデルだけを取り直します。", "changes"
    ),
    Operation(
        "ollama_remove", ollama_remove, ("ollama", "rm"), "モデルを削除し、実際に空く容量を示します。", "destroys"
    ),
    Operation("ollama_copy", ollama_copy, ("ollama", "cp"), "モデルに別名を付けます。", "changes"),
    Operation("ollama_load", ollama_load, ("ollama", "load"), "モデルをメモリーに読み込みます。", "changes"),
    Operation("ollama_unload", ollama_unload, ("ollama", "unload"), "モデルをメモリーから降ろします。", "changes"),
    Operation("ollama_generate", ollama_generate, ("ollama", "generate"), "ローカルモデルに文章を書かせます。"),
    Operation("ollama_code", ollama_code, ("ollama", "code"), "ローカルモデルにコードを書かせます。"),
)
