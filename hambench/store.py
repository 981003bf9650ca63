"""The run store: one append-only folder per run, readable after a kill at any moment.

``prompts.jsonl`` (the samples) and ``run.json`` (the header) are written first. The header never changes; a run with
time left of its budget adds samples, each before its first record. ``records.jsonl`` grows by one line per (sample,
cell, repeat), ``scores.jsonl`` by one per score, ``telemetry.jsonl`` by one per reading of the machine, and
``fidelity.jsonl`` by one per distinct answer that the target has judged. A line is complete if it ends in a newline.
Readers ignore an incomplete last line after a kill, and the next writer cuts it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
from filelock import FileLock, Timeout

from hambench._store_checks import misfit, misjudged, odd_reading, odd_spec
from hambench.errors import FolderTakenError, StoreError
from hambench.files import disk_errors, make_folders, reason_of, write_bytes
from hambench.records import (
    SCHEMA_VERSION,
    Fidelity,
    RunHeader,
    Sample,
    SampleRecord,
    Score,
    answer_key,
)
from hambench.run_notes import note_of_text

HEADER, PROMPTS, RECORDS, SCORES, TELEMETRY, FIDELITY = (
    "run.json",
    "prompts.jsonl",
    "records.jsonl",
    "scores.jsonl",
    "telemetry.jsonl",
    "fidelity.jsonl",
)
LOCK = ".lock"

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


def refuse_existing(folder: Path) -> None:
    """Prevents overwriting a run.

    Raises:
        FolderTakenError: If the folder already holds one.
    """
    with disk_errors(folder):
        is_run = (folder / HEADER).exists()
    if is_run:
        raise FolderTakenError(
            f"{folder} already holds a run; resume it with `hambench run --resume {folder}`"
        )


class RunWriter:
    """The only writer of a run folder; a context manager that holds the folder's lock.

    Args:
        folder: The run folder; :meth:`create` makes it, :meth:`resume` needs an existing one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / LOCK)
        self._is_claim = self._is_resumed = False
        self._made: list[Path] = []

    @classmethod
    def create(cls, folder: str | Path, header: RunHeader, samples: Iterable[Sample]) -> RunWriter:
        """Makes the folder and writes prompts and header.

        Raises:
            StoreError: If the folder already holds a run, or can't be written.
        """
        folder = Path(folder)
        refuse_existing(folder)
        writer = cls(folder)
        writer.begin(header, samples)
        return writer

    @classmethod
    def claim(cls, folder: str | Path) -> RunWriter:
        """Returns a writer of a run without a header, which keeps other writers out during the work before it.

        A claim that is left without :meth:`begin` leaves no folder behind.

        Raises:
            StoreError: If the folder already holds a run.
        """
        folder = Path(folder)
        refuse_existing(folder)
        writer = cls(folder)
        writer._is_claim = True
        return writer

    def begin(self, header: RunHeader, samples: Iterable[Sample]) -> None:
        """Writes prompts and header.

        Raises:
            StoreError: If they can't be written.
        """
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        lines = b"".join(msgspec.json.encode(sample) + b"\n" for sample in samples)
        write_bytes(self.folder / PROMPTS, lines, durable=True)
        # the header comes last: a folder with a header is a complete, resumable run
        content = msgspec.json.format(msgspec.json.encode(header), indent=2) + b"\n"
        write_bytes(self.folder / HEADER, content, durable=True)

    @classmethod
    def resume(cls, folder: str | Path) -> RunWriter:
        """Returns a writer that appends to an existing run; entering it cuts an incomplete last line."""
        folder = Path(folder)
        load_header(folder)
        writer = cls(folder)
        writer._is_resumed = True
        return writer

    def __enter__(self) -> Self:
        with disk_errors(self.folder):
            if self._is_claim:
                self._made = make_folders(self.folder)
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise FolderTakenError(
                    f"another hambench process is writing to {self.folder}; wait for it to end"
                ) from error
        try:
            if self._is_claim:
                refuse_existing(self.folder)  # of one that ended since this one looked
            if self._is_resumed:
                # needs the lock, because it could cut a line that another process is writing
                with disk_errors(self.folder):
                    for name in (PROMPTS, RECORDS, SCORES, TELEMETRY, FIDELITY):
                        _cut_torn_line(self.folder / name)
        except StoreError:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
        if self._is_claim and not (self.folder / HEADER).exists():
            # rmdir deletes only an empty folder
            with contextlib.suppress(OSError):
                (self.folder / LOCK).unlink(missing_ok=True)
                for made in self._made:
                    made.rmdir()

    def append_samples(self, samples: Iterable[Sample]) -> None:
        """Adds samples to the run and syncs them to disk: their records come later."""
        self._append(PROMPTS, samples)

    def append_record(self, record: SampleRecord) -> None:
        """Adds one record and syncs it to disk."""
        self._append(RECORDS, [record])

    def append_records(self, records: Iterable[SampleRecord]) -> None:
        """Adds many records at once and syncs them to disk; a kill meanwhile may leave only the first of them."""
        self._append(RECORDS, records)

    def append_scores(self, scores: Iterable[Score]) -> None:
        """Adds scores; for readers, a newer score of the same answer and metric replaces an older one."""
        self._append(SCORES, scores)

    def append_fidelity(self, judgements: Iterable[Fidelity]) -> None:
        """Adds judgements of distinct answers; a newer one of the same answer replaces an older one."""
        self._append(FIDELITY, judgements)

    def append_telemetry(self, reading: dict[str, Any]) -> None:
        """Adds one reading of the machine (bandwidth, load, clocks, energy)."""
        self._append(TELEMETRY, [reading])

    def _append(self, name: str, items: Iterable[Any]) -> None:
        lines = b"".join(msgspec.json.encode(item) + b"\n" for item in items)
        with disk_errors(self.folder), (self.folder / name).open("ab") as file:
            before = file.tell()
            try:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                # half a line would merge with the next one, so cut back to the last whole line
                os.ftruncate(file.fileno(), before)
                raise


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


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
