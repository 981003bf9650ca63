"""Pareto fronts: settings that are shown to be dominated, shown to be on the front, or open.

Plots draw measured values, but verdicts rest on direct comparisons of each pair of settings, sample by sample. An
interval against the baseline says nothing about two settings that both differ from it, and the better of two values is
not shown to be better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from hambench.analysis.arms import Arm
from hambench.analysis.comparisons import compare_arms
from hambench.analysis.metrics import METRICS, Better
from hambench.analysis.statistics.paired_tests import adjusted_p_values
from hambench.analysis.verdicts import SIGNIFICANCE, Margins
from hambench.records import Comparison, Estimate, Sample, Verdict

Standing = Literal["front", "open", "dominated", "missing"]
Relation = Callable[[str, str], Verdict]
"""The verdict on the first label against the second, on one axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One configuration in the plane of two metrics."""

    label: str
    x: Estimate | None
    y: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """The standing of each point."""

    standings: dict[str, Standing]
    """``dominated``: some other point is shown to be better on one axis and not to be worse on the other. ``front``:
    the point is shown to be better than each other point on some axis, so that none can dominate it. ``open``: neither
    was shown. ``missing``: an axis has no finite value."""
    order: tuple[str, ...]
    """Labels that no other point beats in measured values, from the worst x to the best; equal points stay next to
    each other, in the order given."""
    num_missing: int


def pareto_front(
    points: Sequence[Point],
    *,
    relations: tuple[Relation, Relation] | None = None,
    x_better: Better = "higher",
    y_better: Better = "higher",
) -> Front:
    """Sorts points into front, open, dominated and missing.

    Args:
        points: Points with unique labels.
        relations: Verdicts on each pair of points along x and y; without them all points are open.
        x_better: The better direction of x.
        y_better: The better direction of y.

    Raises:
        ValueError: If two points share a label.
    """
    if len({point.label for point in points}) != len(points):
        raise ValueError("labels must be unique")
    oriented = {p.label: (_orient(p.x, x_better), _orient(p.y, y_better)) for p in points}
    whole = {label: (x, y) for label, (x, y) in oriented.items() if x is not None and y is not None}
    standings: dict[str, Standing] = dict.fromkeys(oriented, "missing")
    for label in whole:
        others = [other for other in whole if other != label]
        if relations is None:
            standings[label] = "open" if others else "front"
        elif any(_shown_to_dominate(relations, other, label) for other in others):
            standings[label] = "dominated"
        elif all(any(along(label, other) == "better" for along in relations) for other in others):
            standings[label] = "front"
        else:
            standings[label] = "open"
    order = [label for label, point in whole.items() if not any(_leads(o, point) for o in whole.values())]
    order.sort(key=lambda label: whole[label][0])
    return Front(standings=standings, order=tuple(order), num_missing=len(points) - len(whole))


def relation_along(
    arms: Mapping[str, Arm],
    samples: Mapping[str, Sample],
    metric: str,
    *,
    group: str,
    margins: Margins,
    runs: Mapping[str, str] | None = None,
) -> Relation:
    """Compares each pair of settings directly along one metric.

    Verdicts must survive a Benjamini–Hochberg correction over all pairs, because a plot of many settings draws the eye
    to the pair with the largest difference.

    Args:
        arms: Answers of each setting, by label.
        samples: Samples by id.
        metric: A metric of :data:`~hambench.analysis.comparisons.COMPARED`.
        group: Group of samples.
        margins: Smallest effects to report.
        runs: Run that each setting was measured in; speeds of two runs are not comparable.
    """
    runs = runs or {}
    labels = list(arms)
    rows: dict[tuple[str, str], Comparison] = {}
    for index, a in enumerate(labels):
        for b in labels[index + 1 :]:
            if metric in ("accuracy", "regret") or runs.get(a) == runs.get(b):
                for row in compare_arms(
                    arms[a], arms[b], samples, metrics=(metric,), groups=(group,), margins=margins
                ):
                    rows[a, b] = row
    return _relation(_corrected(rows))


def _corrected(rows: Mapping[tuple[str, str], Comparison]) -> dict[tuple[str, str], Verdict]:
    tested = {pair: row.p_value for pair, row in rows.items() if row.p_value is not None}
    adjusted = dict(zip(tested, adjusted_p_values(list(tested.values())), strict=True))
    verdicts: dict[tuple[str, str], Verdict] = {}
    for pair, row in rows.items():
        called = row.verdict in ("better", "worse") and METRICS[row.metric].metric_class != "exact"
        lost = called and adjusted.get(pair, 0.0) > SIGNIFICANCE
        verdicts[pair] = "inconclusive" if lost else row.verdict
    return verdicts


def _relation(verdicts: Mapping[tuple[str, str], Verdict]) -> Relation:
    def along(a: str, b: str) -> Verdict:
        if (a, b) in verdicts:
            return verdicts[a, b]
        return mirrored(verdicts[b, a]) if (b, a) in verdicts else "not comparable"

    return along


def mirrored(verdict: Verdict) -> Verdict:
    """Returns the verdict with the two sides swapped."""
    match verdict:
        case "better":
            return "worse"
        case "worse":
            return "better"
        case "equivalent" | "inconclusive" | "not comparable":
            return verdict
        case _:
            assert_never(verdict)


def _shown_to_dominate(relations: tuple[Relation, Relation], rival: str, label: str) -> bool:
    words = [along(rival, label) for along in relations]
    return "better" in words and all(word in ("better", "equivalent") for word in words)


def _orient(estimate: Estimate | None, better: Better) -> float | None:
    if estimate is None or not math.isfinite(estimate.value):
        return None
    return estimate.value if better == "higher" else -estimate.value


def _leads(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a != b and all(ours >= theirs for ours, theirs in zip(a, b, strict=True))
