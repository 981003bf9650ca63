"""Compares two stored runs, base and head: counts with ==, accuracy per sample, speed relative to vanilla.

Two runs were measured at different times. Between jobs on shared runners a machine drifts by 15 %, which no statistic
within a run can see. So the speed here is the ratio to vanilla of the same run, compared per sample, and it never
decides unless the project declares it. :mod:`hambench.gating.gate` measures both sides in turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hambench.analysis.arms import Arm, paired_work
from hambench.analysis.baselines import baseline_of
from hambench.analysis.comparisons import compare_arms
from hambench.analysis.statistics.paired_tests import RATIO, RATIO_OF_RATIOS, log_ratio_of_sums
from hambench.analysis.verdicts import Margins, Sampled
from hambench.errors import IncompleteError
from hambench.gating.checks import Check, Outcome, change_word
from hambench.gating.exact import Answer, answer_of, compare_answers
from hambench.gating.speed import check_of, near_exact_check
from hambench.groups import ALL
from hambench.machine.fingerprint import ACCURACY_KEYS, SPEED_KEYS, differences
from hambench.records import Cell, Comparison, Sample
from hambench.store import Run

NUMERIC_KEYS = ("machine", "cpu", "cpu_flags", "gpu", "torch", "triton", "torch_threads")
"""Keys that must agree before equal code must give equal token ids."""


def compare_runs(base: Run, head: Run, *, margins: Margins | None = None) -> Outcome:
    """Compares every cell of the base with the head's cell of the same name.

    Raises:
        IncompleteError: If a run measured nothing, or the runs have no sample in common.
    """
    _refuse_empty(base, "base")
    _refuse_empty(head, "head")
    shared = {key: sample for key, sample in base.samples.items() if key in head.samples}
    if not shared:
        raise IncompleteError(f"{_name(base)} and {_name(head)} have no sample in common")
    margins = margins or Margins.of(base)
    ours = {cell.label: cell for cell in head.header.cells}
    checks: list[Check] = list(_missing_samples(base, head))
    for cell in base.header.cells:
        if cell.label not in ours:
            checks.append(_missing(cell.label, "the head lacks this cell"))
            continue
        checks += _exact(base, head, cell.label)
        checks += _accuracy(base, head, cell.label, shared, margins)
        checks += _regret(base, head, cell.label, shared, margins)
        checks += _peak(base, head, cell.label)
        checks += _speed(base, head, cell.label, shared, margins)
    added = [label for label in ours if label not in {cell.label for cell in base.header.cells}]
    return Outcome(
        title="Two runs",
        base=_name(base),
        head=_name(head),
        checks=tuple(checks),
        notes=(*_notes(base, head), *(f"{label} is new: the base lacks this cell" for label in added)),
        suite="+".join(head.header.suites),
    )


def _refuse_empty(run: Run, side: str) -> None:
    answered = [record for record in run.measured if record.trace is not None]
    if not run.samples or not answered:
        raise IncompleteError(f"the {side} {_name(run)} measured nothing")


def _missing_samples(base: Run, head: Run) -> list[Check]:
    """Returns a failing check per task that only one side has, instead of silently comparing fewer samples."""
    tasks = {
        side: {f"task:{s.suite}/{s.task}" for s in run.samples.values()}
        for side, run in (("base", base), ("head", head))
    }
    checks = [
        _missing(ALL, f"the {other} lacks this task", group=task)
        for side, other in (("base", "head"), ("head", "base"))
        for task in sorted(tasks[side] - tasks[other])
    ]
    for side, run, other in (("base", base, head), ("head", head, base)):
        alone = [s for key, s in run.samples.items() if key not in other.samples]
        partial = sorted({f"task:{s.suite}/{s.task}" for s in alone} & tasks["base"] & tasks["head"])
        checks += [_missing(ALL, f"only the {side} has some of the samples", group=task) for task in partial]
    if not base.complete or not head.complete:
        side = "base" if not base.complete else "head"
        checks.append(_missing(ALL, f"the {side} is unfinished"))
    return checks


def _missing(cell: str, reason: str, *, group: str = ALL) -> Check:
    # a missing task decides whatever the project declares, so set its primary flag here
    return Check(
        cell=cell,
        metric="samples",
        metric_class="exact",
        group=group,
        verdict="not comparable",
        primary=True,
        reason=reason,
    )


def _exact(base: Run, head: Run, label: str) -> list[Check]:
    def numerics(run: Run) -> dict[str, object]:
        return {key: run.header.environment.get(key) for key in NUMERIC_KEYS}

    def asked(run: Run) -> tuple[object, ...]:
        header = run.header
        return (
            header.model.get("sha256"),
            header.temperature,
            header.top_p,
            header.seed,
            header.max_new_tokens,
            header.think_end,
        )

    dtypes = {c.dtype for run in (base, head) for c in run.header.cells if c.label == label}
    if asked(base) != asked(head):
        reason = "different model, sampling or limit"
        return [replace(_missing(label, reason), metric="token_ids")]
    same = dtypes == {"float32"} and numerics(base) == numerics(head)
    return compare_answers(label, _answers(base, label), _answers(head, label), same_numerics=same)


def _answers(run: Run, label: str) -> list[Answer]:
    return [
        answer_of(r.trace, sample_id=r.sample_id, prompt_hash=r.prompt_hash, repeat=r.repeat)
        for r in run.measured
        if r.cell == label and r.trace is not None
    ]


def _accuracy(
    base: Run, head: Run, label: str, samples: Mapping[str, Sample], margins: Margins
) -> list[Check]:
    if not base.scores and not head.scores:
        return []
    rows = compare_arms(
        Arm.of(head, label),
        Arm.of(base, label),
        samples,
        metrics=("accuracy",),
        margins=margins,
        # a gate must not leave out samples that only one run answered
        most_one_sided=0.0,
    )
    changed = differences(base.header.environment, head.header.environment, ACCURACY_KEYS)
    return [_accuracy_check(row, margins.accuracy, changed) for row in rows]


def _regret(base: Run, head: Run, label: str, samples: Mapping[str, Sample], margins: Margins) -> list[Check]:
    """Compares regret per token, paired by sample; each side was judged by its own run's target."""
    if not base.fidelity and not head.fidelity:
        return []
    if not base.fidelity or not head.fidelity:
        side = "head" if base.fidelity else "base"
        return [
            Check(
                cell=label,
                metric="regret",
                metric_class="fidelity",
                better="lower",
                unit="nats/token",
                threshold=margins.regret,
                verdict="not comparable",
                reason=f"the target did not judge the {side}: run `hambench proxies` on it",
            )
        ]
    models = [(run.header.model.get("sha256"), run.header.cells[0].dtype) for run in (base, head)]
    rows = compare_arms(
        Arm.of(head, label),
        Arm.of(base, label),
        samples,
        metrics=("regret",),
        groups=(ALL,),
        margins=margins,
        most_one_sided=0.0,
    )
    checks = [_regret_check(row, margins.regret) for row in rows]
    if models[0] != models[1]:
        reason = "judged by two different targets: other weights or another dtype"
        return [replace(check, verdict="not comparable", reason=reason) for check in checks]
    return checks


def _regret_check(row: Comparison, margin: float) -> Check:
    blank = Check(
        cell=row.candidate,
        metric="regret",
        metric_class="fidelity",
        better="lower",
        unit="nats/token",
        threshold=margin,
        verdict=change_word(row.verdict),
    )
    high = row.effect.high if row.effect else None
    return _judged(
        blank, row, not_worse=high is not None and high < margin, in_words=f"{margin:g} nats per token"
    )


def _accuracy_check(row: Comparison, margin: float, changed: Mapping[str, str]) -> Check:
    blank = Check(
        cell=row.candidate,
        metric="accuracy",
        metric_class="accuracy",
        unit="points",
        threshold=margin,
        verdict=change_word(row.verdict),
    )
    low = row.effect.low if row.effect else None
    check = _judged(blank, row, not_worse=low is not None and low > -margin, in_words=f"{margin:g} points")
    if changed and row.verdict != "not comparable":
        versions = ", ".join(f"{key} {change}" for key, change in changed.items())
        words = (
            f"{check.reason}; scored with other versions: {versions}"
            if check.reason
            else f"other versions: {versions}"
        )
        return replace(check, reason=words)
    return check


def _judged(blank: Check, row: Comparison, *, not_worse: bool, in_words: str) -> Check:
    """A check with what a comparison of the two runs found."""
    verdict, reason = blank.verdict, row.reason
    if verdict == "inconclusive" and not_worse:
        # only a loss matters here, so a possible gain needs no further samples
        verdict, reason = "equivalent", f"not worse by {in_words}"
    return replace(
        blank,
        group=row.group,
        effect=row.effect,
        verdict=verdict,
        p_value=row.p_value,
        minimum_detectable_effect=row.minimum_detectable_effect,
        reason=reason,
    )


def _peak(base: Run, head: Run, label: str) -> list[Check]:
    # the GPU allocator's peak is reproducible; the resident set of a CPU process is not
    gpus = [run.header.environment.get("gpu") for run in (base, head)]
    same = not differences(base.header.environment, head.header.environment, ("gpu", "gpu_driver", "torch"))
    if None in gpus or not same:
        return []
    peaks = [
        [r.peak_memory_bytes for r in run.of_cell(label) if r.peak_memory_bytes is not None]
        for run in (base, head)
    ]
    return [near_exact_check(label, max(peaks[0]), max(peaks[1]))] if all(peaks) else []


def _speed(base: Run, head: Run, label: str, samples: Mapping[str, Sample], margins: Margins) -> list[Check]:
    """Compares the ratios to vanilla of the same run, head / base: the quotient of the two reports' numbers."""
    ours_vanilla, vanilla = _baseline(head, label), _baseline(base, label)
    arms, signs, metric = [Arm.of(head, label), Arm.of(base, label)], RATIO, "tps"
    relative = ours_vanilla is not None and vanilla is not None and vanilla.label != label
    if relative and vanilla is not None and ours_vanilla is not None:
        arms = [arms[0], Arm.of(head, ours_vanilla.label), arms[1], Arm.of(base, vanilla.label)]
        signs, metric = RATIO_OF_RATIOS, "tps_ratio"
    changed = differences(base.header.environment, head.header.environment, SPEED_KEYS)
    work = paired_work(arms, "tps", samples)
    if not work.terms.size:
        return []
    half = len(work.terms) // 2
    result = log_ratio_of_sums(work.terms[:half], work.terms[half:], signs=signs)
    blank = Check(
        cell=label,
        metric=metric,
        metric_class="speed",
        unit="head / base",
        threshold=margins.tps,
        verdict="not comparable",
    )
    left_out = f"{work.num_left_out} answers without a token after the first step left out"
    note = "measured at different times; `hambench gate` measures in turns"
    check = check_of(
        blank,
        result,
        sampled=Sampled(),
        rounds=1,
        note="; ".join([*([left_out] if work.num_left_out else []), note]),
    )
    if changed and not relative:
        what = ", ".join(f"{key} {change}" for key, change in changed.items())
        return [replace(check, verdict="not comparable", reason=what)]
    if changed:
        check = replace(check, reason=f"{check.reason}; different machine or versions: {', '.join(changed)}")
    return [check]


def _baseline(run: Run, label: str) -> Cell | None:
    cells = run.header.cells
    return next((baseline_of(cell, cells) for cell in cells if cell.label == label), None)


def _notes(base: Run, head: Run) -> list[str]:
    changed = differences(base.header.environment, head.header.environment, (*SPEED_KEYS, "python", "kernel"))
    notes = [f"{key}: {change}" for key, change in changed.items()]
    models = {str(run.header.model.get("sha256")) for run in (base, head)}
    if len(models) > 1:
        notes.append("the two runs used different weights")
    return notes


def _name(run: Run) -> str:
    commit = run.header.commit
    return f"{run.header.run_id}{f' ({commit[:8]})' if commit else ''}"


def load_side(path: Path, side: str) -> Run:
    """Loads a run folder; a missing one counts as incomplete, not as a usage error.

    Raises:
        IncompleteError: If there is no such run.
    """
    from hambench.store import HEADER, load_run

    if not (path / HEADER).is_file():
        raise IncompleteError(f"{path} contains no {side} run")
    return load_run(path)
