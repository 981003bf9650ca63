"""Lists every task of every suite, with the source of its rows on this machine and what is missing."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hambench.errors import DataError, UnknownNameError
from hambench.suites.catalogue import ENTRIES, SUITES, TaskEntry, tasks_of
from hambench.suites.efficiency import EFFICIENCY
from hambench.suites.floors import bounds_of
from hambench.suites.harness.lm_tasks import SCORER_PACKAGES
from hambench.suites.offline import OFFLINE, OFFLINE_SUITES, offline_tasks
from hambench.suites.rows import find_file, kind_of, read_task, unpacked
from hambench.suites.sources import cached_data_set, hub_reachable, hub_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskListing:
    """The state of one task on this machine."""

    suite: str
    task: str
    category: str
    rows: int
    """Number of rows of the complete official data, or of built rows."""
    metric: str
    source: str
    """Source of the rows on this machine."""
    missing: str
    """Reason that it can't be run or scored; empty if it can."""
    offline: str
    """Offline tasks that replace it."""
    floor: float | None = None
    """Points of the best answer that does not read the prompt; ``None`` if not computed."""
    ceiling: float | None = None
    """Points of the reference answers."""
    floor_by: str = ""
    """Answer that scores the floor."""


def list_suites(data: Path | None = None) -> list[dict[str, Any]]:
    """Returns the rows of ``hambench ls suites``: every task of every suite, the offline edition included."""
    listed = [asdict(each) for suite in (*SUITES, *OFFLINE_SUITES) for each in describe(suite, data)]
    return listed


def describe(suite: str, data: Path | None = None) -> list[TaskListing]:
    """Describes the tasks of one suite, the source of their rows, and what is missing.

    Raises:
        UnknownNameError: If there is no such suite.
    """
    if suite == "efficiency":
        return [_efficiency(name, about) for name, about in EFFICIENCY.items()]
    if suite in OFFLINE_SUITES:
        return [_offline(each.entry, each.about) for each in offline_tasks(suite)]
    if suite not in SUITES:
        raise UnknownNameError("suite", suite, (*SUITES, *OFFLINE_SUITES))
    return [_official(entry, data) for entry in tasks_of(suite)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The result of reading and counting one task's rows."""

    suite: str
    task: str
    rows: int | None
    expected: int
    sha256: str | None
    """sha256 of the file; ``None`` for rows from another source."""
    source: str
    problem: str
    """What is missing; empty if the official data is complete."""


def verify(task: str, *, source: str, data: Path | None, seed: int = 0) -> Verified:
    """Reads the rows of ``task`` from ``folder``, ``hub`` or ``offline edition`` and counts them."""
    from hambench.suites.resolve import rows_of

    entry = OFFLINE[task].entry if source == "offline edition" else ENTRIES[task]
    try:
        found = rows_of(entry, source=source, data=data, seed=seed)
    except DataError as error:
        return Verified(
            suite=entry.suite,
            task=task,
            rows=None,
            expected=entry.num_rows,
            sha256=None,
            source=source,
            problem=str(error),
        )
    count = None if found.rows is None else len(found.rows)
    problem = found.missing or (
        "" if count == entry.num_rows else f"{count} of {entry.num_rows} rows: incomplete"
    )
    return Verified(
        suite=entry.suite,
        task=task,
        rows=count,
        expected=entry.num_rows,
        sha256=found.sha256,
        source=found.origin or source,
        problem=problem,
    )


def fetch(task: str) -> int:
    """Loads a task's rows from the hub into the cache of ``datasets``; returns their number.

    Raises:
        DataError: If they can't be loaded.
    """
    return len(hub_rows(ENTRIES[task]))


def _official(entry: TaskEntry, data: Path | None) -> TaskListing:
    stand_ins = [
        each.entry.name for each in OFFLINE.values() if each.stands_in_for(entry.name.removesuffix("_e"))
    ]
    source, missing = _source(entry, data)
    lacking = _lacking(entry)
    if lacking:
        missing = "; ".join(each for each in (missing, f"pip install {' '.join(lacking)}") if each)
    return TaskListing(
        suite=entry.suite,
        task=entry.name,
        category=entry.category,
        rows=entry.num_rows,
        metric=_shown_metric(entry),
        source=source,
        missing=missing,
        offline=", ".join(stand_ins),
    )


def _source(entry: TaskEntry, data: Path | None) -> tuple[str, str]:
    if data is not None:
        path = find_file(data, entry.file_names)
        if path is None:
            return "–", f"no {Path(entry.files[0]).name} in {data}"
        try:
            return f"{path} ({_count(path, entry, data)} rows)", ""
        except (DataError, OSError) as error:
            return str(path), str(error)
    hub = entry.hub[0] if entry.hub else ""
    if cached_data_set(hub):
        return f"hub: {hub} (cached)", ""
    if hub_reachable():
        return f"hub: {hub}", ""
    return "–", "the hub can't be reached: give --data DIR"


def _count(path: Path, entry: TaskEntry, data: Path) -> int:
    # MBPP's file holds other splits too
    if kind_of(path) == ".jsonl" and entry.name != "mbpp_instruct":
        return sum(1 for line in unpacked(path, path.read_bytes()).split(b"\n") if line.strip())
    return _read(entry, data)


def _read(entry: TaskEntry, data: Path) -> int:
    found = read_task(data, entry)
    return 0 if found is None else len(found.rows)


def _offline(entry: TaskEntry, about: str) -> TaskListing:
    lacking = _lacking(entry)
    bounds = None if lacking else bounds_of(entry.name)
    return TaskListing(
        suite=entry.suite,
        task=entry.name,
        category=entry.category,
        rows=entry.num_rows,
        metric=_shown_metric(entry),
        source=f"built here: {about}",
        missing=" ".join(f"pip install {each}" for each in lacking),
        offline="",
        floor=round(bounds.floor, 1) if bounds else None,
        ceiling=round(bounds.ceiling, 1) if bounds else None,
        floor_by=bounds.floor_by if bounds else "",
    )


def _efficiency(name: str, about: str) -> TaskListing:
    return TaskListing(
        suite="efficiency",
        task=name,
        category="speed",
        rows=1,
        metric="none: speed only",
        source=about,
        missing="",
        offline="",
    )


def _shown_metric(entry: TaskEntry) -> str:
    from hambench.suites.harness.longbench import METRIC_NAMES, base_name

    stem = Path(entry.config).stem
    if entry.metric == "score":
        return METRIC_NAMES[base_name(stem)]
    return entry.metric + (" (runs code: --allow-code-execution)" if entry.runs_code else "")


def _lacking(entry: TaskEntry) -> list[str]:
    wanted = SCORER_PACKAGES.get(entry.config.split("/")[0], ())
    return [name for name in wanted if importlib.util.find_spec(name) is None]
