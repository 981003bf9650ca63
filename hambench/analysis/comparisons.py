"""Compares two cells of a run, paired by sample; :mod:`hambench.analysis.verdicts` defines the verdicts.

Speed and KV memory are compared over common answers that have the metric; the number of other answers is reported. In
accuracy, a sample that one side failed to answer counts as 0 points for it, because otherwise a method would gain by
failing hard samples. A sample that both failed, or whose scorer failed, counts for neither. Each comparison reports the
number of such samples. If they are more than :data:`MOST_ONE_SIDED` of all samples, the rest is not representative and
the two are not comparable.

Every ratio that is printed, stored or tracked is computed here, so that tables, JSON, history, ``hambench compare`` and
the report show the same number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from hambench.analysis.arms import (
    NEEDED,
    Arm,
    Overlap,
    cluster_of,
    disturbance,
    mean_by_sample,
    nothing_compared,
    overlap_of,
    paired_traces,
    paired_work,
    zeros,
)
from hambench.analysis.baselines import baseline_of, is_baseline
from hambench.analysis.metrics import METRICS
from hambench.analysis.regret import compare_regret, design_words, unread_text
from hambench.analysis.statistics.intervals import CONFIDENCE
from hambench.analysis.statistics.paired_tests import (
    MIN_BLOCKS,
    PairedResult,
    equal_answers_bound,
    log_ratio_of_sums,
    mean_difference,
)
from hambench.analysis.verdicts import (
    Margins,
    Sampled,
    control_false_discoveries,
    exact_verdict,
    join_reasons,
    verdict_of,
)
from hambench.errors import count
from hambench.groups import ALL, group_kind, group_names, in_group
from hambench.records import BUSY_LOAD, Comparison, Estimate, Sample, Verdict
from hambench.store import Run

COMPARED = ("tps", "kv_bytes_per_position", "accuracy", "regret")
"""Metrics that every comparison gives."""

MOST_ONE_SIDED = 0.2
"""Share of the samples that may have an answer of one of the two only."""


def compare_run(
    run: Run,
    *,
    baseline: str | None = None,
    metrics: Sequence[str] = COMPARED,
    groups: Sequence[str] | None = None,
    margins: Margins | None = None,
) -> list[Comparison]:
    """Compares every cell with a baseline of its own run.

    The best of many settings or tasks is partly luck. So verdicts must survive a Benjamini–Hochberg correction over the
    settings of a run (for single tasks, over settings and tasks). Vanilla cells under other conditions are compared but
    do not count as settings.

    Args:
        run: The run.
        baseline: Label of the cell to judge all others against; by default each cell's own (see
            :mod:`hambench.analysis.baselines`), or the first cell in a run without vanilla.
        metrics: Keys of :data:`COMPARED` or of :data:`~hambench.analysis.arms.RATES`.
        groups: Groups to compare; defaults to all, suites (if there are several) and tasks.
        margins: Smallest effects to report; default to those of the run's machine.
    """
    cells = run.header.cells
    arms = {cell.label: Arm.of(run, cell.label) for cell in cells}
    joined = len({cell.run for cell in cells}) > 1
    families: dict[tuple[str, bool], list[Comparison]] = {}
    for cell in cells:
        against = baseline
        if against is None:
            own = baseline_of(cell, cells)
            # in a joined report a run without vanilla has nothing of its own to be divided by
            against = own.label if own is not None else (cell.label if joined else cells[0].label)
        if cell.label != against:
            families.setdefault((cell.run, is_baseline(cell)), []).extend(
                _compare(
                    arms[cell.label],
                    arms[against],
                    run.samples,
                    metrics,
                    groups,
                    margins or Margins.of(run),
                    MOST_ONE_SIDED,
                )
            )
    corrected = [row for family in families.values() for row in control_false_discoveries(family)]
    order = {cell.label: index for index, cell in enumerate(cells)}
    return sorted(corrected, key=lambda row: order[row.candidate])


def compare_cells(
    run: Run,
    candidate: str,
    baseline: str,
    *,
    metrics: Sequence[str] = COMPARED,
    groups: Sequence[str] | None = None,
    margins: Margins | None = None,
) -> list[Comparison]:
    """Compares two cells of one run, over all samples first, then over each suite and task.

    Verdicts on single tasks must survive a Benjamini–Hochberg correction over the tasks, since there are many. For all
    cells of a run see :func:`compare_run`, which also corrects for their number.

    Args:
        run: The run.
        candidate: Label of the cell to judge.
        baseline: Label of the cell to compare it with.
        metrics: Keys of :data:`COMPARED` or of :data:`~hambench.analysis.arms.RATES`.
        groups: Groups to compare; defaults to all, suites (if there are several) and tasks.
        margins: Smallest effects to report; default to those of the run's machine.

    Raises:
        ValueError: If the run lacks one of the cells.
    """
    for label in (candidate, baseline):
        if label not in {cell.label for cell in run.header.cells}:
            raise ValueError(f"run {run.header.run_id} has no cell {label!r}")
    return compare_arms(
        Arm.of(run, candidate),
        Arm.of(run, baseline),
        run.samples,
        metrics=metrics,
        groups=groups,
        margins=margins or Margins.of(run),
    )


def compare_arms(
    candidate: Arm,
    baseline: Arm,
    samples: Mapping[str, Sample],
    *,
    metrics: Sequence[str] = COMPARED,
    groups: Sequence[str] | None = None,
    margins: Margins,
    most_one_sided: float = MOST_ONE_SIDED,
) -> list[Comparison]:
    """Compares two arms, which may come from two runs of the same prompts.

    Args:
        candidate: The arm to judge.
        baseline: The arm to compare it with.
        samples: Samples by id.
        metrics: Keys of :data:`COMPARED` or of :data:`~hambench.analysis.arms.RATES`.
        groups: Groups to compare; defaults to all, suites (if there are several) and tasks.
        margins: Smallest effects to report.
        most_one_sided: Largest share of a group's samples that only one of the two may have answered.
    """
    return control_false_discoveries(
        _compare(candidate, baseline, samples, metrics, groups, margins, most_one_sided)
    )


def ratio_to_baseline(run: Run, cell: str, baseline: str, metric: str = "tps") -> Estimate | None:
    """Returns the ratio of a cell's rate to its baseline's over all samples, paired; ``None`` without any pair.

    Args:
        run: The run.
        cell: Label of the cell.
        baseline: Label of its baseline.
        metric: Key of :data:`~hambench.analysis.arms.RATES`.
    """
    if cell == baseline:
        return None
    (row,) = compare_cells(run, cell, baseline, metrics=(metric,), groups=(ALL,))
    return row.effect


def _compare(
    candidate: Arm,
    baseline: Arm,
    samples: Mapping[str, Sample],
    metrics: Sequence[str],
    groups: Sequence[str] | None,
    margins: Margins,
    most_one_sided: float,
) -> list[Comparison]:
    names = group_names(samples.values()) if groups is None else list(groups)
    if groups is None:
        several = sum(group_kind(name) == "suite" for name in names) > 1
        names = [n for n in names if group_kind(n) in ({ALL, "suite", "task"} if several else {ALL, "task"})]
    rows = []
    for metric in metrics:
        for group in names:
            asked = {sid: sample for sid, sample in samples.items() if in_group(sample, group)}
            overlap = overlap_of(candidate, baseline, asked, most_one_sided)
            if metric == "regret" and not (candidate.judged or baseline.judged):
                continue
            if metric == "regret":
                row = compare_regret(candidate, baseline, overlap, group, margins)
                rows.append(row or nothing_compared(candidate, baseline, group, metric, overlap.refused))
            elif metric == "accuracy":
                rows.append(_compare_accuracy(candidate, baseline, overlap, group, margins))
            else:
                rows.append(_compare_rate(candidate, baseline, overlap, group, metric, margins))
    return rows


def _compare_rate(a: Arm, b: Arm, overlap: Overlap, group: str, metric: str, margins: Margins) -> Comparison:
    info, refused = METRICS[metric], overlap.refused
    if not refused and (a.is_speed_only or b.is_speed_only):
        refused = unread_text(a, b, compare_regret(a, b, overlap, group, margins))
    work = paired_work((a, b), metric, overlap.asked)
    notes = [work.note]
    if overlap.one_sided and not refused:
        left_out = f"{count(len(overlap.one_sided), 'sample')} of {len(overlap.asked)} left out"
        notes.append(f"{left_out}: answered by one of the two only")
    if work.num_left_out:
        notes.append(
            f"{work.num_left_out} answer{'s' * (work.num_left_out > 1)} left out: not {NEEDED[metric]} on both sides"
        )
    if info.metric_class == "speed":
        notes.append(disturbance((a, b), overlap.asked, busy=BUSY_LOAD))
    if not work.terms.size:
        return nothing_compared(a, b, group, metric, refused, num_left_out=work.num_left_out)
    result = log_ratio_of_sums(work.terms[:2], work.terms[2:])
    log_margin = math.log1p(margins.of_metric(metric))
    noun = "repeat" if work.note else "sample"
    verdict, reason = verdict_of(
        result,
        margin=log_margin,
        better=info.better,
        sampled=Sampled(noun=noun, groups=1 if work.note else _num_tasks(overlap.asked.values())),
    )
    if info.metric_class == "exact" and result.num_blocks < MIN_BLOCKS:
        verdict, reason = exact_verdict(work.terms, log_margin, info.better)
    detectable = result.minimum_detectable_effect(log_margin)
    return Comparison(
        candidate=a.cell,
        baseline=b.cell,
        group=group,
        metric=metric,
        effect=Estimate(
            value=math.exp(result.effect),
            low=None if result.low is None else _exp(result.low),
            high=None if result.high is None else _exp(result.high),
            n=result.num_blocks,
        ),
        verdict="not comparable" if refused else verdict,
        p_value=result.p_value,
        minimum_detectable_effect=None if detectable is None else _exp(detectable) - 1,
        standard_error=result.standard_error,
        degrees_of_freedom=result.degrees_of_freedom or None,
        num_left_out=work.num_left_out,
        reason=join_reasons(refused or reason, *notes),
    )


def _compare_accuracy(a: Arm, b: Arm, overlap: Overlap, group: str, margins: Margins) -> Comparison:
    asked, refused = overlap.asked, overlap.refused
    ours, theirs = ({**zeros(arm, overlap), **arm.points} for arm in (a, b))
    keys = [key for key in ours if key in theirs and key[0] in asked]
    unscored = [key for key in {**ours, **theirs} if (key in ours) != (key in theirs) and key[0] in asked]
    scored = {sid for sid, _ in keys}
    both = [sid for sid in asked if sid in scored]
    notes = [
        f"{count(len(failed), 'answer')} that {arm.cell} failed to give {'count' if len(failed) > 1 else 'counts'} as 0"
        for arm in (a, b)
        if (failed := [key for key in zeros(arm, overlap) if key in ours and key in theirs])
    ]
    if unscored:
        # of one repeat, answers are the samples
        repeated = any(repeat for _, repeat in {**ours, **theirs})
        noun, whole = ("answer", len(keys) + len(unscored)) if repeated else ("sample", len(asked))
        words = f"{count(len(unscored), noun)} of {whole} scored for one of the two only"
        notes.append(f"{words}: left out")
        if not refused and len({sid for sid, _ in unscored}) > overlap.most_one_sided * len(asked):
            refused = words
    pairs = paired_traces(a, b, both or asked)
    num_equal = sum(mine.token_ids == other.token_ids for _, mine, other in pairs)
    if not any(key in a.points and key in b.points for key in keys):
        return nothing_compared(
            a, b, group, "accuracy", refused, pairs=(num_equal, len(pairs)) if pairs else None
        )
    strata = [(asked[sid].suite, asked[sid].task) for sid in both]
    clusters = [cluster_of(asked[sid]) for sid in both]
    mine, other = (mean_by_sample(points, keys) for points in (ours, theirs))
    result = mean_difference(
        [mine[sid] for sid in both],
        [other[sid] for sid in both],
        strata=strata,
        clusters=clusters,
    )
    by_design = a.lossless and b.lossless
    all_equal = bool(pairs) and num_equal == len(pairs) and not notes and result.effect == 0
    equal = f"{num_equal} of {count(len(pairs), 'answer')} equal token by token" if pairs else ""
    verdict: Verdict
    if all_equal and by_design:
        result = PairedResult(effect=0.0, num_blocks=result.num_blocks)
        verdict, reason = "equivalent", f"lossless by design, {equal}"
    else:
        if all_equal:
            bound = equal_answers_bound(strata, clusters)
            result = PairedResult(
                effect=0.0, num_blocks=result.num_blocks, low=-bound, high=bound, p_value=1.0
            )
        verdict, reason = verdict_of(
            result, margin=margins.accuracy, better="higher", sampled=Sampled(groups=len(set(strata)))
        )
        if all_equal:
            reason = _of_equal_answers(equal, bound, margins.accuracy, strata, clusters)
        elif by_design and pairs:
            fidelity = compare_regret(a, b, overlap, group, margins)
            borne_out = num_equal == len(pairs) or (fidelity is not None and fidelity.verdict == "equivalent")
            reason = join_reasons(design_words(equal, borne_out), reason)
    return Comparison(
        candidate=a.cell,
        baseline=b.cell,
        group=group,
        metric="accuracy",
        effect=Estimate(value=result.effect, low=result.low, high=result.high, n=len(both)),
        verdict="not comparable" if refused else verdict,
        p_value=result.p_value,
        minimum_detectable_effect=_possible(result.minimum_detectable_effect(margins.accuracy)),
        standard_error=result.standard_error,
        degrees_of_freedom=result.degrees_of_freedom or None,
        num_left_out=len(unscored),
        num_equal=num_equal if pairs else None,
        num_answers=len(pairs) or None,
        reason=refused or join_reasons(reason, *notes),
    )


def _of_equal_answers(
    equal: str,
    bound: float,
    margin: float,
    strata: Sequence[tuple[str, str]],
    clusters: Sequence[tuple[str, ...]],
) -> str:
    """Returns what equal answers of a lossy method show, and how many more would show that it holds."""
    shown = f"{equal}: at most {bound:.0f} % of answers differ"
    if bound < margin:
        return shown
    num_tasks = len(set(strata))
    needed = num_tasks * math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-margin / 100) / num_tasks)
    what = "equal ones" if len(set(clusters)) == len(clusters) else "that have no text in common, equal,"
    of_each = f" ({needed // num_tasks} of each task)" if num_tasks > 1 else ""
    return f"{shown}; {needed} {what}{of_each} would show that accuracy holds"


def _possible(points: float | None) -> float | None:
    """Returns a difference of points, or ``None`` if it is larger than possible."""
    return None if points is None or points > 100 else points


def _exp(logarithm: float) -> float:
    # an interval of two blocks may reach past what a float holds
    return math.exp(min(logarithm, 700.0))


def _num_tasks(samples: Iterable[Sample]) -> int:
    return len({(sample.suite, sample.task) for sample in samples})
