"""Resolves a suite, task names and a preset to the tasks to run and the sources of their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hambench.errors import DataError, HambenchError, UnknownNameError
from hambench.files import printable
from hambench.records import Edition
from hambench.suites.catalogue import ENTRIES, SUITES, TaskEntry, preset_of, tasks_of
from hambench.suites.harness.lm_tasks import find_config, lm_eval_version
from hambench.suites.offline import OFFLINE, OFFLINE_SUITE, OFFLINE_SUITES, offline_tasks
from hambench.suites.rows import Row, find_file, read_rows, read_task
from hambench.suites.sources import cached_data_set, hub_reachable, hub_rows
from hambench.suites.suite_file import read_suite_file

FOLDER, HUB, OFFLINE_EDITION = "folder", "hub", "offline edition"


@dataclass(frozen=True, slots=True)
class Asked:
    """One task to run, with the settings that differ from its catalogue entry."""

    entry: TaskEntry
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one task, or the reason that there are none."""

    rows: tuple[Row, ...] | None
    origin: str = ""
    """The file, data set or builder that the rows come from."""
    sha256: str | None = None
    missing: str | None = None
    note: str = ""
    """What was changed in the rows; empty if nothing was."""
    num_more: int = 0
    """Rows of the task that a limit left out here already."""


def asked_tasks(
    suite: str | None, tasks: tuple[str, ...], preset: str | None
) -> tuple[str, tuple[Asked, ...]]:
    """Returns the suite's display name and its tasks in order.

    Args:
        suite: A suite's name, a ``.yaml`` file with a list of tasks, or ``None`` for ``tasks`` alone.
        tasks: With a suite, the subset of its tasks to run; without one, names from this catalogue or lm-eval.
        preset: Named settings; see :data:`hambench.suites.catalogue.PRESETS`.

    Raises:
        UnknownNameError: If the suite, the preset or a task does not exist.
        DataError: If a suite file is broken; see :func:`hambench.suites.suite_file.read_suite_file`.
    """
    if suite is not None and suite.endswith((".yaml", ".yml")):
        name, items = read_suite_file(Path(suite))
        return name, _subset(tuple(named_task(task, settings) for task, settings in items), tasks)
    if suite is None:
        if not tasks:
            raise HambenchError(
                "nothing to run: name a suite (--suite longbench) or tasks (--tasks NAME,NAME)"
            )
        return "tasks", tuple(named_task(task) for task in tasks)
    if suite in OFFLINE_SUITES:
        return suite, _subset(tuple(Asked(each.entry) for each in offline_tasks(suite)), tasks)
    if suite not in SUITES:
        raise UnknownNameError("suite", suite, (*SUITES, *OFFLINE_SUITES))
    settings = preset_of(preset, suite)
    listed = tuple(
        _configured(entry, {} if settings is None else settings[entry.name])
        for entry in tasks_of(suite)
        if settings is None or entry.name in settings
    )
    return suite, _subset(listed, tasks)


def named_task(task: str, settings: Mapping[str, Any] | None = None) -> Asked:
    """Returns a task of the catalogue, of the offline edition, or any task that lm-eval packages.

    Raises:
        UnknownNameError: If none of them has it.
    """
    if task in ENTRIES:
        return _configured(ENTRIES[task], settings or {})
    if task in OFFLINE:
        return _configured(OFFLINE[task].entry, settings or {})
    try:
        config = find_config(task)
    except UnknownNameError as error:
        known = {*error.known, *ENTRIES, *OFFLINE}
        # of ten thousand names, compare only those with the same start
        alike = {name for name in known if name[:3] == task[:3]}
        raise UnknownNameError("task", task, alike or {*ENTRIES, *OFFLINE}) from error
    entry = TaskEntry(
        name=task,
        suite="tasks",
        category="other",
        config=config,
        files=(),
        columns=(),
        hub=None,
        num_rows=0,
        metric="",
        # the same question in several languages
        cluster="mgsm" if config.startswith("mgsm/") else "",
    )
    return _configured(entry, settings or {})


def choose_edition(asked: tuple[Asked, ...], *, data: Path | None, edition: str) -> tuple[Edition, str]:
    """Chooses (edition, source): a given data folder, else the hub if it answers or is cached, else offline.

    Raises:
        DataError: If the data folder does not exist.
    """
    if data is not None and not data.is_dir():
        raise DataError(f"the data folder {data} does not exist")
    built = [each.entry.name in OFFLINE and each.entry.name not in ENTRIES for each in asked]
    if edition == "offline" or (built and all(built)):
        return "offline", OFFLINE_EDITION
    if data is not None:
        return "official", FOLDER
    hubs = [each.entry.hub[0] for each in asked if each.entry.hub]
    if edition == "official" or hub_reachable() or (hubs and all(cached_data_set(each) for each in hubs)):
        return "official", HUB
    return "offline", OFFLINE_EDITION


def offline_counterparts(
    suite: str, asked: tuple[Asked, ...]
) -> tuple[str, tuple[Asked, ...], dict[str, str]]:
    """Returns the offline suite and tasks for ``asked``, and the tasks without an offline counterpart.

    Settings of an offline task are kept; those of an official task do not apply to its replacement.
    """
    name = OFFLINE_SUITE.get(suite, suite)
    stand_ins = [each for each in OFFLINE.values() if name not in OFFLINE_SUITES or each.entry.suite == name]
    wanted = {each.entry.name.removesuffix("_e") for each in asked}
    whole_suite = {entry.name for entry in tasks_of(suite)} == {each.entry.name for each in asked}
    settings = {each.entry.name: each.settings for each in asked}
    chosen, covered = [], set()
    for each in stand_ins:
        if whole_suite or any(map(each.stands_in_for, wanted)) or each.entry.name in wanted:
            chosen.append(_configured(each.entry, settings.get(each.entry.name, {})))
            covered |= {each.counterpart, each.entry.name}
    missing = (
        {}
        if whole_suite
        else dict.fromkeys(sorted(wanted - covered), "the offline edition has no counterpart")
    )
    return name, tuple(chosen), missing


def rows_of(entry: TaskEntry, *, source: str, data: Path | None, seed: int, limit: int | None = None) -> Rows:
    """Returns the rows of one task from ``source``, or the reason that they are missing.

    Raises:
        DataError: If a file of the data folder is broken.
    """
    if source == OFFLINE_EDITION:
        # a builder's first rows do not depend on the number of rows
        wanted = entry.num_rows if limit is None else min(limit, entry.num_rows)
        built = OFFLINE[entry.name].build(wanted, seed=seed)
        # a builder that ran out of material has no more of them
        num_more = entry.num_rows - wanted if len(built) == wanted else 0
        return Rows(tuple(built), origin="built by hambench", num_more=num_more)
    if source == FOLDER:
        assert data is not None
        found = read_task(data, entry) if entry.columns else _plain_rows(data, entry)
        if found is None:
            return Rows(None, missing=f"{data} does not contain {' or '.join(entry.file_names[:2])}")
        return (
            found
            if isinstance(found, Rows)
            else Rows(found.rows, origin=printable(str(found.path)), sha256=found.sha256, note=found.note)
        )
    if entry.hub is None:
        return Rows(None, origin="hub")
    try:
        return Rows(tuple(hub_rows(entry)), origin=entry.hub[0])
    except DataError as error:
        return Rows(None, missing=str(error))


def task_plan(asked: Asked) -> dict[str, Any]:
    """Returns a task's entry for the run header, which suffices to rebuild its scorer elsewhere."""
    entry = asked.entry
    return {
        "config": entry.config,
        "settings": {**entry.settings, **{k: v for k, v in asked.settings.items() if k != "multiturn"}},
        "metric": entry.metric,
        "category": entry.category,
        "shown_by": entry.shown_by,
        "runs_code": entry.runs_code,
        "lm_eval": lm_eval_version(),
    }


def _plain_rows(data: Path, entry: TaskEntry) -> Rows | None:
    path = find_file(data, entry.file_names)
    if path is None:
        return None
    found = read_rows(path)
    return Rows(found.rows, origin=printable(str(found.path)), sha256=found.sha256, note=found.note)


def _configured(entry: TaskEntry, settings: Mapping[str, Any]) -> Asked:
    if "multiturn" in settings:
        entry = replace(entry, multiturn=bool(settings["multiturn"]))
    return Asked(entry, dict(settings))


def _subset(listed: tuple[Asked, ...], tasks: tuple[str, ...]) -> tuple[Asked, ...]:
    by_name = {each.entry.name: each for each in listed}
    for task in tasks:
        if task not in by_name:
            raise UnknownNameError("task of this suite", task, by_name)
    return tuple(by_name[task] for task in dict.fromkeys(tasks)) if tasks else listed
