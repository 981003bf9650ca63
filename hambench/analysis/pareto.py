"""Pareto fronts: which points no other point beats on both axes, strict about ties and aware of intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hambench.analysis.metrics import METRICS, Better, metric_value
from hambench.records import Comparison, Estimate, Measurement

Standing = Literal["front", "tied", "dominated", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One configuration in the plane of two metrics; an interval where there is one."""

    label: str
    x: Estimate | None
    y: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """How each point stands."""

    standings: dict[str, Standing]
    """``front``: no point is at least as good on both axes and better on one. ``tied``: some point is, but its lead on
    each axis is within the intervals. ``dominated``: some point is, and its lead on an axis is beyond them.
    ``missing``: an axis has no finite value."""
    order: tuple[str, ...]
    """Labels of the front from its worst x to its best; equal points stay next to each other, in the order given."""
    num_missing: int


def pareto_front(
    points: Sequence[Point], *, x_better: Better = "higher", y_better: Better = "higher"
) -> Front:
    """Sorts points into front, tied, dominated and missing.

    Points equal on both axes don't dominate each other: all of them are on the front, or none.

    Args:
        points: Points with unique labels.
        x_better: Which direction of x is better.
        y_better: Which direction of y is better.

    Raises:
        ValueError: If two points share a label.
    """
    if len({point.label for point in points}) != len(points):
        raise ValueError("labels must be unique")
    oriented = {p.label: (_orient(p.x, x_better), _orient(p.y, y_better)) for p in points}
    whole = {label: (x, y) for label, (x, y) in oriented.items() if x is not None and y is not None}
    standings: dict[str, Standing] = dict.fromkeys(oriented, "missing")
    for label, point in whole.items():
        rivals = [other for other in whole.values() if _dominates(other, point)]
        if not rivals:
            standings[label] = "front"
        elif any(_beyond_doubt(rival, point) for rival in rivals):
            standings[label] = "dominated"
        else:
            standings[label] = "tied"
    front = sorted(
        (label for label in whole if standings[label] == "front"), key=lambda label: whole[label][0].value
    )
    return Front(standings=standings, order=tuple(front), num_missing=len(points) - len(whole))


def front_of(
    measurements: Sequence[Measurement],
    *,
    x: str,
    y: str = "accuracy",
    comparisons: Sequence[Comparison] = (),
) -> Front:
    """The front of measured cells over two metrics, each better in its own direction.

    Args:
        measurements: One per cell, all of one group.
        x: A metric's name, e.g. ``tps`` or ``kv_bytes``.
        y: The other one's.
        comparisons: Paired comparisons with the baseline; their intervals replace the cells' own, because
            what all cells share (hard questions, long answers) says nothing about which is better.
    """
    paired = {(c.candidate, c.group, c.metric): c for c in comparisons}
    points = [
        Point(
            label=m.cell,
            x=_estimate(m, x, paired.get((m.cell, m.group, x))),
            y=_estimate(m, y, paired.get((m.cell, m.group, y))),
        )
        for m in measurements
    ]
    return pareto_front(points, x_better=METRICS[x].better, y_better=METRICS[y].better)


@dataclass(frozen=True, slots=True)
class _Oriented:
    """A value turned so that higher is better."""

    value: float
    low: float
    high: float


def _orient(estimate: Estimate | None, better: Better) -> _Oriented | None:
    if estimate is None or not math.isfinite(estimate.value):
        return None
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    if better == "higher":
        return _Oriented(estimate.value, low, high)
    return _Oriented(-estimate.value, -high, -low)


def _dominates(a: tuple[_Oriented, _Oriented], b: tuple[_Oriented, _Oriented]) -> bool:
    at_least = all(ours.value >= theirs.value for ours, theirs in zip(a, b, strict=True))
    return at_least and any(ours.value > theirs.value for ours, theirs in zip(a, b, strict=True))


def _beyond_doubt(a: tuple[_Oriented, _Oriented], b: tuple[_Oriented, _Oriented]) -> bool:
    return any(_leads(ours, theirs) for ours, theirs in zip(a, b, strict=True))


def _leads(ours: _Oriented, theirs: _Oriented) -> bool:
    # a baseline has no interval of its own: the other's is that of their difference and decides alone
    if theirs.low == theirs.high and ours.low < ours.high:
        return ours.low > theirs.value
    if ours.low == ours.high and theirs.low < theirs.high:
        return ours.value > theirs.high
    # a lead is within doubt while each interval holds the other's value
    return ours.low > theirs.value or ours.value > theirs.high


def _estimate(measurement: Measurement, metric: str, comparison: Comparison | None) -> Estimate | None:
    value = metric_value(measurement, metric)
    if value is None:
        return None
    own = getattr(measurement, metric)
    effect = comparison.effect if comparison is not None else None
    if effect is None or effect.low is None or effect.high is None:
        return own if isinstance(own, Estimate) else Estimate(value=value)
    if metric == "accuracy":
        shift = value - effect.value
        return Estimate(value=value, low=effect.low + shift, high=effect.high + shift, n=effect.n)
    scale = value / effect.value
    return Estimate(value=value, low=effect.low * scale, high=effect.high * scale, n=effect.n)
