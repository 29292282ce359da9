"""What of a conversation is trained: a row for each turn of the assistant, proven against the server's own rendering.

No chat template, no tokenizer and no list of templates: the completion is what the server's template makes of the
answer, behind the prompt that the server would have rendered at that moment. The rule it protects: a row that cannot
be proven is an error that names its task and turn; nothing is trained that would not be served.
"""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from llm_tuner.models.signatures import shown
from llm_tuner.types import (
    Attempt,
    DataError,
    Message,
    ModelError,
    Renderer,
    Row,
    RuntimeUnavailable,
    Task,
    ToolCall,
    ToolResult,
    ToolSpec,
)

_SHOWN = 60


class Turn(NamedTuple):
    """One answer of the assistant (`place` counts from 0 within its attempt), and the conversation before it."""

    place: int
    before: tuple[Message, ...]
    answer: Message


def turns(task: Task, attempt: Attempt) -> Iterator[Turn]:
    """Every answer of an attempt. Results stand where the attempt has them: among its messages, or in `results`, from
    which each call takes the one of its id, or the next.

    Raises DataError where the conversation goes on and a call has no result.
    """
    before, place = list(task.messages), 0
    own = any(message.role == "tool" for message in attempt.messages)
    left = deque(() if own else attempt.results)
    for at, message in enumerate(attempt.messages):
        if message.role == "assistant":
            yield Turn(place, tuple(before), message)
            place += 1
        before.append(message)
        if message.role == "assistant" and not own and at + 1 < len(attempt.messages):
            before += [_answered(call, left, task, place) for call in message.tool_calls]


def _answered(call: ToolCall, left: deque[ToolResult], task: Task, place: int) -> Message:
    if not left:
        raise DataError(
            f"Task {task.id}, turn {place}: the conversation goes on, but the call of {call.name} has no result. Keep "
            "the results in the attempt, or end it with that turn."
        )
    found = next((result for result in left if call.id and result.call_id == call.id), left[0])
    left.remove(found)
    return Message(role="tool", result=found.model_copy(update={"call_id": call.id}))


def row(task: Task, turn: Turn, renderer: Renderer, cuts: Mapping[str, int] | None = None) -> Row:
    """The row of one turn. `cuts`: tags that never stand as their one token, and where each is cut in two.

    Raises DataError, with task, turn and what to do, unless the answer's rendering continues the prompt's in text and
    in tokens, holds every call, ends with a token that ends generation for the server and has no other such token.
    """
    where = f"task {task.id}, turn {turn.place + 1}"
    answer = turn.answer.model_copy(update={"text_calls": ()})
    messages, tools = shown(numbered((*turn.before, answer)), task.tools, task.tags.get("rendering", "full"))
    try:
        prompt, rest = _continued(messages, tools, renderer, where)
    except RuntimeUnavailable:
        raise
    except ModelError as error:
        raise DataError(
            f"The server cannot render this conversation ({where}): {error} Leave such tasks out, or choose a base "
            "whose template allows them."
        ) from error
    prompt_ids, both = renderer.tokenize(prompt), renderer.tokenize(prompt + rest)
    if both[: len(prompt_ids)] != prompt_ids:
        raise DataError(
            f"The last token of the prompt and the first one of the answer are one ({where}): {prompt[-20:]!r} is "
            f"followed by {rest[:20]!r}. Take the white space from the start of the answer; where it is the "
            "template's (it opens a thought and there is none), give the answer some thinking."
        )
    ids = _until_end(both[len(prompt_ids) :], renderer, where)
    completion = _text_until_end(rest, ids, renderer)
    _require_calls(completion, answer, where)
    _require_results(prompt, messages, where)
    parts = _pieces(completion, cuts or {})
    if len(parts) > 1:
        ids = [token for piece in parts for token in renderer.tokenize(piece)]
    _require_text(ids, completion, renderer, where)
    return Row(
        task_id=task.id,
        turn=turn.place,
        prompt=prompt,
        completion=completion,
        prompt_ids=tuple(prompt_ids),
        completion_ids=tuple(ids),
    )


def left_out(turn: Turn, made: Row) -> tuple[str, ...]:
    """What of the answer the template does not write: "text" beside calls, "thinking"."""
    parts = {"text": turn.answer.text, "thinking": turn.answer.thinking}
    return tuple(name for name, text in parts.items() if not _written(text.strip(), made.completion))


def require_place_for_tools(tools: Sequence[ToolSpec], renderer: Renderer) -> None:
    """Raises DataError where the template shows the model no tools at all."""
    asked = (Message(role="user", text="Hello."),)
    if tools and renderer.render(asked, tools) == renderer.render(asked):
        raise DataError(
            "This model's chat template has no place for tools: the prompt is the same with and without them. Train "
            'with the rendering "compact", which puts them into the system message, or choose a base made for tools.'
        )


def differs_at(a: str, b: str) -> int:
    """The place of the first character that two texts do not share."""
    places = enumerate(zip(a, b, strict=False))
    return next((place for place, (one, other) in places if one != other), min(len(a), len(b)))


def spelled(tags: Collection[str], renderer: Renderer) -> dict[str, int]:
    """Where to cut each of these tags so that its two parts have as few tokens as possible, and as late as possible:
    then the tokens are those that the same letters have in ordinary text."""
    return {tag: _cut(tag, renderer) for tag in tags if len(tag) > 1}


def _cut(tag: str, renderer: Renderer) -> int:
    places = range(len(tag) - 1, 0, -1)
    return min(places, key=lambda at: len(renderer.tokenize(tag[:at])) + len(renderer.tokenize(tag[at:])))


def numbered(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The same calls with nine digits as ids, from 0 on. Some templates (Mistral's) have the model write the id itself,
    and accept nothing but nine letters or digits."""
    ids: dict[str, str] = {}
    waiting: list[str] = []
    total, out = 0, []
    for message in messages:
        update: dict[str, object] = {}
        if message.tool_calls:
            waiting = [f"{total + place:09d}" for place in range(len(message.tool_calls))]
            total += len(waiting)
            ids |= {call.id: fresh for call, fresh in zip(message.tool_calls, waiting, strict=True) if call.id}
            calls = zip(message.tool_calls, waiting, strict=True)
            update["tool_calls"] = tuple(call.model_copy(update={"id": fresh}) for call, fresh in calls)
        if message.result is not None and waiting:
            # By its id, or the next one: results may have come without.
            fresh = ids.get(message.result.call_id, "")
            fresh = fresh if fresh in waiting else waiting[0]
            waiting.remove(fresh)
            update["result"] = message.result.model_copy(update={"call_id": fresh})
        out.append(message.model_copy(update=update) if update else message)
    return tuple(out)


def _continued(
    messages: Sequence[Message], tools: Sequence[ToolSpec], renderer: Renderer, where: str
) -> tuple[str, str]:
    """The prompt, and what the server's template writes behind it for the last message.

    Some templates render the end of a conversation otherwise than its middle (a line break after a tool's result, the
    system's words before the last request only). There the answer is rendered behind a plain request too: it counts if
    that continues its own prompt, ends as the whole conversation does, and stands in both behind what the two prompts
    end with: the generation prompt.
    """
    prompt, whole = renderer.render(messages[:-1], tools), renderer.render(messages, tools, False)
    if whole.startswith(prompt):
        return prompt, whole[len(prompt) :]
    plain = (Message(role="user", text="Hello."), messages[-1])
    start, both = renderer.render(plain[:1], tools), renderer.render(plain, tools, False)
    rest = both[len(start) :]
    if both.startswith(start) and rest and whole.endswith(rest):
        opening = _opening(plain[:1], tools, renderer, start, prompt)
        if opening and prompt.endswith(opening) and whole.removesuffix(rest).endswith(opening):
            return prompt, rest
    at = differs_at(prompt, whole)
    raise DataError(
        f"The chat template does not continue its own prompt ({where}): the server asks the model to go on after "
        f"{prompt[-_SHOWN:]!r}, but from character {at} on ({prompt[at : at + 20]!r}) a finished answer renders as "
        f"{whole[at : at + _SHOWN]!r}. What the model is to write there cannot be derived, so nothing is trained on "
        "it. Take a base whose template keeps what it opens (thinking, above all)."
    )


def _opening(asked: Sequence[Message], tools: Sequence[ToolSpec], renderer: Renderer, start: str, prompt: str) -> str:
    """The generation prompt. Where the template has none, or the server cannot leave it out, what two prompts end with
    alike: at least as much."""
    try:
        opening = start.removeprefix(renderer.render(asked, tools, False))
    except RuntimeUnavailable:
        raise
    except ModelError:
        opening = ""
    return opening or start[len(start) - differs_at(start[::-1], prompt[::-1]) :]


def _until_end(rest: Sequence[int], renderer: Renderer, where: str) -> list[int]:
    """The tokens up to the one that ends generation. Behind it a template may only write white space and more of
    these."""
    ends = renderer.end_tokens()
    at = next((place for place, token in enumerate(rest) if token in ends), None)
    if at is None:
        raise DataError(
            f"Nothing ends the answer ({where}): it renders as {renderer.detokenize(rest)[-_SHOWN:]!r}, in which no "
            "token ends generation for the server. Set tokenizer.ggml.eos_token_id (or eot_token_id) of the file to "
            "the token with which its template ends a turn."
        )
    behind = [token for token in rest[at + 1 :] if token not in ends]
    if renderer.detokenize(behind).strip():
        raise DataError(
            f"The answer holds a token that ends generation before its end ({where}): "
            f"{renderer.detokenize(rest[at : at + 1])!r}, and then {renderer.detokenize(behind)[:_SHOWN]!r}. Take that "
            "text out of the answer; where the template writes it, serve the model with another template."
        )
    return list(rest[: at + 1])


def _text_until_end(rest: str, ids: Sequence[int], renderer: Renderer) -> str:
    end = renderer.detokenize(ids[-1:])
    return rest[: rest.index(end) + len(end)] if end in rest else rest


def _require_calls(completion: str, answer: Message, where: str) -> None:
    for name, wanted in Counter(call.name for call in answer.tool_calls).items():
        if max(completion.count(name), completion.count(json.dumps(name)[1:-1])) < wanted:
            raise DataError(
                f"The chat template drops calls ({where}): of {wanted} of {name} the answer renders as "
                f"{completion[:_SHOWN]!r}. Choose a base whose template writes calls, or tasks with one call a turn."
            )


def _require_results(prompt: str, messages: Sequence[Message], where: str) -> None:
    """An answer to a result that the model does not see would teach it to invent."""
    for message in messages:
        content = message.result.content.strip() if message.result else ""
        if not _written(content, prompt):
            raise DataError(
                f"The chat template drops a tool's result ({where}): {content[:_SHOWN]!r} is not in the prompt. Choose "
                "a base whose template shows results, or leave out tasks that answer one."
            )


def _written(text: str, rendered: str) -> bool:
    """Whether a text stands in a rendering, as it is or as JSON (with or without Go's escapes)."""
    quoted = json.dumps(text, ensure_ascii=False)[1:-1]
    return any(form in rendered for form in (text, quoted, json.dumps(text)[1:-1], _go(quoted)))


def _go(text: str) -> str:
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _require_text(ids: Sequence[int], completion: str, renderer: Renderer, where: str) -> None:
    """A vocabulary of SentencePiece may put a space of its own before a word; nothing else may differ."""
    said = renderer.detokenize(ids)
    if said != completion and said.replace(" ", "") != completion.replace(" ", ""):
        raise DataError(
            f"The tokens of the answer do not spell it ({where}): {said[-_SHOWN:]!r} for {completion[-_SHOWN:]!r}. Its "
            "text holds what this vocabulary cannot write; leave the task out."
        )


def _pieces(text: str, cuts: Mapping[str, int]) -> list[str]:
    """`text`, cut inside each of these tags."""
    if not cuts:
        return [text]
    pieces = [""]
    for part in re.split(f"({'|'.join(map(re.escape, sorted(cuts, key=len, reverse=True)))})", text):
        at = cuts.get(part, 0)
        pieces[-1] += part[:at] if at else part
        if at:
            pieces.append(part[at:])
    return pieces
