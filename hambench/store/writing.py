"""Writes run folders: each line is on disk before the next, and whole or cut."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from filelock import FileLock, Timeout

from hambench.errors import FolderTakenError, StoreError
from hambench.files import disk_errors, make_folders, write_bytes
from hambench.records import Fidelity, RunHeader, Sample, SampleRecord, Score
from hambench.store.names import FIDELITY, HEADER, LOCK, PROMPTS, RECORDS, SCORES, TELEMETRY
from hambench.store.reading import load_header


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


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
