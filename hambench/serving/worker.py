"""The thread that owns the model: runs one request at a time, with a bounded queue."""

from __future__ import annotations

import logging
import threading
import uuid
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from hambench.decoding import DecodingMethod, SamplingParams
from hambench.engine.loop import DecodeText, stream
from hambench.errors import HambenchError, NotFiniteError
from hambench.records import FinishReason, StepRecord

log = logging.getLogger(__name__)


class QueueFullError(HambenchError):
    """Raised if the queue is full."""


@dataclass(frozen=True)
class Piece:
    """One step of one prompt of a job."""

    index: int
    step: StepRecord


@dataclass(frozen=True)
class Finished:
    """The end of one prompt's answer."""

    index: int
    finish: FinishReason


@dataclass(frozen=True)
class Failed:
    """The failure of a job."""

    message: str
    by_request: bool
    """Whether the request caused the failure, not the server."""


Event = Piece | Finished | Failed


@dataclass(frozen=True, eq=False)
class Job:
    """One request, whose prompts are answered in sequence."""

    prompts: Sequence[Sequence[int]]
    params: Sequence[SamplingParams]
    """Token ids of each prompt."""
    eos_ids: Collection[int]
    stop: Sequence[str]
    emit: Callable[[Event], None]
    """Receives the job's events, in the worker's thread."""
    cancelled: threading.Event = field(default_factory=threading.Event)


class Worker:
    """Answers jobs in order of arrival, in its own thread.

    Args:
        method: The decoding method.
        decode_text: Converts ids to text, for stop strings.
        max_waiting: Maximum number of jobs that wait behind the running one.
    """

    def __init__(self, method: DecodingMethod, decode_text: DecodeText, *, max_waiting: int) -> None:
        if max_waiting < 0:
            raise ValueError(f"max_waiting must be >= 0, got {max_waiting}")
        self._method, self._decode_text, self._max_waiting = method, decode_text, max_waiting
        self._line: deque[Job] = deque()
        self._changed = threading.Condition()
        self._running = self._closing = False
        self._thread = threading.Thread(target=self._work, name="hambench-serve", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Number of jobs behind the running one."""
        return max(0, self._num_open - 1)

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return self._num_open > 0

    @property
    def _num_open(self) -> int:
        return self._running + len(self._line)

    def submit(self, job: Job) -> None:
        """Queues a job.

        Raises:
            QueueFullError: If the queue is full.
        """
        with self._changed:
            if self._num_open > self._max_waiting:
                raise QueueFullError(
                    f"the server answers one request at a time and {self.num_waiting} are waiting: try again later"
                )
            self._line.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Cancels a job: at once if it is queued, else after the current step."""
        job.cancelled.set()
        with self._changed:
            if job in self._line:
                self._line.remove(job)

    def close(self) -> None:
        """Ends the thread after the queued jobs."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._answer(job)
            finally:
                with self._changed:
                    self._running = False

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._line or self._closing)
            if not self._line:
                return None
            self._running = True
            return self._line.popleft()

    def _answer(self, job: Job) -> None:
        try:
            for index, prompt in enumerate(job.prompts):
                self._decode(job, index, prompt)
        except Exception as error:
            job.emit(failure_of(error))

    def _decode(self, job: Job, index: int, prompt: Sequence[int]) -> None:
        run = stream(
            self._method,
            prompt,
            job.params[index],
            eos_ids=job.eos_ids,
            stop=job.stop,
            decode_text=self._decode_text,
        )
        while not job.cancelled.is_set():
            try:
                step = next(run)
            except StopIteration as end:
                job.emit(Finished(index, end.value))
                return
            job.emit(Piece(index, step))
        run.close()


def failure_of(error: Exception) -> Failed:
    """Returns what a client is told of an exception; logs what it is not told."""
    if isinstance(error, NotFiniteError):
        log.error("request failed: %s", error)
        return Failed(str(error), by_request=False)
    if isinstance(error, HambenchError | ValueError):
        return Failed(str(error), by_request=True)
    # send the client only a number, because a message of ours could contain a path
    number = uuid.uuid4().hex[:8]
    log.error("request failed (%s)", number, exc_info=error)
    return Failed(f"internal error {number}", by_request=False)
