"""Quality without labels: how probable the target finds each method's output, and where it leaves vanilla's.

Stored as scores that are not pooled with accuracy. A lossless method should be as probable as vanilla's greedy output
and identical to it; where reduced precision makes them part, the gap between the target's two best logits at that
point shows whether it was a near-tie.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hambench.analysis.baselines import baseline_of
from hambench.analysis.proxy_rows import GAP, LOGPROB
from hambench.analysis.summary import first_difference
from hambench.engine.text import encode_prompt
from hambench.errors import NotFiniteError, StoreError
from hambench.records import Cell, GenerationTrace, SampleRecord, Score
from hambench.store import Run, RunWriter, load_run

if TYPE_CHECKING:
    from hambench.models.target import TargetModel

SCORER = "hambench proxies 1"


@dataclass(frozen=True, slots=True)
class _Scored:
    logprobs: Tensor
    """``[N]`` of each output token."""
    gaps: Tensor
    """``[N]`` between the two best logits at each output position."""


def judge(folder: Path, *, device: str | None = None) -> Run:
    """Scores a stored run by its target and gives the run with those scores; judged again, the newest count.

    Args:
        folder: A run; its model is loaded.
        device: By default the GPU if there is one, else the CPU.

    Raises:
        HambenchError: If the model is no longer the run's, or an answer holds what the model does not know.
    """
    from hambench.models.target import load
    from hambench.runner.start import refuse_other_model

    run = load_run(folder)
    cell = run.header.cells[0]
    target = load(cell.model, dtype=cell.dtype, device=device)
    refuse_other_model(run.header, target)
    with RunWriter.resume(folder) as writer:
        writer.append_scores(score_proxies(run, target))
    return load_run(folder)


def score_proxies(run: Run, target: TargetModel) -> Iterator[Score]:
    """Proxies of every answered record: one forward of the target over its prompt and output."""
    cells = {cell.label: cell for cell in run.header.cells}
    baselines = {label: baseline_of(cell, run.header.cells) for label, cell in cells.items()}
    judges = {baseline.label for baseline in baselines.values() if baseline is not None}
    theirs: dict[tuple[str, str, int], tuple[GenerationTrace, _Scored]] = {}
    # baselines first: the others' divergence is judged by their distributions
    for record in sorted(run.measured, key=lambda r: r.cell not in judges):
        if record.trace is None:
            continue
        scored = _score(record, record.trace, run, cells[record.cell], target)
        yield _as_score(record, LOGPROB, float(scored.logprobs.mean()))
        if record.cell in judges:
            theirs[record.cell, record.sample_id, record.repeat] = (record.trace, scored)
        baseline = baselines[record.cell]
        key = (baseline.label if baseline else "", record.sample_id, record.repeat)
        if key in theirs and key[0] != record.cell:
            base_trace, base_scored = theirs[key]
            first = first_difference(record.trace.token_ids, base_trace.token_ids)
            if first is not None and first < len(base_trace.token_ids):
                yield _as_score(record, GAP, float(base_scored.gaps[first]))


@torch.inference_mode()
def _score(
    record: SampleRecord, trace: GenerationTrace, run: Run, cell: Cell, target: TargetModel
) -> _Scored:
    if target.tokenizer is None:
        raise StoreError(
            f"{run.path} can't be judged: {target.name} has no tokenizer to read its prompts with"
        )
    sample, positions = cell.asks(run.samples[record.sample_id]), cell.positions(target.context_length)
    prompt = encode_prompt(sample, target.tokenizer, context_length=positions).ids
    tokens = list(trace.token_ids)
    size = target.llama.shape.vocab_size
    if not prompt or not tokens or not all(0 <= token < size for token in tokens):
        raise StoreError(
            f"{run.path}: the answer of {record.cell} to {record.sample_id} can't be judged: it needs a prompt and "
            f"tokens in 0..{size - 1}"
        )
    model = target.llama
    cache = model.new_cache(len(prompt) + len(tokens))
    if len(prompt) > 1:
        model.prefill(torch.tensor(prompt[:-1], device=target.device), cache)
    # row i predicts output token i: the last prompt token first, the last output token never
    inputs = torch.tensor([prompt[-1], *tokens[:-1]], device=target.device)
    logits = model.forward(inputs, cache, num_logits=None).logits.float()
    if not bool(logits.amax(dim=-1).isfinite().all()):
        raise NotFiniteError(target.name)
    wanted = torch.tensor(tokens, device=target.device)[:, None]
    best = logits.topk(2, dim=-1).values
    return _Scored(
        logprobs=torch.log_softmax(logits, dim=-1).gather(1, wanted)[:, 0], gaps=best[:, 0] - best[:, 1]
    )


def _as_score(record: SampleRecord, metric: str, value: float) -> Score:
    return Score(
        cell=record.cell,
        sample_id=record.sample_id,
        repeat=record.repeat,
        metric=metric,
        value=value,
        primary=False,
        scorer=SCORER,
    )
