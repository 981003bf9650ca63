"""The five verdicts of a comparison and their conditions; :mod:`hambench.reports.page.verdict_words` words them.

For a metric with a margin (the smallest effect to report):

- *better*, *worse*: the 95 % interval excludes no effect, the permutation test agrees (p ≤ 0.05), and the
  effect itself is at least the margin;
- *equivalent*: the whole interval lies within the margin on both sides;
- *inconclusive*: everything else, with the reason: *real but small* if there is an effect that was not shown to reach
  the margin, else the number of samples that would decide, if it can be predicted
  (:mod:`hambench.analysis.statistics.forecast`);
- *not comparable*: the two have different prompts, or too many samples were answered by one of them only (see
  :mod:`hambench.analysis.comparisons`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from hambench.analysis.metrics import METRICS, Better
from hambench.analysis.statistics.forecast import MIN_INFORMATIVE, blocks_needed
from hambench.analysis.statistics.paired_tests import MIN_BLOCKS, PairedResult, adjusted_p_values
from hambench.errors import count
from hambench.groups import group_kind
from hambench.records import Comparison, Estimate, Verdict
from hambench.store import Run

SIGNIFICANCE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Margins:
    """Smallest effects to report; smaller differences do not matter, even if real."""

    tps: float = 0.03
    """Relative."""
    kv_bytes_per_position: float = 0.01
    """Relative."""
    accuracy: float = 1.5
    """Points."""
    regret: float = 0.05
    """Nats per token: 5 % of the answer's perplexity under the target, or one token in sixty that costs 3 nats."""

    def of_metric(self, metric: str) -> float:
        """Returns the margin of a metric; all speeds have that of the decode speed."""
        return self.kv_bytes_per_position if metric == "kv_bytes_per_position" else self.tps

    @classmethod
    def of(cls, run: Run) -> Margins:
        """Margins for where a run decoded: 3 % of speed on a GPU, 5 % on a CPU, which is rarely left alone."""
        return cls(tps=0.03 if decodes_on_gpu(run) else 0.05)


def decodes_on_gpu(run: Run) -> bool:
    """Returns whether a run's cells decode on a GPU, not only whether the machine has one."""
    device = run.header.model.get("device")
    return str(device).startswith("cuda") if device else bool(run.header.environment.get("gpu"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """The noun for blocks in a reason."""

    noun: str = "sample"
    groups: int = 1
    """Tasks that the blocks are spread over: more are asked for by task."""

    def counted(self, number: int) -> str:
        """``1 sample``, ``12 samples``; how many of each task, where there are several."""
        of_each = f" ({math.ceil(number / self.groups):,} of each task)" if self.groups > 1 else ""
        return f"{count(number, self.noun)}{of_each}"


def verdict_of(
    result: PairedResult, *, margin: float, better: Better, sampled: Sampled | None = None
) -> tuple[Verdict, str]:
    """Returns the verdict on an effect, and the reason if the interval alone does not determine it.

    Args:
        result: The effect, on the scale on which ``margin`` is symmetric (logarithms for ratios).
        margin: Smallest effect to report.
        better: The better direction.
        sampled: The noun for blocks.
    """
    sampled = sampled or Sampled()
    low, high = result.low, result.high
    if low is None or high is None or result.p_value is None:
        few = "1 {} is" if result.num_blocks == 1 else f"{result.num_blocks} {{}}s are"
        return "inconclusive", f"{few.format(sampled.noun)} too few for an interval"
    if -margin < low and high < margin:
        return "equivalent", ""
    excludes_zero = low > 0 or high < 0
    if not excludes_zero or abs(result.effect) < margin:
        small = excludes_zero and result.p_value <= SIGNIFICANCE
        word = "real but small: whether it reaches the margin is open" if small else ""
        return "inconclusive", join_reasons(word, _forecast(result, margin, sampled))
    if result.num_blocks < MIN_BLOCKS:
        return (
            "inconclusive",
            f"a difference needs {MIN_BLOCKS} {sampled.noun}s; there are {result.num_blocks}",
        )
    if result.p_value > SIGNIFICANCE:
        return "inconclusive", f"the interval excludes no effect, the {result.test} test does not"
    return ("better" if (result.effect > 0) == (better == "higher") else "worse"), ""


def _forecast(result: PairedResult, margin: float, sampled: Sampled) -> str:
    if 0 < result.num_informative < min(MIN_INFORMATIVE, result.num_blocks):
        differ = f"{result.num_informative} of {result.num_blocks} {sampled.noun}s differ"
        return f"{differ}: too few to say how many would tell"
    more = blocks_needed(result, margin=margin)
    if more is None or more.num_blocks <= result.num_blocks:
        return ""
    number = sampled.counted(more.num_blocks)
    told = f"about {number} would tell" if more.would_tell else f"even {number} may leave it open"
    told += " unless there is no difference" if more.unless_none else ""
    there = result.num_blocks
    return f"{told}; there {'is' if there == 1 else 'are'} {there:,}"


def exact_verdict(sums: NDArray[np.float64], margin: float, better: Better) -> tuple[Verdict, str]:
    """Returns the verdict on an exact count with too few samples for statistics.

    Args:
        sums: Numerators and denominators of candidate and baseline, one column per answer.
        margin: Smallest ln(ratio) to report.
        better: The better direction.
    """
    # counts carry no noise: on too few samples for statistics they still are facts about those samples
    logs = np.log(sums[0] / sums[1]) - np.log(sums[2] / sums[3])
    here = f"in each of the {len(logs)} answers" if len(logs) > 1 else "in the one answer"
    if np.all(np.abs(logs) < margin):
        return "equivalent", here
    if np.all(logs >= margin) or np.all(logs <= -margin):
        return ("better" if (logs[0] > 0) == (better == "higher") else "worse"), here
    return "inconclusive", f"differs from answer to answer, and there are {len(logs)}"


def control_false_discoveries(rows: Sequence[Comparison]) -> list[Comparison]:
    """Downgrades verdicts that do not survive a Benjamini–Hochberg correction over all candidates for a choice.

    The best of many settings (or tasks) is more often ahead by luck than a single one. A family is one metric of one
    group over all candidates; for single tasks, one metric over all candidates and tasks. Counts have no noise and are
    left unchanged.

    Args:
        rows: Comparisons of one candidate with its baseline, or of all candidates of a run.
    """
    families: dict[tuple[str, str], list[int]] = {}
    for index, row in enumerate(rows):
        if row.p_value is not None and METRICS[row.metric].metric_class != "exact":
            group = "task" if group_kind(row.group) == "task" else row.group
            families.setdefault((row.metric, group), []).append(index)
    result = list(rows)
    for (_, group), indices in families.items():
        if len(indices) < 2:
            continue
        adjusted = adjusted_p_values([rows[index].p_value or 0.0 for index in indices])
        for index, p in zip(indices, adjusted, strict=True):
            row = dataclasses.replace(rows[index], adjusted_p_value=p)
            if row.verdict in ("better", "worse") and p > SIGNIFICANCE:
                what = _family([rows[i] for i in indices], of_tasks=group == "task")
                reason = join_reasons(f"p = {p:.2g} after correcting for {what}", row.reason)
                row = dataclasses.replace(row, verdict="inconclusive", reason=reason)
            result[index] = row
    return result


def _family(rows: Sequence[Comparison], *, of_tasks: bool) -> str:
    settings, tasks = {row.candidate for row in rows}, {row.group for row in rows}
    parts = [f"{len(settings)} settings"] if len(settings) > 1 else []
    parts += [f"{len(tasks)} tasks"] if of_tasks and len(tasks) > 1 else []
    return " on ".join(parts)


def best_of(comparison: Comparison, num_settings: int) -> Estimate | None:
    """Returns the effect of the best of several settings, with an interval that accounts for the choice.

    Its level is raised to 1 − 0.05/n (Bonferroni), so that it covers whichever setting is chosen.

    Args:
        comparison: A ratio against the baseline.
        num_settings: Number of settings that it was chosen from.
    """
    effect = comparison.effect
    if effect is None or effect.low is None or effect.high is None or effect.low <= 0:
        return effect
    degrees = comparison.degrees_of_freedom or math.inf
    alone, chosen = (special.stdtrit(degrees, 1 - SIGNIFICANCE / 2 / n) for n in (1, num_settings))
    wider = float(chosen / alone)
    low = effect.value * (effect.low / effect.value) ** wider
    high = effect.value * (effect.high / effect.value) ** wider
    return Estimate(value=effect.value, low=low, high=high, n=effect.n)


def join_reasons(*parts: str) -> str:
    """Joins the non-empty clauses to one."""
    return "; ".join(part for part in parts if part)
