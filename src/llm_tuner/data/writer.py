"""A backend that puts requests into other words, and a second reading that has to find the same call.

Not a judge of style. The rule it protects: a text that a model wrote is kept only where every value still stands in it
and a reader, who is given the tools and not the answer, makes the very same calls.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from llm_tuner.data.drafts import Draft
from llm_tuner.data.plan import Slot
from llm_tuner.data.verify import meaning_fault
from llm_tuner.scoring import score
from llm_tuner.types import Attempt, Backend, ChatOptions, ExactCalls, Message, ModelError, Task

WARM = ChatOptions(temperature=0.8, max_tokens=200)
_TASK = {
    "en": "Say this request to an assistant in your own words, as a developer would type it. Keep every name, path, number "
    "and quoted text exactly. Answer with the new request only.\n\n{request}",
    "ja": "次の依頼を、開発者が打ち込みそうな別の日本語に言い換えてください。名前、パス、数値、引用はそのまま残してください。"
    "言い換えた依頼だけを答えてください。\n\n{request}",
}
LONGEST = 600


class Writer:
    """Rewords drafts with `backend`; `reader` (the same backend unless given) reads them again."""

    def __init__(self, backend: Backend, reader: Backend | None = None) -> None:
        self._backend, self._reader = backend, reader or backend
        self._counts: Counter[str] = Counter()

    @property
    def name(self) -> str:
        return self._backend.name

    def counts(self) -> dict[str, int]:
        """Drafts asked for, kept in new words, and why the others kept theirs."""
        return dict(self._counts)

    def reworded(self, made: Draft, slot: Slot) -> Draft:
        """The draft in other words; the draft as it is where the new words do not determine the same calls."""
        self._counts["asked"] += 1
        language = "en" if slot.language == "en" else "ja"
        try:
            prompt = Message(role="user", text=_TASK[language].format(request=made.request))
            text = self._backend.chat([prompt], (), WARM.model_copy(update={"seed": slot.number})).message.text.strip()
        except ModelError:
            return self._kept_as_it_is(made, "unreachable")
        new = replace(made, request=text, writer=self.name)
        if not text or len(text) > LONGEST or text == made.request:
            return self._kept_as_it_is(made, "nothing new")
        if meaning_fault(new, "", slot.catalogue.names):
            return self._kept_as_it_is(made, "value missing")
        if not self._reads_the_same(new, slot):
            return self._kept_as_it_is(made, "read otherwise")
        self._counts["kept"] += 1
        return new

    def _kept_as_it_is(self, made: Draft, why: str) -> Draft:
        self._counts[why] += 1
        return made

    def _reads_the_same(self, made: Draft, slot: Slot) -> bool:
        task = Task(
            messages=(Message(role="user", text=made.request),),
            tools=slot.catalogue.shown,
            expect=ExactCalls(calls=tuple(map(slot.catalogue.shown_call, made.calls))),
        )
        try:
            answer = self._reader.chat(task.messages, task.tools).message
        except ModelError:
            return False
        attempt = Attempt(task_id=task.id, backend=self._reader.name, messages=(answer,))
        return score(task, attempt, reading="lenient").ok
