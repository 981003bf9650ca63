"""The thread that owns the model where several requests are answered together."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from hambench.decoding import DecodingMethod
from hambench.engine.loop import DecodeText
from hambench.engine.requests.batch import Ask, Batch, SequenceFailed, StepTaken
from hambench.serving.worker import (
    Failed,
    Finished,
    Job,
    ModelThread,
    Piece,
    QueueFullError,
    failure_of,
    internal_failure,
)

_Key = tuple[Job, int]
"""A job, and the index of one of its prompts."""


class BatchWorker(ModelThread):
    """Answers up to ``size`` prompts together; one that ends leaves its place to the next in the queue.

    Args:
        method: The decoding method, whose sessions share their forwards.
        decode_text: Converts ids to text, for stop strings.
        size: Maximum number of prompts at once.
        max_waiting: Maximum number of jobs that wait.
    """

    def __init__(
        self, method: DecodingMethod, decode_text: DecodeText, *, size: int, max_waiting: int
    ) -> None:
        super().__init__(method, decode_text, max_waiting=max_waiting)
        # the thread's own: a round, or the start of a session, never holds the lock
        self._batch: Batch[_Key] = Batch(method, size)
        self._size = size
        # number of prompts of each open job that are not done; jobs of which a prompt has had a place
        self._left: dict[Job, int] = {}
        self._begun: set[Job] = set()
        # prompts are in line only while all places are taken: a free one is taken at once
        self._line: deque[_Key] = deque()
        # a prompt keeps its place until the batch has dropped it; those in `_arrived` are not in the batch yet
        self._placed: set[_Key] = set()
        self._arrived: list[_Key] = []
        self._start()

    @property
    def num_waiting(self) -> int:
        """Number of jobs of which no prompt has a place yet."""
        with self._changed:
            return len(self._left.keys() - self._begun)

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        with self._changed:
            return bool(self._left)

    def submit(self, job: Job) -> None:
        """Queues a job.

        Raises:
            QueueFullError: If the queue is full.
            NotServingError: If the thread is ending or has ended.
        """
        with self._changed:
            self._check_serving()
            if len(self._placed) >= self._size and self.num_waiting >= self._max_waiting:
                raise QueueFullError(
                    f"the server answers {self._size} prompts together and {self.num_waiting} requests are waiting: "
                    "try again later"
                )
            self._left[job] = len(job.prompts)
            self._line.extend((job, index) for index in range(len(job.prompts)))
            self._take_places()

    def cancel(self, job: Job) -> None:
        """Cancels a job: prompts that are not in the batch at once, the others after the current round."""
        job.cancelled.set()
        with self._changed:
            self._leave(job, self._arrived)

    def _open_jobs(self) -> list[Job]:
        return list(self._left)

    def _forget_all(self) -> None:
        for each in (self._left, self._begun, self._line, self._placed, self._arrived):
            each.clear()

    def _work(self) -> None:
        while self._wait():
            try:
                self._go_on()
            except Exception as error:
                self._start_afresh(error)

    def _wait(self) -> bool:
        """Waits for a prompt with a place; returns false if the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._placed or self._closing)
            return bool(self._placed)

    def _go_on(self) -> None:
        """Drops what was cancelled, adds what has arrived, and runs a round."""
        with self._changed:
            gone = {job for job, _ in self._placed if job.cancelled.is_set()}
        for job in gone:
            self._drop(job)
        with self._changed:
            arrived, self._arrived = self._arrived, []
        for key in arrived:
            self._add(key)
        if self._batch.num_sequences:
            for event in self._batch.round():
                self._tell(event)

    def _take_places(self) -> None:
        """Gives the free places to the first in line; called under the lock."""
        while self._line and len(self._placed) < self._size:
            key = self._line.popleft()
            self._placed.add(key)
            self._arrived.append(key)
            self._begun.add(key[0])
        self._changed.notify()

    def _leave(self, job: Job, placed: Iterable[_Key]) -> None:
        """Frees places of a job and takes its other prompts out of the line; called under the lock."""
        self._placed -= {key for key in placed if key[0] is job}
        self._arrived = [key for key in self._arrived if key in self._placed]
        self._line = deque(key for key in self._line if key[0] is not job)
        if not any(each is job for each, _ in self._placed):
            self._left.pop(job, None)
            self._begun.discard(job)
        self._take_places()

    def _drop(self, job: Job) -> None:
        """Takes a job out of the batch and forgets it."""
        for index in range(len(job.prompts)):
            self._batch.drop((job, index))
        with self._changed:
            self._leave(job, list(self._placed))

    def _add(self, key: _Key) -> None:
        job, index = key
        if job not in self._left or job.cancelled.is_set():
            return
        ask = Ask(
            prompt_ids=job.prompts[index],
            params=job.params[index],
            eos_ids=job.eos_ids,
            stop=job.stop,
            decode_text=self._decode_text,
        )
        try:
            self._batch.add(key, ask)
        except Exception as error:
            self._fail(job, failure_of(error))

    def _tell(self, event: StepTaken[_Key] | SequenceFailed[_Key]) -> None:
        job, index = event.key
        if job not in self._left:
            return
        if isinstance(event, SequenceFailed):
            self._fail(job, failure_of(event.error))
            return
        job.tell(Piece(index, event.step))
        if event.finish is None:
            return
        with self._changed:
            self._left[job] -= 1
            self._placed.discard(event.key)
            if not self._left[job]:
                self._leave(job, ())
            self._take_places()
        # its place is free again before its client can ask for the next
        job.tell(Finished(index, event.finish))

    def _fail(self, job: Job, failure: Failed) -> None:
        self._drop(job)
        job.tell(failure)

    def _start_afresh(self, error: Exception) -> None:
        """Fails the jobs in the batch, whose state is unknown, and goes on with the others in a new batch."""
        with self._changed:
            failed = {job for job, _ in self._placed.difference(self._arrived)}
        self._batch = Batch(self._method, self._size)
        for job in failed:
            self._fail(job, internal_failure(error))
