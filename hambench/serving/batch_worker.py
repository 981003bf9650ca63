"""The thread that owns the model where several requests are answered together."""

from __future__ import annotations

import threading
from collections import deque

from hambench.decoding import DecodingMethod
from hambench.engine.loop import DecodeText
from hambench.engine.requests.batch import Ask, Batch, SequenceFailed, StepTaken
from hambench.serving.worker import Finished, Job, Piece, QueueFullError, failure_of

_Key = tuple[int, int]
"""A job's number, and the place of the prompt in it."""


class BatchWorker:
    """Answers up to ``size`` prompts together; one that ends leaves its place to the next in the queue.

    It has the calls of :class:`hambench.serving.worker.Worker`.

    Args:
        method: The decoding method, whose sessions share their forwards.
        decode_text: Converts ids to text, for stop strings.
        size: Maximum number of prompts at once.
        max_waiting: Maximum number of jobs that wait.
    """

    def __init__(
        self, method: DecodingMethod, decode_text: DecodeText, *, size: int, max_waiting: int
    ) -> None:
        if max_waiting < 0:
            raise ValueError(f"max_waiting must be >= 0, got {max_waiting}")
        self._batch: Batch[_Key] = Batch(method, size)
        self._decode_text, self._size, self._max_waiting = decode_text, size, max_waiting
        # prompts that wait for a place, in order; jobs that are not done, by number
        self._line: deque[_Key] = deque()
        self._jobs: dict[int, Job] = {}
        self._left: dict[int, int] = {}
        self._begun: set[int] = set()
        self._next_number = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="hambench-serve", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Number of jobs of which no prompt has a place yet."""
        with self._changed:
            return len(self._jobs.keys() - self._begun)

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return bool(self._jobs)

    def submit(self, job: Job) -> None:
        """Queues a job.

        Raises:
            QueueFullError: If the queue is full.
        """
        with self._changed:
            # places that are free now are taken before anybody waits
            free = max(0, self._size - self._batch.num_sequences - len(self._line))
            if not free and self.num_waiting >= self._max_waiting:
                raise QueueFullError(
                    f"the server answers {self._size} prompts together and {self.num_waiting} requests are waiting: "
                    "try again later"
                )
            number = self._next_number
            self._next_number += 1
            self._jobs[number], self._left[number] = job, len(job.prompts)
            self._line.extend((number, index) for index in range(len(job.prompts)))
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Cancels a job: at once if it is queued, else after the current round."""
        job.cancelled.set()
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Ends the thread after the queued jobs."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    return
                self._forget_cancelled()
                # under the lock: a prompt that is in neither the line nor the batch would look like a free place
                for key in self._take_places():
                    self._add(key)
            if self._batch.num_sequences:
                for event in self._batch.round():
                    self._tell(event)

    def _take_places(self) -> list[_Key]:
        free = self._size - self._batch.num_sequences
        keys = [self._line.popleft() for _ in range(min(free, len(self._line)))]
        self._begun.update(number for number, _ in keys)
        return keys

    def _forget_cancelled(self) -> None:
        for number in [number for number, job in self._jobs.items() if job.cancelled.is_set()]:
            self._end(number)

    def _end(self, number: int) -> None:
        """Forgets a job and everything of it."""
        job = self._jobs.pop(number, None)
        for index in range(len(job.prompts) if job else 0):
            self._batch.drop((number, index))
        self._line = deque(key for key in self._line if key[0] != number)
        self._left.pop(number, None)
        self._begun.discard(number)

    def _add(self, key: _Key) -> None:
        number, index = key
        job = self._jobs.get(number)
        if job is None:
            return
        try:
            self._batch.add(
                key,
                Ask(
                    prompt_ids=job.prompts[index],
                    params=job.params[index],
                    eos_ids=job.eos_ids,
                    stop=job.stop,
                    decode_text=self._decode_text,
                ),
            )
        except Exception as error:
            self._fail(number, error)

    def _tell(self, event: StepTaken[_Key] | SequenceFailed[_Key]) -> None:
        number, index = event.key
        job = self._jobs.get(number)
        if job is None:
            return
        if isinstance(event, SequenceFailed):
            self._fail(number, event.error)
            return
        job.emit(Piece(index, event.step))
        if event.finish is not None:
            job.emit(Finished(index, event.finish))
            with self._changed:
                self._left[number] -= 1
                if not self._left[number]:
                    self._end(number)

    def _fail(self, number: int, error: Exception) -> None:
        job = self._jobs[number]
        with self._changed:
            self._end(number)
        job.emit(failure_of(error))
