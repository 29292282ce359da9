import pytest

from llm_tuner.models.recorded import RecordedBackend
from llm_tuner.types import Backend, Message, ModelError


def test_it_answers_what_was_recorded_and_nothing_else():
    backend = RecordedBackend({"time": Message(role="assistant", text="noon"), "tools": lambda m, t: m[-1]})
    assert isinstance(backend, Backend)
    assert backend.chat([Message(role="user", text="the time?")]).message.text == "noon"
    assert backend.chat([Message(role="user", text="any tools?")]).message.role == "user"
    with pytest.raises(ModelError, match="No answer was recorded for 'else'"):
        backend.chat([Message(role="user", text="else")])
    assert backend.asked == ["the time?", "any tools?", "else"]
