"""The gateway's answers as exchanges (serving.exchanges)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_data_path, user_state_path

from llm_tuner.serving.exchanges import Exchange, Recorder, Repair, Route, Try, new_id
from llm_tuner.serving.request import ChatRequest
from llm_tuner.serving.service import Outcome
from llm_tuner.store.scrub import Scrubber, kept_salt
from llm_tuner.types import Timing


class Recording:
    """Keeps exchanges in the journal `folder`."""

    def __init__(self, folder: Path, recorder: Recorder) -> None:
        self.folder, self._recorder = folder, recorder

    @property
    def lost(self) -> int:
        return self._recorder.lost

    def new_id(self) -> str:
        return new_id()

    def keep(self, id_: str, request: ChatRequest, outcome: Outcome) -> None:
        self._recorder.record(exchange(id_, request, outcome))

    def feedback(self, id_: str, right: bool, note: str = "") -> None:
        self._recorder.feedback(id_, right, note=note)

    def close(self) -> None:
        self._recorder.close()


def exchange(id_: str, request: ChatRequest, outcome: Outcome) -> Exchange:
    """What is kept of an answered request."""
    answered = bool(outcome.text or outcome.calls) and not outcome.error
    return Exchange(
        id=id_,
        model=request.model,
        messages=request.messages,
        tools=outcome.shown or request.offered,
        tool_choice=request.named or request.choice,
        rendering=outcome.form,
        answer=outcome.message if answered else None,
        finish=outcome.end.finish,
        tries=tuple(Try(backend=who, message=said, why=why) for who, said, why in outcome.wrong),
        repairs=tuple(Repair(kind=one.kind, detail=one.detail) for one in outcome.repairs),
        route=Route(role=outcome.role, backend=outcome.served_by, why=outcome.why),
        usage=outcome.end.usage,
        timing=Timing(
            total_ms=outcome.total_ms,
            first_token_ms=outcome.first_ms,
            prompt_ms=outcome.end.prompt_ms,
            generate_ms=outcome.end.generate_ms,
        ),
        error=outcome.error,
    )


@contextmanager
def recording(retention_days: int, folder: Path | None = None) -> Iterator[Recording]:
    """A recording into `folder` (default: the data home), flushed at the end."""
    folder = folder or user_data_path("llm-tuner") / "exchanges"
    recorder = Recorder(
        folder, Scrubber(kept_salt(user_state_path("llm-tuner") / "scrub.key")), retention_days=retention_days
    )
    try:
        yield Recording(folder, recorder)
    finally:
        recorder.close()


__all__ = ["Recording", "exchange", "recording"]
