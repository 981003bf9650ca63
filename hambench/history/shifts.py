"""Detects shifts in a series of runs, with a prediction interval for the next run from the accepted ones before it.

With so few runs, an interval finds the shifts that change-point searches find, and does not mistake slow noise for
steps as they do. A single run outside is an outlier; two in a row on one side are a shift. Advisory: the paired gate
decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import stats

from hambench.analysis.metrics import Better
from hambench.history.archive import Annotation, Entry, History

CONFIDENCE = 0.995
MIN_RUNS, WINDOW = 8, 20
"""Runs required before an interval is given, and the most that it looks back on."""
DEFAULT_THRESHOLD = 0.02
"""Smallest relative change of a ratio to report."""

Kind = Literal["shift", "outlier", "watch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One run of a series."""

    run_id: str
    created_at: str
    commit: str | None
    value: float
    segment: int
    """Number of the segment; runs of one segment share versions, weights and prompts."""
    broken_by: str = ""
    """Reason why a new segment begins here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A run outside the range predicted from earlier runs."""

    kind: Kind
    """``watch``: only the newest run is outside, and the next one decides."""
    index: int
    expected: float
    low: float
    high: float
    value: float
    better: bool


def points_of(
    entries: Sequence[Entry], metric: str, cell: str, annotations: Sequence[Annotation] = ()
) -> list[Point]:
    """Returns a series of one machine and suite, oldest first.

    A new segment begins where the environment changed or an annotation says so.
    """
    points: list[Point] = []
    before: Entry | None = None
    segment = 0
    for entry in entries:
        tracked = entry.series.get(metric, {}).get(cell)
        if tracked is None or not math.isfinite(tracked.value):
            continue
        why = _break_between(before, entry, annotations) if before is not None else ""
        segment += bool(why)
        points.append(
            Point(
                run_id=entry.run_id,
                created_at=entry.created_at,
                commit=entry.commit,
                value=tracked.value,
                segment=segment,
                broken_by=why,
            )
        )
        before = entry
    return points


def find_shifts(
    points: Sequence[Point], *, better: Better = "higher", threshold: float = DEFAULT_THRESHOLD
) -> tuple[list[Finding], int]:
    """Returns shifts and outliers of every segment, and the number of accepted runs that the newest was held against.

    A segment of fewer than nine runs has no findings.
    """
    num_before = 0
    findings: list[Finding] = []
    accepted: list[float] = []
    suspect: tuple[int, Finding] | None = None
    for index, point in enumerate(points):
        if index and point.segment != points[index - 1].segment:
            findings += [replace(suspect[1], kind="outlier")] if suspect else []
            accepted, suspect = [], None
        log = math.log(point.value) if point.value > 0 else None
        num_before = len(accepted)
        outside = _outside(index, point.value, log, accepted, better, threshold)
        if outside is None:
            findings += [replace(suspect[1], kind="outlier")] if suspect else []
            suspect = None
            if log is not None:
                accepted = [*accepted, log][-WINDOW:]
        elif suspect is not None and suspect[1].better == outside.better:
            findings.append(replace(suspect[1], kind="shift"))
            # the new level begins with the two runs that revealed it
            accepted = [math.log(points[i].value) for i in (suspect[0], index) if points[i].value > 0]
            suspect = None
        else:
            findings += [replace(suspect[1], kind="outlier")] if suspect else []
            suspect = (index, outside)
    return [*findings, suspect[1]] if suspect else findings, num_before


def prediction_interval(logs: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean, low and high of the range in which one more run should lie."""
    values = np.asarray(logs, dtype=float)
    n = len(values)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * values.std(ddof=1) * math.sqrt(1 + 1 / n)
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def _outside(
    index: int, value: float, log: float | None, accepted: Sequence[float], better: Better, threshold: float
) -> Finding | None:
    if len(accepted) < MIN_RUNS:
        return None
    mean, low, high = prediction_interval(accepted)
    gone = log is None
    if not gone and (low <= (log or 0.0) <= high or abs((log or 0.0) - mean) < math.log1p(threshold)):
        return None
    higher = not gone and (log or 0.0) > mean
    return Finding(
        kind="watch",
        index=index,
        expected=math.exp(mean),
        low=math.exp(low),
        high=math.exp(high),
        value=value,
        better=higher == (better == "higher"),
    )


def _break_between(before: Entry, entry: Entry, annotations: Sequence[Annotation]) -> str:
    changed = [
        f"{key} {before.versions.get(key)} → {entry.versions.get(key)}"
        for key in sorted({*before.versions, *entry.versions})
        if before.versions.get(key) != entry.versions.get(key)
    ]
    changed += ["other weights"] if before.model != entry.model else []
    changed += ["other prompts"] if before.data != entry.data else []
    changed += [
        made.text
        for made in annotations
        if made.breaks
        and made.machine in (None, entry.machine)
        and before.created_at < made.at <= entry.created_at
    ]
    return "; ".join(changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One series with its findings and ratios."""

    metric: str
    cell: str
    unit: str
    better: Better
    points: tuple[Point, ...]
    findings: tuple[Finding, ...]
    since_pins: dict[str, float]
    """Newest value over the pinned run's, by pin; shows a slow drift that a moving window absorbs."""

    num_before: int
    """Accepted runs that the newest one was held against."""

    @property
    def lost(self) -> bool | None:
        """True if the newest run is the second of a shift for the worse; ``None`` with too few runs to tell."""
        newest = [finding for finding in self.findings if finding.index == len(self.points) - 2]
        if any(finding.kind == "shift" and not finding.better for finding in newest):
            return True
        return False if self.num_before >= MIN_RUNS else None

    @property
    def verdict(self) -> str:
        """Whether the series ends with a loss, in words."""
        match self.lost:
            case True:
                return "confirmed loss"
            case False:
                return "no confirmed loss"
            case None:
                there = f"{self.num_before + 1} of {MIN_RUNS + 1} runs since the last change"
                return f"too few runs to tell: {there}"

    def lines(self) -> list[str]:
        """Formats the series for a terminal."""
        newest = self.points[-1]
        lines = [
            f"{self.metric} of {self.cell}: {newest.value:.4g} {self.unit}, {len(self.points)} runs  {self.sparkline}",
            f"  {self.verdict}",
        ]
        lines += [
            f"  {point.created_at[:16]} new series: {point.broken_by}"
            for point in self.points
            if point.broken_by
        ]
        for finding in self.findings:
            point = self.points[finding.index]
            way = "better" if finding.better else "worse"
            lines.append(
                f"  {point.created_at[:16]} {finding.kind}, {way}: {finding.value:.4g}, expected "
                f"{finding.low:.4g} to {finding.high:.4g} ({(point.commit or 'no commit')[:8]}, {point.run_id})"
            )
        lines += [f"  since {name}: {ratio - 1:+.1%}" for name, ratio in self.since_pins.items()]
        return lines

    @property
    def sparkline(self) -> str:
        """Last forty values as bars."""
        values = [point.value for point in self.points[-40:]]
        low, high = min(values), max(values)
        bars = "▁▂▃▄▅▆▇█"
        return "".join(bars[round((v - low) / (high - low) * 7) if high > low else 3] for v in values)

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {**asdict(self), "lost": self.lost, "verdict": self.verdict}


def describe_series(
    history: History,
    entries: Sequence[Entry],
    metric: str,
    cell: str,
    *,
    threshold: float = DEFAULT_THRESHOLD,
) -> Series:
    """Builds a series of one machine and suite, with its findings.

    Args:
        history: History with pins and annotations.
        entries: Runs of one machine and suite, oldest first.
        metric: Key of :attr:`~hambench.history.archive.Entry.series`.
        cell: Label of the cell.
        threshold: Smallest relative change to report.
    """
    points = points_of(entries, metric, cell, history.annotations)
    tracked = next(e.series[metric][cell] for e in entries if cell in e.series.get(metric, {}))
    pinned = {
        name: point.value
        for name, pin in sorted(history.pins.items())
        for point in points
        if point.run_id == pin.run_id and point.value
    }
    findings, num_before = find_shifts(points, better=tracked.better, threshold=threshold)
    return Series(
        metric=metric,
        cell=cell,
        unit=tracked.unit,
        better=tracked.better,
        points=tuple(points),
        findings=tuple(findings),
        num_before=num_before,
        since_pins={name: points[-1].value / value for name, value in pinned.items()},
    )
