"""Judges fidelity to the target: scores every answer of a run token by token with the target model.

Each answer is teacher-forced in the run's dtype: one prefill per distinct prompt, then one pass over the rows of each
*distinct* answer on the prompt's cache. Cells with the same answer share the pass. Where cells share prompts, a
sample's answers are judged once all cells have given theirs, on the prompt that they have read; everything else is
judged after generation. Neither is part of any speed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hambench.engine.requests.forwards import Prefill
from hambench.engine.text import encode_prompt
from hambench.errors import HambenchError, NotFiniteError, StoreError
from hambench.records import Cell, Fidelity, RunHeader, Sample, SampleRecord, answer_key
from hambench.runner.generator import torch_threads
from hambench.store import Run, RunWriter, load_run

if TYPE_CHECKING:
    from hambench.engine.output import ForwardOutput
    from hambench.engine.requests.shared_prefill import ReadPrompts
    from hambench.models.target import TargetModel

MOST_LOGITS = 2**24
"""Logits of one forward: 64 MiB in float32, whatever the vocabulary."""

Progress = Callable[[int, int], None]
"""Called with how many distinct answers are judged and how many there are."""

Read = Callable[[Prefill], "ForwardOutput"]
"""Reads a prompt into the request's cache, or copies what was read of it."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The target's view of one answer of N tokens."""

    regrets: tuple[float, ...]
    """``[N]``, in nats; see :class:`hambench.records.Fidelity`."""
    logprobs: tuple[float, ...]
    """``[N]``, in nats."""
    gaps: tuple[float, ...]
    """``[N]``, in logits."""


def judge(folder: Path, *, device: str | None = None) -> Run:
    """Judges the answers of a stored run that have no judgement yet; returns the run with all judgements.

    Args:
        folder: Run folder; the run's model is loaded.
        device: Device of the judge; by default the GPU if there is one, else the CPU.

    Raises:
        HambenchError: If the model has changed since the run, or an answer holds a token that the model does not have.
    """
    from hambench.models.target import load
    from hambench.runner.backend import native_obstacle, run_by
    from hambench.runner.resume import refuse_other_model

    run = load_run(folder)
    if not unjudged(run):
        return run
    cell = run.header.cells[0]
    target = load(cell.model, dtype=cell.dtype, device=device)
    refuse_other_model(run.header, target)
    # in bfloat16 other pieces of a prompt may give other bits
    target.llama.prefill_chunk = run.header.prefill_chunk
    if cell.kernels == "native" and native_obstacle(target) is None:
        target = run_by(target, kernels="native")
    with RunWriter.resume(folder) as writer:
        judge_run(writer, target)
    return load_run(folder)


def judge_run(writer: RunWriter, target: TargetModel, *, progress: Progress | None = None) -> None:
    """Judges the answers without a judgement, writes them prompt by prompt, and records the time this took."""
    run = load_run(writer.folder)
    waiting = unjudged(run)
    if not waiting:
        return
    began = time.perf_counter()
    num_done = 0
    # torch's matrix products depend on the number of threads in their last bits
    with torch_threads(run.header.cells[0].threads):
        for judgements in _judge(_Asked.of(run), waiting, target):
            writer.append_fidelity(judgements)
            num_done += len(judgements)
            if progress is not None:
                progress(num_done, len(waiting))
    _tell(writer, time.perf_counter() - began, num_done, num_answered(run.measured))


class JudgeBySample:
    """Judges a sample's answers as soon as all cells have given theirs, on the prompt that they share.

    Args:
        writer: Gets the judgements.
        header: Header of the run.
        samples: Samples of the run.
        target: The judge.
    """

    def __init__(
        self, writer: RunWriter, header: RunHeader, samples: Sequence[Sample], target: TargetModel
    ) -> None:
        self._writer, self._target, self._threads = writer, target, header.cells[0].threads
        self._asked = _Asked(
            writer.folder,
            {cell.label: cell for cell in header.cells},
            {item.sample_id: item for item in samples},
        )
        self._seconds, self._num_distinct, self._num_answers = 0.0, 0, 0

    def __call__(self, records: Sequence[SampleRecord], prompts: ReadPrompts) -> None:
        """Judges the answers of all cells to one sample.

        Args:
            records: One record per cell.
            prompts: What was read of the sample's prompt.
        """
        began = time.perf_counter()
        waiting = distinct_answers(records)
        with torch_threads(self._threads):
            for judgements in _judge(self._asked, waiting, self._target, read=prompts.answer):
                self._writer.append_fidelity(judgements)
        self._seconds += time.perf_counter() - began
        self._num_distinct += len(waiting)
        self._num_answers += num_answered(records)

    def finish(self) -> None:
        """Records the time that judging took."""
        if self._num_answers:
            _tell(self._writer, self._seconds, self._num_distinct, self._num_answers)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a run asked, to build its prompts again."""

    folder: Path
    cells: Mapping[str, Cell]
    samples: Mapping[str, Sample]

    @classmethod
    def of(cls, run: Run) -> _Asked:
        return cls(run.path, {cell.label: cell for cell in run.header.cells}, run.samples)


def unjudged(run: Run) -> dict[str, SampleRecord]:
    """Returns one record per distinct answer without a judgement, by :func:`hambench.records.answer_key`."""
    return distinct_answers(record for record in run.measured if run.judged(record) is None)


def distinct_answers(records: Iterable[SampleRecord]) -> dict[str, SampleRecord]:
    """Returns the first record of each distinct answer that has a token, by :func:`hambench.records.answer_key`."""
    distinct: dict[str, SampleRecord] = {}
    for record in records:
        if record.trace is not None and record.trace.token_ids:
            distinct.setdefault(answer_key(record), record)
    return distinct


def num_answered(records: Iterable[SampleRecord]) -> int:
    """Returns how many records have an answer."""
    return sum(record.trace is not None for record in records)


def _tell(writer: RunWriter, seconds: float, num_distinct: int, num_answers: int) -> None:
    """Stores what judging took."""
    writer.append_telemetry(
        {"kind": "fidelity", "seconds": seconds, "num_distinct": num_distinct, "num_answers": num_answers}
    )


def _judge(
    run: _Asked, waiting: Mapping[str, SampleRecord], target: TargetModel, *, read: Read = Prefill.answer
) -> Iterator[list[Fidelity]]:
    prompts: dict[tuple[str, int, int, str | None], dict[str, SampleRecord]] = {}
    for key, record in waiting.items():
        assert record.trace is not None
        asked = (record.sample_id, record.trace.prompt_tokens, record.truncated_tokens, record.prompt)
        prompts.setdefault(asked, {})[key] = record
    for (sample_id, *_), records in prompts.items():
        alien = {key: reason for key, record in records.items() if (reason := _alien(record, target))}
        if alien:
            yield [Fidelity(sample_id=sample_id, answer=key, error=reason) for key, reason in alien.items()]
            records = {key: record for key, record in records.items() if key not in alien}
        answers = [r.trace.token_ids for r in records.values() if r.trace is not None]
        first = next(iter(records.values()), None)
        if first is None:
            continue
        try:
            prompt = _prompt_ids(run, first, target)
            readings = read_answers(target, prompt, answers, read=read)
        except (HambenchError, RuntimeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"[:500]
            yield [Fidelity(sample_id=sample_id, answer=key, error=reason) for key in records]
            continue
        yield [
            Fidelity(
                sample_id=sample_id,
                answer=key,
                regrets=reading.regrets,
                logprobs=reading.logprobs,
                gaps=reading.gaps,
            )
            for key, reading in zip(records, readings, strict=True)
        ]


def _alien(record: SampleRecord, target: TargetModel) -> str:
    """Returns why the target can't read an answer, or an empty text if it can."""
    assert record.trace is not None
    size = target.llama.shape.vocab_size
    unknown = next((token for token in record.trace.token_ids if not 0 <= token < size), None)
    return (
        ""
        if unknown is None
        else f"its token {unknown} is not in 0..{size - 1}, the vocabulary of {target.name}"
    )


def _prompt_ids(run: _Asked, record: SampleRecord, target: TargetModel) -> list[int]:
    if target.tokenizer is None:
        raise StoreError(
            f"{run.folder} can't be judged: {target.name} has no tokenizer to read its prompts with"
        )
    cell = run.cells[record.cell]
    sample = cell.asks(run.samples[record.sample_id])
    if record.prompt is not None:
        sample = dataclasses.replace(sample, prompt=record.prompt)
    positions = cell.positions(target.context_length)
    prompt = encode_prompt(sample, target.tokenizer, context_length=positions).ids
    if not prompt:
        raise StoreError(f"{run.folder}: {record.sample_id} can't be judged: its prompt has no token")
    assert record.trace is not None
    if len(prompt) != record.trace.prompt_tokens:
        raise StoreError(
            f"{run.folder}: {record.sample_id} can't be judged: its prompt has {len(prompt)} tokens now and had "
            f"{record.trace.prompt_tokens} when it was answered: another tokenizer or chat template"
        )
    return prompt


@torch.inference_mode()
def read_answers(
    target: TargetModel,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    *,
    read: Read = Prefill.answer,
) -> list[Reading]:
    """Teacher-forces several answers to one prompt on a shared prompt cache.

    Args:
        target: The judge.
        prompt: Token ids of the prompt, at least one.
        answers: Token ids of each answer, at least one each, all in the target's vocabulary.
        read: Reads the prompt.

    Raises:
        NotFiniteError: If the target's logits are not finite.
    """
    model = target.llama
    vocabulary = model.shape.vocab_size
    # a step may have emitted more than was kept, so an answer can end at the last position of the context
    cache = model.new_cache(len(prompt) + max(map(len, answers)))
    # the prompt is read as a method reads it: its last row gives the first answer token
    first = read(Prefill(model, torch.tensor(prompt, device=target.device), cache)).logits[-1:]
    readings = []
    for answer in answers:
        cache.truncate(len(prompt))
        # row i predicts answer token i + 1, so the last answer token is never read
        inputs = torch.tensor(answer[:-1], device=target.device, dtype=torch.int64)
        wanted = torch.tensor(answer, device=target.device)
        parts = [_judged(first, wanted[:1])]
        rows = max(1, MOST_LOGITS // vocabulary)
        for ids, tokens in zip(torch.split(inputs, rows), torch.split(wanted[1:], rows), strict=True):
            if len(ids):
                parts.append(_judged(model.forward(ids, cache, num_logits=None).logits, tokens))
        if not bool(torch.cat(parts, dim=1).isfinite().all()):
            raise NotFiniteError(target.name)
        regrets, logprobs, gaps = (
            tuple(round(value, 6) for value in row) for row in torch.cat(parts, dim=1).tolist()
        )
        readings.append(Reading(regrets, logprobs, gaps))
    return readings


def _judged(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Returns regret, log-probability and gap ``[3, rows]`` of each row's token."""
    logits = logits.float()
    best = logits.topk(2, dim=-1).values
    taken = logits.gather(1, tokens[:, None])[:, 0]
    normaliser = torch.logsumexp(logits, dim=-1)
    return torch.stack([best[:, 0] - taken, taken - normaliser, best[:, 0] - best[:, 1]])
