"""The card counts what is there, and shows rows of strangers as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rows import FORMATS, take, write_lines, xlam_row

from llm_tuner.data.card import Card, describe
from llm_tuner.data.dataset import manifest, open_examples
from llm_tuner.types import Message, ToolSpec
from pages import NASTY, Page


class Words:
    """A renderer whose tokens are words."""

    def render(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), generation_prompt: bool = True
    ) -> str:
        return " ".join([m.text for m in messages] + [t.name for t in tools])

    def tokenize(self, text: str) -> list[int]:
        return list(range(len(text.split())))


def described(folder: Path, **options: object) -> Card:
    steps = describe(folder, manifest(folder), **options)  # type: ignore[arg-type]
    while True:
        try:
            next(steps)
        except StopIteration as end:
            card: Card = end.value
            return card


def test_it_counts(tmp_path: Path) -> None:
    files = [FORMATS / "toolace.json", FORMATS / "openai_log.jsonl", FORMATS / "toucan.jsonl"]
    take(files, tmp_path / "set", licence="mine")
    every = list(open_examples(tmp_path / "set"))
    card = described(tmp_path / "set")
    assert card.examples == len(every) == 12
    for name in ("kind", "language", "side", "source", "licence", "tools offered"):
        assert sum(card.counts[name].values()) == 12, name
    assert card.counts["licence"] == {"Apache-2.0": 9, "mine": 3}
    assert card.counts["language"] == {"en": 10, "ja": 1, "zh": 1}
    assert card.counts["tool"]["Market_Trends_API"] == 2
    assert card.length_unit == "characters"
    assert card.rejected == {
        "read": {"cut_off": 1, "no_answer": 1, "broken_call": 1, "broken_message": 1},
        "format": {"wrong_value": 1, "unknown_tool": 1},
    }
    assert len(card.rows) == 12
    assert set(card.hashes) == {"attempts.jsonl", "held-out.jsonl", "rejected.jsonl", "train.jsonl"}
    assert json.loads((tmp_path / "set" / "card.json").read_text())["examples"] == 12


def test_lengths_are_in_tokens_where_a_renderer_is_given(tmp_path: Path) -> None:
    rows = [xlam_row(n, query=" ".join(f"w{n}x{i}" for i in range(10))) for n in range(5)]
    take([write_lines(tmp_path / "x.jsonl", rows)], tmp_path / "set")
    card = described(tmp_path / "set", renderer=Words())
    assert card.length_unit == "tokens"
    assert set(card.lengths.values()) == {11}


def test_withheld_tools_are_named(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "x.jsonl", [xlam_row(n) for n in range(30)])
    take([file], tmp_path / "set", withheld={"tools": 0, "servers": 0, "names": ["look_2"]})
    card = described(tmp_path / "set")
    assert card.counts["withheld tool"] == {"look_2": 4}
    assert "withheld tool" in (tmp_path / "set" / "card.md").read_text(encoding="utf-8")


def test_the_rows_are_chosen_by_the_seed(tmp_path: Path) -> None:
    take([write_lines(tmp_path / "x.jsonl", [xlam_row(n) for n in range(60)])], tmp_path / "set")
    ids = [tuple(row.id for row in described(tmp_path / "set", seed=seed).rows) for seed in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2]
    assert len(set(ids[0])) == 20


def test_what_strangers_wrote_is_text(tmp_path: Path) -> None:
    tools = [{"name": "look_1", "description": NASTY, "parameters": {"what": {"type": "str"}}}]
    answers = [{"name": "look_1", "arguments": {"what": NASTY}}]
    rows = [
        xlam_row(n, query=f"{NASTY} row {n}", tools=json.dumps(tools), answers=json.dumps(answers), license=NASTY)
        for n in range(3)
    ]
    take([write_lines(tmp_path / "x.jsonl", rows)], tmp_path / "set")
    html = (tmp_path / "set" / "card.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not page.tags & {"script", "img", "a"}
    assert page.links == []
    assert "<script>alert(1)</script>" in page.text
    assert {"svg", "details"} <= page.tags
    markdown = (tmp_path / "set" / "card.md").read_text(encoding="utf-8")
    assert "<script>" not in markdown
    assert "<img" not in markdown
    assert "](http" not in markdown.replace("\\](http", "")
