"""The table of BFCL results: both readings, intervals, entries, groups only where they are whole."""

from __future__ import annotations

from llm_tuner.evaluation.bfcl import CATEGORIES
from llm_tuner.evaluation.bfcl_table import table
from llm_tuner.evaluation.intervals import rate
from llm_tuner.types import Latency, Rate, Report, Tokens


def report(category: str, native: int, lenient: int, n: int) -> Report:
    rates: dict[str, Rate] = {"ok": rate(native, n), "ok_lenient": rate(lenient, n)}
    rates |= {"native_rate": rate(0, n), "selection_lenient": rate(n, n)}
    return Report(
        suite=f"bfcl:{category}",
        suite_hash="",
        backend="b",
        n=n,
        rates=rates,
        groups={"category": {category: rates}},
        latency=Latency(n=n, p50_ms=1234.4),
        tokens=Tokens(n=n, completion_p50=37),
    )


def test_a_line_says_how_many_of_how_many_with_intervals() -> None:
    text = table([report("simple_python", 0, 50, 100)])
    line = next(line for line in text.splitlines() if line.startswith("| simple_python"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:3] == ["simple_python", "100 of 400", "0.0 (0.0-3.7)"]
    assert cells[3:] == ["50.0 (40.4-59.6)", "0.0 (0.0-3.7)", "100.0 (96.3-100.0)", "1,234", "37"]
    assert "**" not in text  # no group was measured whole


def test_groups_come_when_all_their_categories_were_measured() -> None:
    text = table([report(category, 10, 20, 40) for category in CATEGORIES])
    assert "| **non_live** | | **25.0 (" in text
    assert "**50.0 (" in text
    assert "live**" not in text.replace("non_live**", "")
