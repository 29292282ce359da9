"""What each page shows: a function of the dashboard and the request that returns the names of its template.

Slow questions go through `remembered`, long files through the index. The rule it protects: nothing here waits for a
server, and no address becomes a path: a run, a suite and a file are looked up among those that there are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
from starlette.requests import Request

from llm_tuner.apps.dashboard import charts, index
from llm_tuner.apps.dashboard.app import Dashboard, Missing, Page
from llm_tuner.apps.dashboard.forms import fields
from llm_tuner.apps.dashboard.jobs import Answer, run
from llm_tuner.store import Store, write_atomic
from llm_tuner.types import Message, Report, Run

ROWS = 50
HOURS = ("1", "24", "168")
SOON, LIVE = 700, 3000
"""Milliseconds after which a page asks again: for an answer under way, for a run under way."""
TAIL = 2 << 20


def ask(board: Dashboard, name: str, age: float, **arguments: Any) -> Answer:
    """What an operation of the table says; an empty answer where there is no such operation."""
    operation = board.operations.get(name)
    if operation is None:
        return Answer()
    key = (name, *sorted(arguments.items()))
    return board.remembered.get(key, lambda: run(operation, arguments), age)


def overview(board: Dashboard, request: Request) -> dict[str, Any]:
    answer = ask(board, "status", 60)
    kept = board.cache / f"{board.id}.status.json"
    value, when = answer.value, answer.when
    if value is not None and (not kept.exists() or kept.stat().st_mtime < when - 1):
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(kept, json.dumps({"when": when, "status": value}))
    elif value is None:
        with suppress(OSError, ValueError, KeyError):
            read = json.loads(kept.read_bytes())
            value, when = read["status"], read["when"]
    return {
        "page": "overview",
        "status": value,
        "when": when,
        "asking": answer.asking,
        "problem": answer.error,
        "unfinished": [one for one in _partial(board.store) if one["alive"]],
        "again": SOON if answer.asking else 0,
    }


# ------------------------------------------------------------------------------------------------------------- models


def models(board: Dashboard, request: Request) -> dict[str, Any]:
    answer = ask(board, "models_list", 30)
    loaded = ask(board, "ollama_ps", 30)
    found = answer.value or {}
    tuned: dict[str, list[dict[str, Any]]] = {}
    for version in found.get("tuned", ()):
        tuned.setdefault(version["name"], []).append(version)
    return {
        "page": "models",
        "answer": answer,
        "tuned": tuned,
        "fetched": found.get("fetched", []),
        "known": found.get("known", []),
        "ollama": found.get("ollama"),
        "loaded": loaded.value,
        "again": SOON if answer.asking else 0,
    }


def model(board: Dashboard, request: Request) -> dict[str, Any]:
    name = request.path_params["name"]
    operation = board.operations.get("model_history")
    if operation is None:
        raise Missing
    found: Any = run(operation, {"name": name})
    if not found["versions"]:
        raise Missing
    before, after = request.query_params.get("before", ""), request.query_params.get("after", "")
    changes: Any = None
    if before and after and (diff := board.operations.get("model_diff")):
        changes = run(diff, {"before": f"{name}:{before}", "after": f"{name}:{after}"})
    runs = {one.id for one in board.store.runs()}
    return {"page": "models", "name": name, **found, "diff": changes, "known_runs": runs}


# --------------------------------------------------------------------------------------------------------------- runs


def runs(board: Dashboard, request: Request) -> dict[str, Any]:
    finished, kind = board.store.runs(), request.query_params.get("kind", "")
    kinds = sorted({one.kind for one in finished})
    shown, pager = _paged(request, [one for one in finished if kind in ("", one.kind)])
    partial = [one for one in _partial(board.store) if kind in ("", one["kind"])]
    live = any(one["alive"] for one in partial)
    return {"page": "runs", "runs": shown, "pager": pager, "kinds": kinds, "kind": kind, "partial": partial,
            "again": LIVE if live else 0}  # fmt: skip


def one_run(board: Dashboard, request: Request) -> dict[str, Any]:
    id_ = request.path_params["run"]
    folder = folder_of(board, id_)
    if folder is None:
        raise Missing
    found = _run(board.store, id_)
    partial = next((one for one in _partial(board.store) if one["id"] == id_), None)
    files = sorted((str(p.relative_to(folder)), p.stat().st_size) for p in folder.glob("*") if p.is_file())
    curve = _curve(folder)
    return {
        "page": "runs",
        "id": id_,
        "run": found,
        "partial": partial,
        "curves": curve,
        "files": files,
        "html": [name for name, _ in files if name.endswith(".html")],
        "suites": sorted(_suites(folder)),
        "known_runs": {one.id for one in board.store.runs()},
        "again": LIVE if partial and partial["alive"] else 0,
    }


def folder_of(board: Dashboard, id_: str) -> Path | None:
    """The folder of a run, finished or not; None where there is none of this name."""
    known = {path.name: path for path in board.store.root.iterdir() if path.is_dir()}
    return known.get(id_) or known.get(f".partial-{id_}")


def _run(store: Store, id_: str) -> Run | None:
    return next((one for one in store.runs() if one.id == id_), None)


def _partial(store: Store) -> list[dict[str, Any]]:
    """Runs that are not finished, the newest first; `alive` where their process lives."""
    found = []
    for path in store.root.glob(".partial-*"):
        with suppress(OSError):
            id_ = path.name.removeprefix(".partial-")
            changed = max([path.stat().st_mtime, *(p.stat().st_mtime for p in path.iterdir())])
            kind = id_.rpartition("-")[0]
            found.append({"id": id_, "kind": kind, "changed": changed, "alive": _alive(path / ".lock")})
    return sorted(found, key=lambda one: -one["changed"])


def _alive(lock: Path) -> bool:
    with suppress(OSError, ValueError, psutil.Error):
        pid, started = lock.read_text().split()
        return psutil.Process(int(pid)).create_time() == float(started)
    return False


def _curve(folder: Path) -> list[tuple[str, charts.Chart]]:
    """Losses, then whatever else the trainer measured, by step; the trainer adds a line a step."""
    points = list(_lines(folder / "curve.jsonl"))
    losses: dict[str, list[tuple[float, float]]] = {"loss": [], "held_out_loss": []}
    others: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        for name in losses:
            if isinstance(point.get(name), int | float):
                losses[name].append((point["step"], point[name]))
        for name, value in (point.get("measured") or {}).items():
            if isinstance(value, int | float):
                others.setdefault(name, []).append((point["step"], value))
    if not points:
        return []
    ends = (str(points[0].get("step", "")), str(points[-1].get("step", "")))
    drawn = [("loss", charts.chart(losses, ends, zero=True))]
    drawn += [(name, charts.chart({name: values}, ends)) for name, values in others.items() if len(values) > 1]
    return [(name, one) for name, one in drawn if one is not None]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON lines of a file's end, what cannot be read left out."""
    with suppress(OSError), path.open("rb") as file:
        start = max(0, path.stat().st_size - TAIL)
        file.seek(start)
        for number, text in enumerate(file):
            if start and not number:
                continue
            with suppress(ValueError):
                value = json.loads(text)
                if isinstance(value, dict) and isinstance(value.get("step"), int | float):
                    yield value


# -------------------------------------------------------------------------------------------------------- evaluations


def evaluations(board: Dashboard, request: Request) -> dict[str, Any]:
    measured = board.store.runs("evaluate")
    shown, pager = _paged(request, measured)
    rows = [
        {"run": one, "suite": suite, "rates": rates}
        for one in shown
        for suite, rates in one.metrics.items()
        if isinstance(rates, dict)
    ]
    partial = [one for one in _partial(board.store) if one["kind"] == "evaluate"]
    for one in partial:
        one["suites"] = sorted(_suites(board.store.root / f".partial-{one['id']}"))
    return {"page": "evaluations", "rows": rows, "pager": pager, "partial": partial, "measured": measured}


def evaluation(board: Dashboard, request: Request) -> dict[str, Any]:
    id_, suite, folder = _measured(board, request)
    attempts = board.index.open(folder / "attempts.jsonl", "attempts")
    tasks = board.index.open(folder / "suite.jsonl", "suite", wait=0.02)
    report = _report(board, folder / "report.json")
    chosen = {name: request.query_params.get(name, "") for name in ("reason", "tool")}
    rows = board.index.rows
    reasons = rows(
        "SELECT reason, COUNT(*) FROM attempts WHERE file = ? GROUP BY reason ORDER BY 2 DESC", attempts.file
    )
    tools = rows(
        "SELECT tool, COUNT(*), SUM(reason = 'ok') FROM attempts WHERE file = ? GROUP BY tool ORDER BY 2 DESC LIMIT 60",
        attempts.file,
    )
    where, values = _where("a", {name: value for name, value in chosen.items() if value})
    ((total,),) = rows(f"SELECT COUNT(*) FROM attempts a WHERE a.file = ?{where}", attempts.file, *values)
    pager = _pager(request, total)
    found = rows(
        "SELECT a.key, a.reason, a.tool, a.ms, t.request, t.tool FROM (SELECT a.key FROM attempts a WHERE a.file = ?"
        f"{where} ORDER BY a.place LIMIT ? OFFSET ?) k JOIN attempts a ON a.file = ? AND a.key = k.key "
        "LEFT JOIN tasks t ON t.file = ? AND t.key = a.key ORDER BY a.place",
        attempts.file, *values, ROWS, pager["offset"], attempts.file, tasks.file,
    )  # fmt: skip
    reading = min(attempts.share, tasks.share)
    return {
        "page": "evaluations",
        "id": id_,
        "suite": suite,
        "report": report,
        "reasons": reasons,
        "tools": tools,
        "chosen": chosen,
        "attempts": found,
        "total": total,
        "pager": pager,
        "reading": reading,
        "problem": attempts.error or tasks.error,
        "again": SOON if reading < 1 and not (attempts.error or tasks.error) else 0,
    }


def attempt(board: Dashboard, request: Request) -> dict[str, Any]:
    from llm_tuner.evaluation.details import entry

    id_, suite, folder = _measured(board, request)
    key = request.path_params["task"]
    made = index.attempt(board.index, folder / "attempts.jsonl", key)
    if made is None:
        raise Missing
    asked = index.task(board.index, folder / "suite.jsonl", key)
    file = board.index.open(folder / "attempts.jsonl", "attempts").file
    ((place,),) = board.index.rows("SELECT place FROM attempts WHERE file = ? AND key = ?", file, key)
    around = []
    for sign, order in (("<", "DESC"), (">", "ASC")):
        query = f"SELECT key FROM attempts WHERE file = ? AND place {sign} ? ORDER BY place {order} LIMIT 1"
        around.append(next((row[0] for row in board.index.rows(query, file, place)), ""))
    return {
        "page": "evaluations",
        "id": id_,
        "suite": suite,
        "attempt": made,
        "task": asked,
        "entry": entry(asked, made) if asked is not None else None,
        "messages": [_said(message) for message in made.messages],
        "around": around,
    }


def compare(board: Dashboard, request: Request) -> dict[str, Any]:
    before, after = (request.query_params.get(side, "") for side in ("before", "after"))
    known = {one.id: one for one in board.store.runs("evaluate")}
    if before not in known or after not in known:
        raise Missing

    def both() -> dict[str, Any]:
        from llm_tuner.evaluation.compare import compare as compared
        from llm_tuner.evaluation.compare import open_parts

        found = compared(open_parts(before, board.store), open_parts(after, board.store))
        document = found.model_dump(mode="json", exclude={"flips"})
        return {**document, "flips": [flip.model_dump(mode="json") for flip in found.flips[:ROWS]],
                "flipped": len(found.flips)}  # fmt: skip

    answer = board.remembered.get(("compare", before, after), both, float("inf"))
    return {"page": "evaluations", "before": before, "after": after, "answer": answer, "found": answer.value,
            "again": SOON if answer.asking else 0}  # fmt: skip


def _measured(board: Dashboard, request: Request) -> tuple[str, str, Path]:
    id_, suite = request.path_params["run"], request.path_params["suite"]
    folder = folder_of(board, id_)
    suites = _suites(folder) if folder else {}
    if suite not in suites:
        raise Missing
    return id_, suite, suites[suite]


def _suites(folder: Path) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in folder.glob("*/attempts.jsonl")}


def _report(board: Dashboard, path: Path) -> Report | None:
    known = board.index.open(path, "report", wait=0.02)
    found = board.index.rows("SELECT json FROM documents WHERE file = ?", known.file)
    return Report.model_validate_json(found[0][0]) if found else None


def _said(message: Message) -> dict[str, Any]:
    from llm_tuner.evaluation.details import calls_text

    text = message.result.content if message.result is not None else message.text
    return {"role": message.role, "text": text, "thinking": message.thinking, "calls": calls_text(message.tool_calls)}


# --------------------------------------------------------------------------------------------------------------- data


def data(board: Dashboard, request: Request) -> dict[str, Any]:
    rows = []
    for one in board.store.runs():
        suites = sorted(path.stem for path in _task_files(board.store.folder(one)).values())
        if suites and one.kind != "evaluate":
            rows.append({"run": one, "suites": suites})
    shown, pager = _paged(request, rows)
    return {"page": "data", "rows": shown, "pager": pager}


def data_set(board: Dashboard, request: Request) -> dict[str, Any]:
    id_, name = request.path_params["run"], request.path_params["suite"]
    folder = folder_of(board, id_)
    files = _task_files(folder) if folder else {}
    if folder is None or name not in files:
        raise Missing
    known, rows = board.index.open(files[name], "suite"), board.index.rows
    mix = {
        column: rows(
            f"SELECT {column}, COUNT(*) FROM tasks WHERE file = ? GROUP BY {column} ORDER BY 2 DESC LIMIT 40",
            known.file,
        )
        for column in ("category", "language", "tool")
    }
    chosen = {column: request.query_params.get(column, "") for column in mix}
    where, values = _where("t", {column: value for column, value in chosen.items() if value})
    ((total,),) = rows(f"SELECT COUNT(*) FROM tasks t WHERE t.file = ?{where}", known.file, *values)
    pager = _pager(request, total)
    found = rows(
        "SELECT t.key, t.category, t.language, t.tool, t.request FROM tasks t WHERE t.file = ? AND t.key IN "
        f"(SELECT t.key FROM tasks t WHERE t.file = ?{where} ORDER BY t.place LIMIT ? OFFSET ?) ORDER BY t.place",
        known.file, known.file, *values, ROWS, pager["offset"],
    )  # fmt: skip
    return {
        "page": "data", "id": id_, "suite": name, "suites": sorted(files), "mix": mix, "chosen": chosen,
        "tasks": found, "total": total, "pager": pager, "reading": known.share, "problem": known.error,
        "html": sorted(path.name for path in folder.glob("*.html")),
        "again": SOON if known.share < 1 and not known.error else 0,
    }  # fmt: skip


def sample(board: Dashboard, request: Request) -> dict[str, Any]:
    from llm_tuner.evaluation.details import expected

    id_, name = request.path_params["run"], request.path_params["suite"]
    folder = folder_of(board, id_)
    files = _task_files(folder) if folder else {}
    found = index.task(board.index, files[name], request.path_params["task"]) if name in files else None
    if found is None:
        raise Missing
    return {"page": "data", "id": id_, "suite": name, "task": found, "expected": expected(found),
            "messages": [_said(message) for message in found.messages]}  # fmt: skip


def _task_files(folder: Path) -> dict[str, Path]:
    """Files that begin as a suite does."""
    found = {}
    for path in folder.glob("*.jsonl"):
        with suppress(OSError), path.open("rb") as file:
            if file.read(9) == b'{"suite":':
                found[path.stem] = path
    return found


# ------------------------------------------------------------------------------------------------------------ traffic


def traffic(board: Dashboard, request: Request) -> dict[str, Any]:
    from llm_tuner.serving.journal import journal_files

    files = journal_files(board.journal) if board.journal.is_dir() else []
    known = [
        board.index.open(path, "journal", wait=0.08 if number == len(files) - 1 else 0)
        for number, path in enumerate(files)
    ]
    board.index.forget_missing("journal", files)
    rows = board.index.rows
    states = dict(rows("SELECT state, COUNT(*) FROM exchanges GROUP BY state"))
    count = sum(states.values())
    ((timed,),) = rows("SELECT COUNT(*) FROM exchanges WHERE ms > 0")
    at = "SELECT ms FROM exchanges WHERE ms > 0 ORDER BY ms LIMIT 1 OFFSET ?"
    times = {
        name: next((row[0] for row in rows(at, int(timed * part))), None)
        for name, part in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }
    tools = rows(
        "SELECT tool, COUNT(*), SUM(state = 'right'), SUM(state = 'wrong'), SUM(state IN ('unknown', 'error')) "
        "FROM calls GROUP BY tool ORDER BY 4 DESC, 2 DESC LIMIT 60"
    )
    whys = rows(
        "SELECT why, state, COUNT(*) FROM exchanges WHERE state != 'right' GROUP BY why, state ORDER BY 3 DESC LIMIT 25"
    )
    by_model = rows(
        "SELECT role, model, COUNT(*), AVG(ms), MAX(ms) FROM exchanges GROUP BY role, model ORDER BY 3 DESC LIMIT 30"
    )
    chosen = {name: request.query_params.get(name, "") for name in ("state", "tool")}
    clauses, values = [], []
    if chosen["state"]:
        clauses, values = ["state = ?"], [chosen["state"]]
    if chosen["tool"]:
        clauses.append("id IN (SELECT id FROM calls WHERE tool = ?)")
        values.append(chosen["tool"])
    where = f" WHERE {' AND '.join(clauses)}" if clauses else ""
    ((total,),) = rows(f"SELECT COUNT(*) FROM exchanges{where}", *values)
    pager = _pager(request, total)
    found = rows(
        "SELECT id, time, model, role, state, why, tools, repairs, ms FROM exchanges WHERE id IN "
        f"(SELECT id FROM exchanges{where} ORDER BY id DESC LIMIT ? OFFSET ?) ORDER BY id DESC",
        *values, ROWS, pager["offset"],
    )  # fmt: skip
    share = sum(one.share for one in known) / len(known) if known else 1.0
    first = not count and share < 1
    return {
        "page": "traffic", "files": len(files), "states": states, "count": count, "times": times, "tools": tools,
        "whys": whys, "by_model": by_model, "chosen": chosen, "exchanges": found, "total": total, "pager": pager,
        "reading": share, "problem": next((one.error for one in known if one.error), ""), "again": SOON if first else 0,
    }  # fmt: skip


def exchange(board: Dashboard, request: Request) -> dict[str, Any]:
    from llm_tuner.evaluation.details import calls_text

    found = index.exchange(board.index, request.path_params["exchange"])
    if found is None:
        raise Missing
    body, messages, tools = found
    answer = Message.model_validate(body["answer"]) if body.get("answer") else None
    ((state, why),) = board.index.rows("SELECT state, why FROM exchanges WHERE id = ?", body["id"])
    return {
        "page": "traffic", "body": body, "tools": tools, "state": state, "why": why,
        "messages": [_said(message) for message in messages],
        "answer": _said(answer) if answer is not None else None,
        "calls": calls_text(answer.tool_calls) if answer is not None else "",
    }  # fmt: skip


# --------------------------------------------------------------------------------------------- resources, operations


def resources(board: Dashboard, request: Request) -> dict[str, Any]:
    hours = request.query_params.get("hours", "1")
    hours = hours if hours in HOURS else "1"
    now, past = ask(board, "resources", 4), ask(board, "resource_history", 15, hours=int(hours))
    advice = ask(board, "models_advise", 600)
    drawn = []
    for name, points in ((past.value or {}).get("series") or {}).items():
        if len(points) > 1:
            from llm_tuner.apps.dashboard.formats import when

            ends = (when(points[0][0]), when(points[-1][0]))
            if made := charts.chart({name: [(x, y) for x, y in points]}, ends, zero=True):
                drawn.append((name, made))
    there = "resources" in board.operations
    return {"page": "resources", "now": now.value, "problem": now.error, "drawn": drawn,
        "hours": hours,
        "spans": HOURS, "there": there,
            "advice": advice.value, "again": 5000 if there else 0}  # fmt: skip


def operations(board: Dashboard, request: Request) -> dict[str, Any]:
    running = any(job.state == "running" for job in board.jobs)
    return {"page": "operations", "jobs": list(board.jobs), "again": LIVE if running else 0}


def operation(board: Dashboard, request: Request) -> dict[str, Any]:
    found = board.operations.get(request.path_params["name"])
    if found is None:
        raise Missing
    given = {name: value for name, value in request.query_params.items() if name != "part"}
    help_, _, example = found.help.partition("Example: ")
    return {"page": "operations", "operation": found, "fields": fields(found), "given": given,
            "help": help_.strip(), "example": example.strip()}  # fmt: skip


def job(board: Dashboard, request: Request) -> dict[str, Any]:
    found = board.jobs.get(request.path_params["id"])
    if found is None:
        raise Missing
    events = found.since(0)
    losses = [(e.done, e.data["loss"]) for _, e in events if isinstance(e.data.get("loss"), int | float)]
    curve: charts.Chart | None = None
    if len(losses) > 1:
        numbers = [(float(step), float(loss)) for step, loss in losses]
        curve = charts.chart({"loss": numbers}, (f"{losses[0][0]:g}", f"{losses[-1][0]:g}"), zero=True)
    return {"page": "operations", "job": found, "events": [event for _, event in events][-40:], "curve": curve,
            "again": 1500 if found.state == "running" else 0}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------


def _where(table: str, chosen: Mapping[str, str]) -> tuple[str, list[str]]:
    """Conditions on columns that this module names; "-" stands for an empty value."""
    text = "".join(f" AND {table}.{column} = ?" for column in chosen)
    return text, ["" if value == "-" else value for value in chosen.values()]


def _paged(request: Request, found: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    pager = _pager(request, len(found))
    return found[pager["offset"] : pager["offset"] + ROWS], pager


def _pager(request: Request, total: int) -> dict[str, Any]:
    text = request.query_params.get("page", "1")
    pages = max(1, -(-total // ROWS))
    number = min(pages, max(1, int(text) if text.isdecimal() and len(text) < 9 else 1))
    rest = {key: value for key, value in request.query_params.items() if key not in ("page", "part")}

    def link(page: int) -> str:
        return f"?{urlencode({**rest, 'page': page})}"

    return {"number": number, "pages": pages, "offset": (number - 1) * ROWS, "total": total,
            "before": link(number - 1) if number > 1 else "",
            "after": link(number + 1) if number < pages else ""}  # fmt: skip


PAGES: tuple[tuple[str, str, Page], ...] = (
    ("/", "overview.html", overview),
    ("/models", "models.html", models),
    ("/models/{name}", "model.html", model),
    ("/runs", "runs.html", runs),
    ("/runs/{run}", "run.html", one_run),
    ("/evaluations", "evaluations.html", evaluations),
    ("/evaluations/{run}/{suite}", "evaluation.html", evaluation),
    ("/evaluations/{run}/{suite}/{task}", "attempt.html", attempt),
    ("/compare", "compare.html", compare),
    ("/data", "data.html", data),
    ("/data/{run}/{suite}", "data_set.html", data_set),
    ("/data/{run}/{suite}/{task}", "sample.html", sample),
    ("/traffic", "traffic.html", traffic),
    ("/traffic/{exchange}", "exchange.html", exchange),
    ("/resources", "resources.html", resources),
    ("/operations", "operations.html", operations),
    ("/operations/{name}", "operation.html", operation),
    ("/jobs/{id}", "job.html", job),
)
