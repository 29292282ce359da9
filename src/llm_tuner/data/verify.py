"""Whether a task may be kept: its calls fit the schemas, and request and calls determine each other.

No server is asked here (build.py does that). The rule it protects: no call holds a value that the conversation does
not give, and no value that the request gives is left out of the calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for
from referencing import Registry

from llm_tuner.data.drafts import Draft
from llm_tuner.data.rejections import Rejection
from llm_tuner.data.wordings import wordings
from llm_tuner.types import Json, ToolCall, ToolSpec, by_name, canonical_json


def format_fault(calls: Sequence[ToolCall], tools: Sequence[ToolSpec]) -> tuple[str, str] | None:
    """Reason and sentence where a call is not offered or does not fit its tool's schema."""
    offered = by_name(tools)
    for call in calls:
        tool = offered.get(call.name)
        if tool is None:
            return "not offered", f"`{call.name}` is not in the catalogue"
        try:
            validator = validator_for(tool.parameters, Draft202012Validator)(tool.parameters, registry=Registry())
            error = next(iter(validator.iter_errors(call.arguments)), None)
        except Exception as broken:  # whatever a schema from the wild makes the library raise
            return "unusable schema", f"the schema of `{call.name}`: {type(broken).__name__}: {broken}"[:300]
        if error is not None:
            return "schema", f"`{call.name}`: {error.message}"[:300]
        known = tool.parameters.get("properties")
        unknown = sorted(set(call.arguments) - set(known)) if isinstance(known, dict) else sorted(call.arguments)
        if unknown and not tool.parameters.get("additionalProperties"):
            return "unexpected parameter", f"`{call.name}` has no parameter `{unknown[0]}`"
    return None


def meaning_fault(
    made: Draft, found: str, offered: Iterable[str], results: Sequence[str] = ()
) -> tuple[str, str] | None:
    """Reason and sentence where request and calls do not determine each other. `found` is what the first result gave,
    `offered` the own names of the tools in the catalogue."""
    names = set(offered)
    for call in made.calls:
        wording = wordings().get(call.name)
        rival = sorted(set(wording.rivals) & names) if wording else []
        if rival:
            return "another tool fits", f"`{rival[0]}` serves the same request as `{call.name}`"
    said = _plain(made.request + "\n" + made.again)
    known = said + "\n" + "\n".join(map(_plain, results))
    for call in made.calls:
        for leaf in _leaves(call.arguments):
            if not _given(leaf, made, known, found):
                return "value not in the request", f"`{call.name}`: {canonical_json(leaf)[:120]}"
    if not made.calls:
        return None
    calls = (*made.calls, *([made.first] if made.first else []))
    leaves = {_plain(str(leaf)) for call in calls for leaf in _leaves(call.arguments)}
    used = _plain(canonical_json([c.arguments for c in calls])) + " ".join(sorted(leaves))
    forms = [_plain(form) for value in made.said.values() for form in value]
    for stray in _marked(made.request + "\n" + made.again):
        plain = _plain(stray)
        if plain in used or any(plain in form for form in forms):
            continue
        if made.take and any(form and form in plain for form in forms):
            continue  # what the first result is searched for
        if not all(part in leaves for part in re.split(r"[/#]", plain)):
            return "value not in the call", f"the request says {stray[:80]!r}, no call does"
    return None


def _given(leaf: Json, made: Draft, known: str, found: str) -> bool:
    """A value is given where it stands in the conversation, where its name does (Tokyo), where the sentences ask for it
    without naming it (raw HTML), or where the first result gave it."""
    text = canonical_json(leaf)
    if text in made.constants or (found and found in str(leaf)):
        return True
    forms = (*made.said.get(text, ()), leaf if isinstance(leaf, str) else text)
    return any(_plain(form) and _plain(form) in known for form in forms) or _composed(leaf, known)


def _composed(leaf: Json, known: str) -> bool:
    """A text of several given parts, as `{query} in:name`: every word of it is said."""
    parts = [_plain(part) for part in re.split(r"[\s:]+", leaf)] if isinstance(leaf, str) else []
    return len(parts) > 1 and all(part in known for part in parts if part)


def _leaves(value: Json) -> Iterator[Json]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


_MARKED = re.compile(
    r"\"([^\"\n]+)\"|「([^」\n]+)」|`([^`\n]+)`|(https?://[^\s、。」）)]+)|((?:[\w.-]+/)+[\w.*-]+)|(?<![\w.])(\d{2,})(?![\w.%])",
    re.ASCII,
)
"""What looks like a value in a request: quoted, a URL, a path, a number of two digits or more."""


def _marked(request: str) -> Iterator[str]:
    for match in _MARKED.finditer(request):
        yield next(group for group in match.groups() if group).rstrip(".,;:?!")


def _plain(text: str) -> str:
    """Letters as they count: no case, no runs of spaces, full-width quotes as plain ones."""
    return re.sub(r"\s+", " ", text.casefold())


def rejection(stage: str, fault: tuple[str, str], made: Draft | None, source: str) -> Rejection:
    """The record of a refused draft."""
    reason, detail = fault
    return Rejection.model_validate(
        {
            "stage": stage,
            "reason": reason,
            "detail": detail,
            "source": source,
            "request": made.request[:200] if made else "",
        }
    )
