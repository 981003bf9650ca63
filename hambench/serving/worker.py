"""The thread that owns the model, with a bounded queue; here it runs one request at a time."""

from __future__ import annotations

import atexit
import logging
import threading
import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hambench.decoding import DecodingMethod, SamplingParams
from hambench.engine.loop import DecodeText, stream
from hambench.errors import HambenchError, NotFiniteError
from hambench.records import FinishReason, StepRecord

log = logging.getLogger(__name__)


class QueueFullError(HambenchError):
    """Raised if the queue is full."""


class NotServingError(HambenchError):
    """Raised if the thread that runs the model is ending or has ended."""


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
    """One request, whose prompts are answered in order or, in a batch, together."""

    prompts: Sequence[Sequence[int]]
    """Token ids of each prompt."""
    params: Sequence[SamplingParams]
    """Limit and sampling of each prompt."""
    eos_ids: Collection[int]
    stop: Sequence[str]
    emit: Callable[[Event], None]
    """Receives the job's events, in the worker's thread."""
    cancelled: threading.Event = field(default_factory=threading.Event)

    def tell(self, event: Event) -> None:
        """Emits an event; if the receiver raises, logs that and cancels the job, because other jobs need the thread."""
        try:
            self.emit(event)
        except Exception as error:
            log.error("a request is cancelled, because its events can't be delivered", exc_info=error)
            self.cancelled.set()


class ModelThread(ABC):
    """A thread that owns the model and answers jobs.

    It ends before the interpreter does: torch aborts the process if its calls return to an interpreter that is gone.
    """

    def __init__(self, method: DecodingMethod, decode_text: DecodeText, *, max_waiting: int) -> None:
        if max_waiting < 0:
            raise ValueError(f"max_waiting must be >= 0, got {max_waiting}")
        self._method, self._decode_text, self._max_waiting = method, decode_text, max_waiting
        self._changed = threading.Condition()
        self._closing = False
        self._death: Failed | None = None
        self._thread = threading.Thread(target=self._run, name="hambench-serve", daemon=True)

    @property
    @abstractmethod
    def num_waiting(self) -> int:
        """Number of jobs in the queue."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether a job is running."""

    @property
    def state(self) -> Literal["ok", "closing", "failed"]:
        """Whether jobs are accepted, and if not, why."""
        return "failed" if self._death is not None else "closing" if self._closing else "ok"

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Queues a job.

        Raises:
            QueueFullError: If the queue is full.
            NotServingError: If the thread is ending or has ended.
        """

    @abstractmethod
    def cancel(self, job: Job) -> None:
        """Cancels a job."""

    def close(self) -> None:
        """Ends the thread after the queued jobs."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def stop(self) -> None:
        """Cancels all jobs and waits until the thread has ended."""
        # in a child process there is no such thread, and its lock may be held forever
        if self._thread.is_alive():
            with self._changed:
                for job in self._open_jobs():
                    job.cancelled.set()
            self.close()
            self._thread.join()

    def _start(self) -> None:
        atexit.register(self.stop)
        self._thread.start()

    def _check_serving(self) -> None:
        if self._death is not None:
            raise NotServingError(f"the server's model thread has ended ({self._death.message}): restart it")
        if self._closing:
            raise NotServingError("the server is closing")

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            # whoever still waits would wait forever
            with self._changed:
                self._death = internal_failure(error)
                jobs = self._open_jobs()
                self._forget_all()
            for job in jobs:
                job.tell(self._death)
        finally:
            atexit.unregister(self.stop)

    @abstractmethod
    def _work(self) -> None:
        """Answers jobs until the thread is closed."""

    @abstractmethod
    def _open_jobs(self) -> list[Job]:
        """Returns the jobs that are not done; called under the lock."""

    @abstractmethod
    def _forget_all(self) -> None:
        """Forgets all jobs; called under the lock."""


class Worker(ModelThread):
    """Answers jobs one at a time, in order of arrival.

    Args:
        method: The decoding method.
        decode_text: Converts ids to text, for stop strings.
        max_waiting: Maximum number of jobs that wait behind the running one.
    """

    def __init__(self, method: DecodingMethod, decode_text: DecodeText, *, max_waiting: int) -> None:
        super().__init__(method, decode_text, max_waiting=max_waiting)
        self._line: deque[Job] = deque()
        self._running: Job | None = None
        self._start()

    @property
    def num_waiting(self) -> int:
        """Number of jobs behind the running one."""
        return max(0, len(self._open_jobs()) - 1)

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return bool(self._open_jobs())

    def submit(self, job: Job) -> None:
        """Queues a job.

        Raises:
            QueueFullError: If the queue is full.
            NotServingError: If the thread is ending or has ended.
        """
        with self._changed:
            self._check_serving()
            if len(self._open_jobs()) > self._max_waiting:
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

    def _open_jobs(self) -> list[Job]:
        with self._changed:
            return [*([] if self._running is None else [self._running]), *self._line]

    def _forget_all(self) -> None:
        self._running = None
        self._line.clear()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            self._answer(job)
            with self._changed:
                self._running = None

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._line or self._closing)
            if not self._line:
                return None
            self._running = self._line.popleft()
            return self._running

    def _answer(self, job: Job) -> None:
        try:
            for index, prompt in enumerate(job.prompts):
                self._decode(job, index, prompt)
        except Exception as error:
            job.tell(failure_of(error))

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
                job.tell(Finished(index, end.value))
                return
            job.tell(Piece(index, step))
        run.close()


def failure_of(error: Exception) -> Failed:
    """Returns what a client is told of an exception; logs what it is not told."""
    if isinstance(error, NotFiniteError):
        log.error("request failed: %s", error)
        return Failed(str(error), by_request=False)
    if isinstance(error, HambenchError | ValueError):
        return Failed(str(error), by_request=True)
    return internal_failure(error)


def internal_failure(error: BaseException) -> Failed:
    """Returns what a client is told of an exception that no request caused; logs the exception."""
    # send the client only a number, because a message of ours could contain a path
    number = uuid.uuid4().hex[:8]
    log.error("request failed (%s)", number, exc_info=error)
    return Failed(f"internal error {number}", by_request=False)
