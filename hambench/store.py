"""The run store: one folder a run, append-only, readable after being killed at any moment.

``prompts.jsonl`` (every sample asked) and ``run.json`` (the header) are written first and never change;
``records.jsonl`` grows by one line per (sample, cell, repeat), ``scores.jsonl`` by one per score and
``telemetry.jsonl`` by one per reading of the machine. A line is complete when it ends in a newline: what a kill leaves
behind it is ignored by readers and cut by the next writer.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
from filelock import FileLock, Timeout

from hambench.errors import StoreError
from hambench.records import SCHEMA_VERSION, RunHeader, Sample, SampleRecord, Score

HEADER, PROMPTS, RECORDS, SCORES, TELEMETRY = (
    "run.json",
    "prompts.jsonl",
    "records.jsonl",
    "scores.jsonl",
    "telemetry.jsonl",
)

T = TypeVar("T")
RecordKey = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Run:
    """A run as read back from its folder: everything a metric, report or comparison may use."""

    path: Path
    header: RunHeader
    samples: dict[str, Sample]
    """By sample id, in the order asked."""
    records: tuple[SampleRecord, ...]
    """Warm-ups included; one per (cell, sample, repeat), in the order measured."""
    scores: tuple[Score, ...]
    """The newest score of each (cell, sample, repeat, metric)."""
    telemetry: tuple[dict[str, Any], ...] = field(default=())

    @property
    def measured(self) -> tuple[SampleRecord, ...]:
        """Records that count: no warm-ups."""
        return tuple(record for record in self.records if not record.warmup)

    @property
    def num_expected(self) -> int:
        """Records of a finished run."""
        return len(self.header.cells) * len(self.samples) * self.header.repeats

    @property
    def complete(self) -> bool:
        """Whether every sample of every cell has its record (an error counts as one)."""
        return len(self.measured) >= self.num_expected


def record_key(record: SampleRecord) -> RecordKey:
    """What identifies a record within its run."""
    return (record.cell, record.sample_id, record.repeat)


def load_run(path: str | Path) -> Run:
    """Reads a run folder, finished or not.

    Raises:
        StoreError: If the folder is no run, was written by a newer hambench, or holds a broken line.
    """
    folder = Path(path)
    header = _load_header(folder)
    samples = {sample.sample_id: sample for sample in _read_lines(folder / PROMPTS, Sample)}
    newest: dict[RecordKey, SampleRecord] = {}
    warmups = []
    for record in _read_lines(folder / RECORDS, SampleRecord):
        if record.warmup:
            warmups.append(record)
        else:
            newest[record_key(record)] = record
    scores = {(s.cell, s.sample_id, s.repeat, s.metric): s for s in _read_lines(folder / SCORES, Score)}
    telemetry: Iterator[dict[str, Any]] = _read_lines(folder / TELEMETRY, dict[str, Any])
    return Run(
        path=folder,
        header=header,
        samples=samples,
        records=(*warmups, *newest.values()),
        scores=tuple(scores.values()),
        telemetry=tuple(telemetry),
    )


def list_runs(root: str | Path) -> list[Path]:
    """Run folders directly under ``root``, oldest first."""
    root = Path(root)
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if (path / HEADER).is_file()]
    return sorted(found, key=lambda path: (path / HEADER).stat().st_mtime)


def refuse_existing(folder: Path) -> None:
    """Keeps a run from being overwritten.

    Raises:
        StoreError: If the folder already holds one.
    """
    if (folder / HEADER).exists():
        raise StoreError(f"{folder} already holds a run; resume it with `hambench run --resume {folder}`")


class RunWriter:
    """The one writer of a run folder; a context manager that holds the folder's lock.

    Args:
        folder: The run folder; created by :meth:`create`, existing for :meth:`resume`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / ".lock")

    @classmethod
    def create(cls, folder: str | Path, header: RunHeader, samples: Iterable[Sample]) -> RunWriter:
        """Makes the folder and writes prompts and header.

        Raises:
            StoreError: If the folder already holds a run, or can't be written.
        """
        folder = Path(folder)
        refuse_existing(folder)
        with _disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lines = b"".join(msgspec.json.encode(sample) + b"\n" for sample in samples)
            _write_atomically(folder / PROMPTS, lines)
            # the header comes last: a folder with a header is a complete, resumable run
            _write_atomically(
                folder / HEADER, msgspec.json.format(msgspec.json.encode(header), indent=2) + b"\n"
            )
        return cls(folder)

    @classmethod
    def resume(cls, folder: str | Path) -> RunWriter:
        """Opens an existing run for appending; a line torn by a kill is cut."""
        folder = Path(folder)
        _load_header(folder)
        for name in (RECORDS, SCORES, TELEMETRY):
            _cut_torn_line(folder / name)
        return cls(folder)

    def __enter__(self) -> Self:
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreError(
                f"another hambench process is writing to {self.folder}; wait for it to end"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def append_record(self, record: SampleRecord) -> None:
        """Adds one record, on the disk when this returns."""
        self._append(RECORDS, [record])

    def append_records(self, records: Iterable[SampleRecord]) -> None:
        """Adds many records at once, on the disk when this returns; a kill on the way may leave the first of them."""
        self._append(RECORDS, records)

    def append_scores(self, scores: Iterable[Score]) -> None:
        """Adds scores; a newer score of the same answer and metric supersedes an older one for readers."""
        self._append(SCORES, scores)

    def append_telemetry(self, reading: dict[str, Any]) -> None:
        """Adds one reading of the machine (bandwidth, load, clocks, energy)."""
        self._append(TELEMETRY, [reading])

    def _append(self, name: str, items: Iterable[Any]) -> None:
        lines = b"".join(msgspec.json.encode(item) + b"\n" for item in items)
        with _disk_errors(self.folder), (self.folder / name).open("ab") as file:
            before = file.tell()
            try:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                # half a line would hide behind the next one: cut back to the last whole line
                os.ftruncate(file.fileno(), before)
                raise


def _load_header(folder: Path) -> RunHeader:
    path = folder / HEADER
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise StoreError(f"{folder} is not a run folder: it has no {HEADER}") from error
    except OSError as error:
        raise StoreError(f"can't read {path}: {error.strerror}") from error
    try:
        version = msgspec.json.decode(raw, type=dict[str, Any]).get("schema_version")
        if not isinstance(version, int):
            raise StoreError(f"{path}: schema_version must be an integer, got {version!r}")
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{folder} has run schema {version}, this hambench reads up to {SCHEMA_VERSION}: upgrade hambench"
            )
        return msgspec.json.decode(raw, type=RunHeader)
    except msgspec.DecodeError as error:
        raise StoreError(f"{path} is not a run header: {error}") from error


def _read_lines(path: Path, kind: type[T]) -> Iterator[T]:
    if not path.exists():
        return
    decoder = msgspec.json.Decoder(kind)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # torn by a kill
            try:
                yield decoder.decode(line)
            except msgspec.DecodeError as error:
                raise StoreError(f"{path}, line {number}: {error}") from error


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class _disk_errors:
    """Turns an ``OSError`` of a run folder into one clear line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, OSError):
            return
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise StoreError(
            f"can't write to {self.folder}: {reason}; what was stored before is intact"
        ) from error
