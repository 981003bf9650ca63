"""History: the worth of each method over time, with one file per run that is written once and never changed.

    <root>/runs/<machine>/<suite>/<utc>-<commit>-<run id>.json
    <root>/pins/<name>/<utc>-<id>.json
    <root>/annotations/<utc>-<id>.json

Two jobs never write the same file, so branches that both added runs merge without a conflict. The history tracks the
ratio to vanilla in the same run, which survives a busy or a replaced machine. It stores absolute speeds too, by
machine.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hambench.analysis.baselines import baseline_of
from hambench.analysis.comparisons import ratio_to_baseline
from hambench.analysis.measurements import measure_run, metric_value
from hambench.analysis.metrics import METRICS, Better
from hambench.decoding import KnobValue
from hambench.errors import HambenchError, IncompleteError, StoreError, UnknownNameError
from hambench.files import write_new
from hambench.groups import ALL, prompt_hashes
from hambench.machine.clock import now, utc
from hambench.store import Run

SCHEMA_VERSION = 1
RUNS, PINS, ANNOTATIONS = "runs", "pins", "annotations"
MACHINE_KEYS = (
    "platform",
    "machine",
    "cpu",
    "cpu_cores",
    "cpu_affinity",
    "cpu_flags",
    "gpu",
    "gpu_memory_bytes",
)
VERSION_KEYS = ("torch", "triton", "transformers", "lm_eval", "python", "gpu_driver")
"""Keys whose change breaks a series, because most shifts come from the environment."""
_RATIOS = ("tps", "prefill_tps", "end_to_end_tps")
_ABSOLUTE = (
    "tps",
    "ttft_s",
    "tokens_per_target_forward",
    "acceptance_rate",
    "kv_bytes",
    "kv_bytes_per_position",
    "kv_compression_output",
    "kv_compression_total",
    "peak_memory_bytes",
    "accuracy",
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """One number of one run."""

    value: float
    unit: str
    better: Better


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One run in the history."""

    schema_version: int
    run_id: str
    created_at: str
    """UTC, ISO 8601."""
    commit: str | None
    suite: str
    edition: str
    machine: str
    machine_facts: dict[str, KnobValue]
    versions: dict[str, KnobValue]
    model: str
    """Name and first digits of the weights' sha256."""
    data: str
    """Hash of the prompts that were asked, because other prompts form another series."""
    series: dict[str, dict[str, Tracked]]
    """Tracked numbers by metric, then by cell."""
    digest: str = ""
    """sha256 of all other fields, which reveals a file changed by hand or by a merge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A name for a run, e.g. a release."""

    name: str
    run_id: str
    created_at: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """A remark about a point in time, which may break every series there."""

    created_at: str
    at: str
    """UTC time that the remark is about."""
    text: str
    breaks: bool = False
    machine: str | None = None
    """Machine that the remark applies to; ``None`` for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All entries, pins and annotations under a root, oldest first."""

    root: Path
    entries: tuple[Entry, ...]
    pins: dict[str, Pin]
    """Newest pin of each name."""
    annotations: tuple[Annotation, ...]
    paths: dict[str, Path] = field(default_factory=dict)
    """File of each run, by run id."""
    problems: tuple[str, ...] = ()
    """Files that can't be used, with the reason; they are left out, never silently."""


def machine_id(environment: Mapping[str, KnobValue] | None = None) -> str:
    """Returns a short readable name for a kind of machine: equal CPUs, GPUs and core counts are one machine."""
    if environment is None:
        from hambench.machine.fingerprint import fingerprint

        environment = fingerprint()
    facts = {key: environment.get(key) for key in MACHINE_KEYS}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    name = facts.get("gpu") or facts.get("cpu") or facts.get("machine") or "unknown"
    return f"{_slug(str(name))[:40].strip('-')}-{digest}"


def entry_of(run: Run) -> Entry:
    """Returns the history entry of a complete run.

    Raises:
        IncompleteError: If the run is unfinished, or measured nothing.
    """
    if not run.complete:
        raise IncompleteError(
            f"run {run.header.run_id} is unfinished: {len(run.measured)} of {run.num_expected}"
        )
    series = _series_of(run)
    if not series:
        raise IncompleteError(f"run {run.header.run_id} measured nothing")
    header = run.header
    environment = header.environment
    # the header hashes all that were captured; of a budget's the clock decides how many are asked
    asked = prompt_hashes(run.samples.values())
    data = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    entry = Entry(
        schema_version=SCHEMA_VERSION,
        run_id=header.run_id,
        created_at=_utc(header.created_at),
        commit=header.commit,
        suite="+".join(header.suites),
        edition=header.edition,
        machine=machine_id(environment),
        machine_facts={key: environment.get(key) for key in MACHINE_KEYS},
        versions={key: environment.get(key) for key in VERSION_KEYS},
        model=f"{header.model.get('name')} {str(header.model.get('sha256'))[:12]} {header.cells[0].dtype}",
        data=data,
        series=series,
    )
    return dataclasses.replace(entry, digest=digest_of(entry))


def digest_of(entry: Entry) -> str:
    """Computes the digest that an entry must have."""
    plain = msgspec.to_builtins(dataclasses.replace(entry, digest=""))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def add(root: Path, entry: Entry) -> tuple[Path, bool]:
    """Writes an entry; returns its file, and whether it is new.

    Raises:
        StoreError: If another run with that id exists already, or the file can't be written.
    """
    stamp = re.sub(r"[^0-9TZ]", "", entry.created_at)[:15]
    name = f"{stamp}-{_slug(entry.commit or '')[:8] or 'nocommit'}-{_slug(entry.run_id)}.json"
    path = root / RUNS / entry.machine / _slug(entry.suite) / name
    others = [other for other in (root / RUNS).glob(f"*/*/*-{_slug(entry.run_id)}.json") if other != path]
    try:
        if others:
            raise FileExistsError
        write_new(path, msgspec.json.format(msgspec.json.encode(entry), indent=2) + b"\n")
    except FileExistsError:
        there = others[0] if others else path
        if _read(there, Entry).digest == entry.digest:
            return there, False
        raise StoreError(
            f"{there} holds a run with the id {entry.run_id} and other content: nothing was written"
        ) from None
    return path, True


def pin(history: History, name: str, run_id: str, *, note: str = "") -> Pin:
    """Pins a name to a run; earlier pins of that name stay on disk, and the newest counts.

    Raises:
        UnknownNameError: If the history has no such run.
    """
    if _slug(name) != name:
        raise HambenchError(f"a pin is named with letters, digits, dots and dashes, got {name!r}")
    entry = find(history, run_id)
    new_pin = Pin(name=name, run_id=entry.run_id, created_at=_now(), note=note)
    write_new(history.root / PINS / name / _own_name(), _lines(new_pin))
    return new_pin


def annotate(
    root: Path, text: str, *, at: str | None = None, breaks: bool = False, machine: str | None = None
) -> Annotation:
    """Adds a remark; with a break, every series starts anew there."""
    if not text.strip():
        raise HambenchError("an annotation needs a text")
    annotation = Annotation(
        created_at=_now(), at=_utc(at) if at else _now(), text=text.strip(), breaks=breaks, machine=machine
    )
    write_new(root / ANNOTATIONS / _own_name(), _lines(annotation))
    return annotation


def prune(history: History, *, keep: int) -> list[Path]:
    """Returns the files beyond the newest ``keep`` runs per machine and suite, except pinned ones; deletes nothing."""
    if keep < 1:
        raise HambenchError(f"keep must be >= 1, got {keep}")
    pinned = {each.run_id for each in history.pins.values()}
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in history.entries:
        groups.setdefault((entry.machine, entry.suite), []).append(entry)
    old = [entry for entries in groups.values() for entry in entries[:-keep]]
    return [history.paths[entry.run_id] for entry in old if entry.run_id not in pinned]


def find(history: History, run_id: str) -> Entry:
    """Finds the run with an id, or the only run whose id begins with it.

    Raises:
        UnknownNameError: If there is none, or more than one.
    """
    exact = [entry for entry in history.entries if entry.run_id == run_id]
    begins = exact or [entry for entry in history.entries if entry.run_id.startswith(run_id)]
    if len(begins) != 1:
        raise UnknownNameError("run", run_id, [entry.run_id for entry in history.entries])
    return begins[0]


def load_history(root: Path) -> History:
    """Loads every readable file; ``problems`` names the others.

    Raises:
        StoreError: If the folder does not exist.
    """
    if not root.is_dir():
        raise StoreError(
            f"there is no history in {root}: begin one with `hambench history add RUN --root {root}`"
        )
    problems: list[str] = []
    entries: dict[str, Entry] = {}
    paths: dict[str, Path] = {}
    for path, entry in _read_all(root / RUNS, "*/*/*.json", Entry, problems):
        damage = _damage(path, entry, entries)
        if damage:
            problems.append(f"{path}: {damage}")
        else:
            entries[entry.run_id], paths[entry.run_id] = entry, path
    pins: dict[str, Pin] = {}
    for _, stored in _read_all(root / PINS, "*/*.json", Pin, problems):
        if stored.name not in pins or pins[stored.name].created_at <= stored.created_at:
            pins[stored.name] = stored
    problems += [
        f"pin {name} names the run {stored.run_id}, which does not exist"
        for name, stored in pins.items()
        if stored.run_id not in entries
    ]
    annotations = [note for _, note in _read_all(root / ANNOTATIONS, "*.json", Annotation, problems)]
    return History(
        root=root,
        entries=tuple(sorted(entries.values(), key=lambda entry: (entry.created_at, entry.run_id))),
        pins=pins,
        annotations=tuple(sorted(annotations, key=lambda note: note.at)),
        paths=paths,
        problems=tuple(problems),
    )


def _damage(path: Path, entry: Entry, seen: Mapping[str, Entry]) -> str:
    if entry.schema_version > SCHEMA_VERSION:
        return f"schema {entry.schema_version}, this hambench reads up to {SCHEMA_VERSION}: upgrade hambench"
    if entry.digest != digest_of(entry):
        return "its content was changed after it was written"
    if path.parent.parent.name != entry.machine:
        return f"it lies under another machine than its own, {entry.machine}"
    if entry.run_id in seen:
        return f"the run {entry.run_id} is there twice"
    return ""


def _series_of(run: Run) -> dict[str, dict[str, Tracked]]:
    overall = {m.cell: m for m in measure_run(run, [ALL])}
    baselines = {cell.label: baseline_of(cell, run.header.cells) for cell in run.header.cells}
    series: dict[str, dict[str, Tracked]] = {}
    for cell, measurement in overall.items():
        vanilla = baselines[cell]
        for name in _ABSOLUTE:
            value = metric_value(measurement, name)
            if value is not None and measurement.num_samples:
                info = METRICS[name]
                series.setdefault(name, {})[cell] = Tracked(
                    value=float(value), unit=info.unit, better=info.better
                )
        if vanilla is None or cell == vanilla.label:
            continue
        for name in _RATIOS:
            ratio = ratio_to_baseline(run, cell, vanilla.label, name)
            if ratio is not None:
                tracked = Tracked(value=ratio.value, unit="× vanilla", better="higher")
                series.setdefault(f"{name}_ratio", {})[cell] = tracked
    return series


def _read_all(folder: Path, pattern: str, kind: type[T], problems: list[str]) -> list[tuple[Path, T]]:
    records = []
    for path in sorted(folder.glob(pattern)):
        if path.name.startswith("."):
            continue  # a file that another writer has not finished
        try:
            records.append((path, _read(path, kind)))
        except StoreError as error:
            problems.append(str(error))
    return records


def _read(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"{path}: not a history file: {error}") from error


def _lines(record: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def _own_name() -> str:
    return f"{re.sub(r'[^0-9T]', '', _now())[:15]}-{uuid.uuid4().hex[:8]}.json"


def _now() -> str:
    return now("microseconds")


def _utc(text: str) -> str:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise HambenchError(
            f"a time is ISO 8601, like 2026-01-31 or 2026-01-31T12:00:00, got {text!r}"
        ) from None
    return utc(moment, "microseconds")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "none"


def series_names(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """Returns every (metric, cell) that some entry tracks, ratios first."""
    names = dict.fromkeys(
        (metric, cell) for e in entries for metric, cells in e.series.items() for cell in cells
    )
    return sorted(names, key=lambda name: (not name[0].endswith("_ratio"), name))
