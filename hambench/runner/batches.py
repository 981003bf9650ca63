"""The records of a cell that decodes several samples together."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from hambench.decoding import DecodingMethod
from hambench.engine.loop import Clock
from hambench.engine.requests.batch import Ask, Batch, SequenceFailed
from hambench.errors import HambenchError
from hambench.machine.load import CpuLoadMeter, free_memory_bytes, reset_peak_memory
from hambench.records import Cell, GenerationTrace, Sample, SampleRecord, StepRecord
from hambench.runner.conversations import prompt_sizes
from hambench.runner.work import Job, Opening, torch_threads

if TYPE_CHECKING:
    from hambench.models.target import TargetModel


class Maker(Protocol):
    """Asks a sample and makes its record; :class:`hambench.runner.generator.Generator` is one."""

    def ask(self, opening: Opening) -> dict[str, Any]:
        """Returns what is asked."""

    def finished(self, opening: Opening, trace: GenerationTrace) -> SampleRecord:
        """Returns the record of an answer."""


def batch_records(
    maker: Maker,
    method: DecodingMethod,
    jobs: Sequence[Job],
    *,
    device: str,
    clock: Clock = time.perf_counter,
) -> Iterator[tuple[Job, SampleRecord]]:
    """Makes the records of one cell in its batch: each when its answer ends, the next sample in its place.

    A timing is not taken again: alone, or among other neighbours, it would be another one.

    Args:
        maker: Asks and finishes each record.
        method: The cell's method, built.
        jobs: All of one cell.
        device: That the model runs on.
        clock: Returns seconds from any fixed point.
    """
    cell = jobs[0].cell
    batch: Batch[int] = Batch(method, cell.batch, clock=clock)
    waiting, openings = list(enumerate(jobs)), dict[int, Opening]()
    steps: dict[int, list[StepRecord]] = {}
    num_prompt: dict[int, int] = {}
    reset_peak_memory(device)
    while waiting or batch.num_sequences:
        while batch.has_room and (index := _next_waiting(waiting, openings)) is not None:
            opening = Opening(jobs[index])
            try:
                ask = maker.ask(opening)
                batch.add(index, Ask(**ask))
            except Exception as error:
                yield jobs[index], opening.failed(error)
                continue
            opening.begin((), CpuLoadMeter())
            openings[index], steps[index], num_prompt[index] = opening, [], len(ask["prompt_ids"])
        # between two rounds others may ask torch for other threads
        with torch_threads(cell.threads):
            events = batch.round()
        for event in events:
            opening = openings[event.key]
            if isinstance(event, SequenceFailed):
                yield jobs[event.key], opening.failed(event.error)
            else:
                steps[event.key].append(event.step)
                if event.finish is None:
                    continue
                opening.end()
                trace = GenerationTrace(
                    prompt_tokens=num_prompt[event.key], steps=tuple(steps[event.key]), finish=event.finish
                )
                yield jobs[event.key], maker.finished(opening, trace)
            del openings[event.key], steps[event.key]


def refuse_too_large(
    cells: Sequence[tuple[Cell, DecodingMethod]],
    samples: Sequence[Sample],
    target: TargetModel,
    count: Callable[[str], int],
) -> None:
    """Refuses a batch whose caches would not fit into memory.

    Args:
        cells: Of the run, each with its method, built.
        samples: What is asked.
        target: The loaded model.
        count: Tokens of a text.

    Raises:
        HambenchError: With the largest batch that would fit.
    """
    free = free_memory_bytes(str(target.device))
    own_cache = target.llama.new_cache(1).bytes_per_slot
    tokens = prompt_sizes(
        samples,
        lambda sample: count(sample.prompt),
        longest_answer=max(cell.max_new_tokens or 0 for cell, _ in cells),
    )
    for cell, method in cells:
        if cell.batch == 1:
            continue
        per_position = getattr(method, "kv_bytes_per_position", own_cache)
        longest: dict[str, int] = {}
        for sample in samples:
            size = min(
                tokens[sample.sample_id] + cell.asks(sample).max_new_tokens,
                cell.positions(target.context_length),
            )
            # of a conversation one turn is in the batch at a time
            asked = sample.conversation or sample.sample_id
            longest[asked] = max(size, longest.get(asked, 0))
        # the longest answers may be in one batch
        sizes = sorted(longest.values(), reverse=True)
        needed = [per_position * size for size in sizes[: cell.batch]]
        if sum(needed) <= free:
            continue
        fitting = sum(1 for total in itertools.accumulate(needed) if total <= free)
        raise HambenchError(
            f"{cell.label}: batch {cell.batch} holds up to {sum(needed) / 1e9:.1f} GB of keys and values, and "
            f"{free / 1e9:.1f} GB of memory are free: "
            + (f"the largest batch that fits is {fitting}" if fitting else "not even one sequence fits")
        )


def _next_waiting(waiting: list[tuple[int, Job]], openings: Mapping[int, Opening]) -> int | None:
    """Takes the next job off the list: a turn of a conversation waits until the one before it is answered."""
    talking = {o.job.sample.conversation for o in openings.values() if o.job.sample.conversation}
    for place, (index, job) in enumerate(waiting):
        if job.sample.conversation not in talking:
            del waiting[place]
            return index
    return None
