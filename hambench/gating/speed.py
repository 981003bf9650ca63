"""Judges speed by a t-interval on log ratios of paired blocks, an effect threshold, and one repeat measurement.

With fewer than 25 blocks a bootstrap interval is too narrow, so none is used (see docs/ci.md): Student's t on the log
ratios, with a sign-flip test as a second opinion. A loss counts only if fresh blocks show it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, assert_never

import numpy as np

from hambench.analysis.statistics.intervals import t_quantile
from hambench.analysis.statistics.paired_tests import POWER, PairedResult, mean_log_ratio
from hambench.analysis.verdicts import Sampled, verdict_of
from hambench.gating.blocks import SIDES, Block, Progress, counted, run_blocks
from hambench.gating.checks import Check, CrashedError, Outcome, change_word
from hambench.gating.exact import Answer, answer_of, compare_answers
from hambench.gating.worker_process import Arm, Side, Work
from hambench.records import Estimate, GenerationTrace

GPU_THRESHOLD, CPU_THRESHOLD = 0.03, 0.05
"""Smallest relative change to report by default; a shared CPU is noisier than a GPU."""
ROUNDS = 2
"""Rounds of blocks that must each show a loss before it counts."""
NEAR_EXACT_SHARE, NEAR_EXACT_BYTES = 1e-3, 2 * 2**20

Measure = Callable[[Mapping[Side, Arm], int], list[Block]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The two sides of a comparison."""

    label: str
    base: Arm
    head: Arm

    @property
    def arms(self) -> dict[Side, Arm]:
        """Returns both arms by side."""
        return {"base": self.base, "head": self.head}


def speed_check(cell: str, logs: Sequence[float | None], *, threshold: float, note: str = "") -> Check:
    """Judges one set of blocks.

    Args:
        cell: Label of the pair.
        logs: ln(head / base) of each block; ``None`` for a block without a ratio.
        threshold: Smallest relative change to report.
        note: A further remark, e.g. that the machine was busy.
    """
    blank = Check(
        cell=cell, metric="tps", metric_class="speed", unit="head / base", threshold=threshold, verdict="not comparable"
    )  # fmt: skip
    usable = [value for value in logs if value is not None]
    if len(usable) < len(logs) or not usable:
        broken = len(logs) - len(usable)
        reason = f"{broken} of {len(logs)} blocks measured nothing" if logs else "no block was measured"
        return replace(blank, reason=reason)
    return check_of(blank, mean_log_ratio(usable), note=note, sampled=Sampled(noun="block"))


def check_of(
    blank: Check, result: PairedResult, *, sampled: Sampled, rounds: int = ROUNDS, note: str = ""
) -> Check:
    """Completes a check with the verdict on ln(head / base).

    Args:
        blank: The check without a verdict, with its threshold.
        result: The measured effect.
        sampled: The noun for the paired units, e.g. blocks.
        rounds: Number of rounds that must each show a loss before it counts.
        note: A further remark.
    """
    margin = math.log1p(blank.threshold or 0.0)
    word, reason = verdict_of(result, margin=margin, better="higher", sampled=sampled)
    detectable = detectable_loss(result, margin, rounds=rounds)
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
        verdict=change_word(word),
        p_value=result.p_value,
        minimum_detectable_effect=detectable,
        reason="; ".join(part for part in (reason, note) if part),
    )


def detectable_loss(result: PairedResult, margin: float, *, rounds: int = ROUNDS) -> float | None:
    """Returns the smallest relative loss that all rounds would show, 80 times in 100.

    A loss in a gate counts only if fresh blocks show it again, so each of two rounds must detect it 89 times in 100.

    Args:
        result: The result of one round.
        margin: Smallest ln(ratio) to report.
        rounds: Number of rounds that must each show a loss before it counts.
    """
    smallest = result.minimum_detectable_effect(margin, power=POWER ** (1 / rounds))
    return None if smallest is None else -math.expm1(-smallest)


def confirmed(first: Check, second: Check) -> Check:
    """Returns the verdict on a loss after fresh blocks; both rounds must show it.

    Fresh blocks that measured nothing, or on a GPU that held its clocks down, leave the check *not comparable*: it must
    not pass for want of a second round.
    """
    assert first.effect is not None
    shown = "nothing" if second.effect is None else f"x{second.effect.value:.3f}"
    match second.verdict:
        case "regressed":
            said = f"measured again with fresh blocks: {shown}"
            return replace(first, reason=_join(first.reason, said))
        case "not comparable":
            said = f"a loss of x{first.effect.value:.3f} could not be measured again"
            return replace(first, verdict="not comparable", reason=_join(said, second.reason))
        case "improved" | "equivalent" | "inconclusive":
            said = f"not confirmed: fresh blocks gave {shown}, {second.verdict}"
            return replace(first, verdict="inconclusive", reason=_join(said, first.reason))
        case _:
            assert_never(second.verdict)


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
    """Measures every pair, and judges its speed, its counts and, on a GPU, the allocator's peak.

    A pair that seems slower is measured exactly once more, with as many fresh blocks; the first result stays in the
    readings.
    """

    def by_processes(arms: Mapping[Side, Arm], wanted: int) -> list[Block]:
        return run_blocks(arms, work, wanted, progress=progress)

    take = measure if measure is not None else by_processes
    checks: list[Check] = []
    crashes: list[str] = []
    readings: dict[str, Any] = {}
    notes: list[str] = []
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
        notes += [note] if (note := _kernels_note(blocks)) and note not in notes else []
        readings[pair.label] = [[block.readings() for block in blocks] for blocks in rounds]
    return Outcome(
        title="Speed, paired blocks",
        base=base,
        head=head,
        checks=tuple(checks),
        crashes=tuple(crashes),
        notes=tuple(notes),
        suite="speed",
        measurements={"blocks": readings},
    )


def _kernels_that_ran(blocks: Sequence[Block]) -> dict[Side, str]:
    """Returns the kernels of each side's turns; empty where a side's code does not tell them."""
    ran = {
        side: sorted(
            {turn.kernels for block in blocks for turn in block.turns if turn.side == side and turn.kernels}
        )
        for side in SIDES
    }
    return {side: " and ".join(names) for side, names in ran.items()}


def _kernels_note(blocks: Sequence[Block]) -> str | None:
    """Returns which kernels ran, of both sides if they had different ones."""
    ran = _kernels_that_ran(blocks)
    if not ran["base"] or not ran["head"]:
        return None
    return _other_kernels(blocks) or f"measured on the {ran['head']} kernels"


def _other_kernels(blocks: Sequence[Block]) -> str:
    """Returns on which different kernels the sides ran, which no verdict may rest on; empty if on the same."""
    ran = _kernels_that_ran(blocks)
    if not ran["base"] or not ran["head"] or ran["base"] == ran["head"]:
        return ""
    return f"the sides ran on different kernels: base on {ran['base']}, head on {ran['head']}"


def _judge(label: str, blocks: Sequence[Block], num_blocks: int, threshold: float) -> Check:
    used = counted(blocks, num_blocks)
    disturbed = [block for block in used if block.disturbed]
    throttled = [block for block in used if block.throttled]
    loads = [block.other_load for block in used if block.other_load is not None]
    note = ""
    if disturbed and loads:
        note = f"{len(disturbed)} of {len(used)} blocks disturbed: others took {np.mean(loads):.0%} of the machine"
    check = speed_check(label, [block.log_ratio for block in used], threshold=threshold, note=note)
    if other := _other_kernels(blocks):
        return replace(check, verdict="not comparable", reason=_join(other, check.reason))
    if throttled:
        why = ", ".join(sorted({reason for block in throttled for reason in block.throttled}))
        reason = f"the GPU lowered its clocks in {len(throttled)} of {len(used)} blocks ({why})"
        return replace(check, verdict="not comparable", reason=_join(reason, check.reason))
    return check


def _counts(pair: Pair, blocks: Sequence[Block]) -> list[Check]:
    """Compares the counts of the first block without a crash; deterministic code gives the same in every block."""
    alive = [block for block in blocks if block.error is None]
    if not alive or pair.base.cell.method != pair.head.cell.method:
        return []
    first = alive[0]
    sides = {side: _answers(first.answers(side)) for side in SIDES}
    exact = pair.base.cell.dtype == pair.head.cell.dtype == "float32" and not _other_kernels(blocks)
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
    """Compares the allocator's peak; equal means within 0.1 % or 2 MiB, whichever is more."""
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
    """Returns the half-width of the interval of blocks with this spread, as a relative change.

    This is not the smallest detectable loss: a true loss of exactly the floor is detected in about one gate of four.
    """
    return math.expm1(t_quantile(num_blocks) * sd / math.sqrt(num_blocks))


def loss_found(sd: float, num_blocks: int, threshold: float) -> float:
    """Returns the smallest relative loss that such a gate detects in both rounds, 80 times in 100.

    Args:
        sd: Standard deviation of the blocks' log ratios.
        num_blocks: Blocks per round.
        threshold: Smallest relative change to report.
    """
    result = PairedResult(
        effect=0.0,
        num_blocks=num_blocks,
        sampled_variance=sd**2 / num_blocks,
        degrees_of_freedom=num_blocks - 1,
    )
    smallest = detectable_loss(result, math.log1p(threshold))
    assert smallest is not None
    return smallest


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
