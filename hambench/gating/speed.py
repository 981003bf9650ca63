"""The verdict on a speed: a t-interval on log ratios of paired blocks, an effect threshold, and one re-measure.

With fewer than 25 blocks a bootstrap interval is too narrow, so none is used (see docs/ci.md): Student's t on the log
ratios, and sign flips as a second opinion. A loss counts only if fresh blocks show it again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hambench.analysis.paired_tests import CONFIDENCE, PairedResult
from hambench.analysis.verdicts import verdict_of
from hambench.gating.blocks import SIDES, Block, Progress, counted, run_blocks
from hambench.gating.checks import FROM_PAIR, Check, CrashedError, Outcome
from hambench.gating.exact import Answer, answer_of, compare_answers
from hambench.gating.worker_process import Arm, Side, Work
from hambench.records import Estimate, GenerationTrace

DEFAULT_BLOCKS = 10
GPU_THRESHOLD, CPU_THRESHOLD = 0.03, 0.05
"""Smallest change worth a word: a shared CPU is a noisier place."""
_EXACT_FLIPS_UP_TO = 14
_NUM_FLIPS = 9_999
NEAR_EXACT_SHARE, NEAR_EXACT_BYTES = 1e-3, 2 * 2**20

Measure = Callable[[Mapping[Side, Arm], int], list[Block]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One configuration on both sides."""

    label: str
    base: Arm
    head: Arm

    @property
    def arms(self) -> dict[Side, Arm]:
        """Both sides by name."""
        return {"base": self.base, "head": self.head}


def paired_log_ratios(logs: Sequence[float] | NDArray[Any]) -> PairedResult:
    """Mean log ratio of blocks with its t-interval and the p-value of flipping signs.

    Raises:
        ValueError: If there is no block, or a log ratio is not finite.
    """
    values = np.asarray(logs, dtype=float)
    n = len(values)
    if n == 0 or not np.all(np.isfinite(values)):
        raise ValueError(f"log ratios must be finite, at least one; got {values.tolist()}")
    effect = float(values.mean())
    if n == 1:
        return PairedResult(effect=effect, num_blocks=1)
    error = float(values.std(ddof=1) / math.sqrt(n))
    half = t_quantile(n) * error
    return PairedResult(
        effect=effect,
        num_blocks=n,
        low=effect - half,
        high=effect + half,
        standard_error=error,
        p_value=_flip_p_value(values),
        degrees_of_freedom=n - 1,
        test="sign-flip",
    )


def t_quantile(num_blocks: int) -> float:
    """Half-width of the interval of a mean over blocks, in standard errors."""
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, num_blocks - 1))


def speed_check(cell: str, logs: Sequence[float | None], *, threshold: float, note: str = "") -> Check:
    """The verdict of one set of blocks.

    Args:
        cell: Label of the pair.
        logs: ln(head / base) of each block; ``None`` for a block without a ratio.
        threshold: Smallest relative change worth a word.
        note: What else must be said, e.g. that the machine was busy.
    """
    blank = Check(
        cell=cell, metric="tps", metric_class="speed", unit="head / base", threshold=threshold, verdict="not comparable"
    )  # fmt: skip
    usable = [value for value in logs if value is not None]
    if len(usable) < len(logs) or not usable:
        broken = len(logs) - len(usable)
        reason = f"{broken} of {len(logs)} blocks measured nothing" if logs else "no block was measured"
        return replace(blank, reason=reason)
    result = paired_log_ratios(usable)
    margin = math.log1p(threshold)
    word, reason = verdict_of(result, margin=margin, better="higher")
    detectable = result.minimum_detectable_effect(margin)
    return replace(
        blank,
        base=1.0,
        head=math.exp(result.effect),
        effect=Estimate(
            value=math.exp(result.effect),
            low=None if result.low is None else math.exp(result.low),
            high=None if result.high is None else math.exp(result.high),
            n=result.num_blocks,
        ),
        verdict=FROM_PAIR[word],
        p_value=result.p_value,
        minimum_detectable_effect=None if detectable is None else -math.expm1(-detectable),
        reason="; ".join(part for part in (reason, note) if part),
    )


def confirmed(first: Check, second: Check) -> Check:
    """A loss as it stands after fresh blocks: both must say so."""
    assert first.effect is not None
    if second.verdict == "regressed" and second.effect is not None:
        return replace(
            first, reason=_join(first.reason, f"measured again with fresh blocks: x{second.effect.value:.3f}")
        )
    shown = "nothing" if second.effect is None else f"x{second.effect.value:.3f}, {second.verdict}"
    return replace(
        first,
        verdict="inconclusive",
        reason=_join(f"not confirmed: fresh blocks gave {shown}", first.reason),
    )


def gate_speed(
    pairs: Sequence[Pair],
    work: Work,
    *,
    num_blocks: int,
    threshold: float,
    base: str,
    head: str,
    progress: Progress | None = None,
    measure: Measure | None = None,
) -> Outcome:
    """Measures every pair and judges its speed, its counts and, on a GPU, the allocator's peak.

    A pair that seems slower is measured once more with as many fresh blocks; there is no third time, and the first
    result stays in the readings.
    """

    def by_processes(arms: Mapping[Side, Arm], wanted: int) -> list[Block]:
        return run_blocks(arms, work, wanted, progress=progress)

    take = measure if measure is not None else by_processes
    checks: list[Check] = []
    crashes: list[str] = []
    readings: dict[str, Any] = {}
    for pair in pairs:
        try:
            blocks = take(pair.arms, num_blocks)
            check = _judge(pair.label, blocks, num_blocks, threshold)
            rounds = [blocks]
            if check.verdict == "regressed":
                if progress is not None:
                    progress(f"{pair.label}: seems slower; measuring again")
                rounds.append(take(pair.arms, num_blocks))
                check = confirmed(check, _judge(pair.label, rounds[1], num_blocks, threshold))
        except CrashedError as crash:
            crashes.append(str(crash))
            continue
        checks.append(check)
        checks += _counts(pair, blocks)
        checks += _peaks(pair.label, blocks)
        readings[pair.label] = [[block.readings() for block in blocks] for blocks in rounds]
    return Outcome(
        title="Speed, paired blocks",
        base=base,
        head=head,
        checks=tuple(checks),
        crashes=tuple(crashes),
        suite="speed",
        measurements={"blocks": readings},
    )


def _judge(label: str, blocks: Sequence[Block], num_blocks: int, threshold: float) -> Check:
    used = counted(blocks, num_blocks)
    disturbed = [block for block in used if block.disturbed]
    throttled = [block for block in used if block.throttled]
    loads = [block.other_load for block in used if block.other_load is not None]
    note = ""
    if disturbed and loads:
        note = f"{len(disturbed)} of {len(used)} blocks disturbed: others took {np.mean(loads):.0%} of the machine"
    check = speed_check(label, [block.log_ratio for block in used], threshold=threshold, note=note)
    if throttled:
        why = ", ".join(sorted({reason for block in throttled for reason in block.throttled}))
        reason = f"the GPU lowered its clocks in {len(throttled)} of {len(used)} blocks ({why})"
        return replace(check, verdict="not comparable", reason=_join(reason, check.reason))
    return check


def _counts(pair: Pair, blocks: Sequence[Block]) -> list[Check]:
    """Counts of the first block that lived: they are the same in all of them, or the code is not deterministic."""
    alive = [block for block in blocks if block.error is None]
    if not alive or pair.base.cell.method != pair.head.cell.method:
        return []
    first = alive[0]
    sides = {side: _answers(first.answers(side)) for side in SIDES}
    exact = pair.base.cell.dtype == pair.head.cell.dtype == "float32"
    return compare_answers(pair.label, sides["base"], sides["head"], same_numerics=exact)


def _answers(traces: Mapping[int, GenerationTrace]) -> list[Answer]:
    return [
        answer_of(trace, sample_id=f"prompt/{number}", prompt_hash=str(trace.prompt_tokens))
        for number, trace in sorted(traces.items())
    ]


def _peaks(label: str, blocks: Sequence[Block]) -> list[Check]:
    peaks = {
        side: [
            turn.peak_memory_bytes
            for block in blocks
            for turn in block.turns
            if turn.side == side and turn.peak_memory_bytes is not None
        ]
        for side in SIDES
    }
    if not peaks["base"] or not peaks["head"]:
        return []
    return [near_exact_check(label, max(peaks["base"]), max(peaks["head"]))]


def near_exact_check(cell: str, base: int, head: int) -> Check:
    """The allocator's peak: equal within 0.1 % or 2 MiB, whichever is more."""
    tolerance = max(NEAR_EXACT_SHARE * base, NEAR_EXACT_BYTES)
    same = abs(head - base) <= tolerance
    return Check(
        cell=cell,
        metric="peak_memory_bytes",
        metric_class="near-exact",
        better="lower",
        unit="bytes",
        base=float(base),
        head=float(head),
        effect=Estimate(value=head / base, n=1) if base else None,
        threshold=tolerance / base if base else None,
        verdict="equivalent" if same else ("regressed" if head > base else "improved"),
        reason="" if same else f"{head - base:+,} bytes",
    )


def noise_floor(sd: float, num_blocks: int) -> float:
    """Half-width of the interval that blocks of this spread give, as a relative change."""
    return math.expm1(t_quantile(num_blocks) * sd / math.sqrt(num_blocks))


def _flip_p_value(values: NDArray[Any]) -> float:
    n, observed = len(values), abs(float(values.sum()))
    # rounding must not make the unflipped blocks look less extreme than themselves
    threshold = observed * (1 - 1e-9) - 1e-15
    if n <= _EXACT_FLIPS_UP_TO:
        # half of the flips mirror the other half
        rest = np.array(list(itertools.product((1.0, -1.0), repeat=n - 1)))
        sums = values[0] + rest @ values[1:]
        return float((np.abs(sums) >= threshold).mean())
    signs = 1.0 - 2.0 * np.random.default_rng(0).integers(0, 2, size=(_NUM_FLIPS, n))
    return float((np.sum(np.abs(signs @ values) >= threshold) + 1) / (_NUM_FLIPS + 1))


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
