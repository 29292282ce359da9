"""The demo's tasks never change by accident: its published numbers belong to these very tasks."""

from llm_tuner.data.synthesize import synthesize, synthesize_unseen
from llm_tuner.data.wording import WORDINGS
from llm_tuner.loop import DEMO_UNSEEN, Tune
from llm_tuner.types import ToolSpec, content_hash

PAGES = "http://127.0.0.1:8733"
TOOLS = tuple(
    ToolSpec(
        name=name,
        description=f"Does {name}.",
        parameters={
            "type": "object",
            "properties": {value: {} for w in wordings for value in (*w.values, *w.constants)},
        },
        server="demo",
    )
    for name, wordings in WORDINGS.items()
)


def hash_of(tasks):
    return content_hash([task.model_dump(mode="json") for task in tasks])


def test_the_demos_tasks_are_what_they_were():
    config = Tune()
    train = config.train.model_copy(update={"unseen": DEMO_UNSEEN})
    held_out = config.held_out.model_copy(update={"unseen": DEMO_UNSEEN})
    assert hash_of(synthesize(TOOLS, train, "train", pages=PAGES)) == "88726106f01ccc74"
    assert hash_of(synthesize(TOOLS, held_out, "held-out", pages=PAGES)) == "6ef92feaf845daef"
    assert (
        hash_of(synthesize_unseen(TOOLS, held_out.model_copy(update={"tasks": 24}), pages=PAGES)) == "92d44d077b386b39"
    )
