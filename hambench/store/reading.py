"""Reads run folders, finished or not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hambench.errors import StoreError
from hambench.files import reason_of
from hambench.records import SCHEMA_VERSION, Fidelity, RunHeader, Sample, SampleRecord, Score, answer_key
from hambench.run_notes import note_of_text
from hambench.store.checks import misfit, misjudged, odd_reading, odd_spec
from hambench.store.names import FIDELITY, HEADER, PROMPTS, RECORDS, SCORES, TELEMETRY

T = TypeVar("T")
RecordKey = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Run:
    """A run as read from its folder, with all data for metrics, reports and comparisons."""

    path: Path
    header: RunHeader
    samples: dict[str, Sample]
    """Samples by id, in run order."""
    records: tuple[SampleRecord, ...]
    """Records including warm-ups, one per (cell, sample, repeat), in order of measurement."""
    scores: tuple[Score, ...]
    """The newest score of each (cell, sample, repeat, metric)."""
    telemetry: tuple[dict[str, Any], ...] = field(default=())
    fidelity: dict[str, Fidelity] = field(default_factory=dict)
    """The newest judgement of each distinct answer, by :func:`~hambench.records.answer_key`."""

    def judged(self, record: SampleRecord) -> Fidelity | None:
        """Returns the target's judgement of a record's answer; ``None`` without one."""
        if record.trace is None or not self.fidelity:
            return None
        found = self.fidelity.get(answer_key(record))
        return None if found is None or found.error is not None else found

    @property
    def measured(self) -> tuple[SampleRecord, ...]:
        """Records without warm-ups."""
        return tuple(record for record in self.records if not record.warmup)

    def answered(self, cell: str) -> tuple[SampleRecord, ...]:
        """Returns measured records of a cell with an answer, in order of measurement."""
        return tuple(record for record in self.of_cell(cell) if record.trace is not None)

    def of_cell(self, cell: str) -> tuple[SampleRecord, ...]:
        """Returns measured records of a cell, including failed ones, in order of measurement."""
        return tuple(record for record in self.measured if record.cell == cell)

    def priced(self, price_per_hour: float | None) -> Run:
        """The run with another price of its machine; ``None`` leaves its own."""
        if price_per_hour is None:
            return self
        return dataclasses.replace(
            self, header=dataclasses.replace(self.header, price_per_hour=price_per_hour)
        )

    @property
    def num_expected(self) -> int:
        """Number of records of a finished run."""
        return len(self.header.cells) * len(self.samples) * self.header.repeats

    @property
    def complete(self) -> bool:
        """Whether every sample of every cell has its record (an error counts as one)."""
        return len(self.measured) >= self.num_expected


def record_key(record: SampleRecord) -> RecordKey:
    """Returns the key that identifies a record within its run."""
    return (record.cell, record.sample_id, record.repeat)


def load_run(path: str | Path) -> Run:
    """Reads a run folder, finished or not.

    Raises:
        StoreError: If the folder is not a run, was written by a newer hambench, or contains a broken line.
    """
    folder = Path(path)
    header = load_header(folder)
    # told before the samples are read: a run that goes on may add one meanwhile, and records of it
    ends = {name: file.stat().st_size for name in (RECORDS, SCORES) if (file := folder / name).exists()}
    samples = {sample.sample_id: sample for sample in _read_lines(folder / PROMPTS, Sample)}
    if header.num_whole is not None and len(samples) >= header.num_whole:
        # written when the run began: it has added the rest of the samples since
        notes = tuple(note for note in header.notes if note.kind != "partial")
        header = dataclasses.replace(header, notes=notes)
    cells = {cell.label for cell in header.cells}

    def check(item: SampleRecord | Score) -> str | None:
        return misfit(item, cells, samples)

    newest: dict[RecordKey, SampleRecord] = {}
    warmups = []
    for record in _read_lines(folder / RECORDS, SampleRecord, check, ends.get(RECORDS, 0)):
        if record.warmup:
            warmups.append(record)
        else:
            newest[record_key(record)] = record
    scores = {
        (s.cell, s.sample_id, s.repeat, s.metric): s
        for s in _read_lines(folder / SCORES, Score, check, ends.get(SCORES, 0))
    }
    telemetry = _read_lines(folder / TELEMETRY, dict[str, Any], odd_reading)
    answers: dict[str, SampleRecord] = {}
    if (folder / FIDELITY).exists():
        told = (record for record in (*warmups, *newest.values()) if record.trace is not None)
        answers = {answer_key(record): record for record in told}

    def check_judgement(item: Fidelity) -> str | None:
        return misjudged(item, answers)

    fidelity = {item.answer: item for item in _read_lines(folder / FIDELITY, Fidelity, check_judgement)}
    return Run(
        path=folder,
        header=header,
        samples=samples,
        records=(*warmups, *newest.values()),
        scores=tuple(scores.values()),
        telemetry=tuple(telemetry),
        fidelity=fidelity,
    )


def list_runs(root: str | Path) -> list[Path]:
    """Returns the run folders directly under ``root``, oldest first."""
    root = Path(root)
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if (path / HEADER).is_file()]
    return sorted(found, key=lambda path: (path / HEADER).stat().st_mtime)


def _with_kinds(stored: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored header with kinds of notes, which were only text before 0.2."""
    notes = stored.get("notes")
    if not isinstance(notes, list):
        return stored
    with_kinds = [dataclasses.asdict(note_of_text(note)) if isinstance(note, str) else note for note in notes]
    return {**stored, "notes": with_kinds}


def load_header(folder: Path) -> RunHeader:
    """Reads only the header of a run.

    Raises:
        StoreError: If the folder is not a run, or its header is invalid.
    """
    path = folder / HEADER
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise StoreError(f"{folder} is not a run folder: it has no {HEADER}") from error
    except OSError as error:
        raise StoreError(f"can't read {path}: {reason_of(error)}") from error
    try:
        stored = msgspec.json.decode(raw, type=dict[str, Any])
        version = stored.get("schema_version")
        if not isinstance(version, int):
            raise StoreError(f"{path}: schema_version must be an integer, got {version!r}")
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{folder} has run schema {version}, this hambench reads up to {SCHEMA_VERSION}: upgrade hambench"
            )
        header = msgspec.convert(_with_kinds(stored), RunHeader)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"{path} is not a run header: {error}") from error
    if reason := odd_spec(header.suite_spec):
        raise StoreError(f"{path}: {reason}")
    labels = [cell.label for cell in header.cells]
    if not labels:
        raise StoreError(f"{path} names no cells, so there is nothing to measure")
    if len(set(labels)) < len(labels):
        raise StoreError(f"{path} names a cell twice: each needs its own label")
    if header.repeats < 1:
        raise StoreError(f"{path}: repeats must be >= 1, got {header.repeats}")
    return header


def _read_lines(
    path: Path, kind: type[T], misfit: Callable[[T], str | None] = lambda _: None, end: float = math.inf
) -> Iterator[T]:
    """Yields the whole lines of a file up to its byte ``end``."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"can't read {path}: {reason_of(error)}") from error
    decoder = msgspec.json.Decoder(kind)
    with file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n") or file.tell() > end:
                return  # torn by a kill, or newer
            try:
                item = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise StoreError(f"{path}, line {number}: {error}") from error
            if reason := misfit(item):
                raise StoreError(f"{path}, line {number}: {reason}")
            yield item
