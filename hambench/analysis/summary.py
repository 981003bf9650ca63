"""A run in short: one object per cell for programs, one table for a terminal."""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hambench.analysis.bandwidth_limit import limits_of
from hambench.analysis.baselines import baseline_of, has_several
from hambench.analysis.cautions.prefix_cache import cache_caution
from hambench.analysis.cautions.shared_prompts import timed_prefills
from hambench.analysis.cautions.thinking import counted_apart
from hambench.analysis.cold_start import start_ups, unsettled
from hambench.analysis.comparisons import COMPARED, compare_run
from hambench.analysis.cost import dollars_per_million
from hambench.analysis.drafts.costs import DraftCosts, all_draft_costs
from hambench.analysis.exports.frames import conditions_of
from hambench.analysis.fidelity import REGRET_WORDS, SAMPLED_SAME, Identity, time_line, token_identity
from hambench.analysis.measurements import Measurement, measure_run, repetition_cautions
from hambench.analysis.suite_averages import averages_of
from hambench.groups import ALL, in_group
from hambench.records import Cell, Comparison, Estimate
from hambench.store import Run

MOST_PLACES = 8
"""Places of a draft whose acceptance is printed."""
TITLES = (
    "method",
    "tok/s",
    "× vanilla [95 %]",
    "TTFT ms",
    "TPOT ms",
    "m",
    "accept",
    "KV MiB",
    "KV out×",
    "KV all×",
    "accuracy [95 %]",
    "regret",
    "agree",
    "same",
    "n",
)
"""Columns of the table for a terminal."""
_SPOKEN = {"tps": "speed", "kv_bytes_per_position": "KV memory", "regret": "fidelity"}


def cell_objects(run: Run) -> list[dict[str, Any]]:
    """Returns one JSON object per cell with all its measurements over all samples; unknown values are ``None``."""
    overall = {m.cell: m for m in measure_run(run, [ALL])}
    limits, starts = limits_of(run), start_ups(run)
    drafting = all_draft_costs(run)
    speeds = {row.candidate: row for row in _comparisons(run, ALL, ("tps",))}
    averages = {each.average.cell: each.as_dict() for each in averages_of(run)}
    regrets = {row.candidate: row for row in _comparisons(run, ALL, ("regret",))}
    objects = []
    for cell in run.header.cells:
        baseline = baseline_of(cell, run.header.cells)
        ratio = _speed_ratio(cell, baseline, overall[cell.label], speeds.get(cell.label))
        measured = overall[cell.label]
        numbers = dataclasses.asdict(measured)
        numbers["m"] = numbers.pop("tokens_per_target_forward")
        limit, began = limits.get(cell.label), starts.get(cell.label)
        identity = token_identity(run, cell.label, baseline.label) if baseline else None
        objects.append(
            {
                "cell": cell.label,
                "method": cell.method,
                "knobs": cell.knobs,
                **conditions_of(cell),
                "baseline": baseline.label if baseline else None,
                **{name: value for name, value in numbers.items() if name not in ("cell", "group")},
                "tps_ratio": ratio.value if ratio else None,
                "tps_ratio_low": ratio.low if ratio else None,
                "tps_ratio_high": ratio.high if ratio else None,
                "regret_delta": _as_builtins(regrets.get(cell.label)),
                "predicted_tps": limit.predicted_tps if limit else None,
                "mbu": limit.mbu if limit else None,
                "mbu_flag": limit.flag or None if limit else None,
                "cold_start_s": began.cold_start_s if began else None,
                "warmup_settled": began.settled if began else None,
                "extra_weight_bytes": began.extra_weight_bytes if began else None,
                "pays_from_tokens": began.pays_from_tokens if began else None,
                **_drafting(drafting.get(cell.label)),
                "identity": dataclasses.asdict(identity) if identity else None,
                "benchmark": averages.get(cell.label),
                "price_per_hour": run.header.price_per_hour,
                "dollars_per_million_tokens": dollars_per_million(
                    measured.machine_tps, run.header.price_per_hour
                ),
                "edition": run.header.edition,
                "complete": run.complete,
                "run": str(run.path),
            }
        )
    return objects


def _drafting(costs: DraftCosts | None) -> dict[str, Any]:
    """Returns the costs and possible gains of a cell's drafts; ``None`` each for a cell without drafts."""
    best = costs.best() if costs else None
    return {
        "draft_cost": costs.delta if costs else None,
        "verify_cost": dict(sorted(costs.verify.by_rows.items())) if costs else None,
        "draft_best_speedup": best[1] if best else None,
        "draft_best_k": best[0] if best else None,
        "draft_most_k": costs.most_drafted if costs else None,
        "draft_limit": costs.limit if costs else None,
    }


def _drafting_words(costs: DraftCosts) -> str:
    """Acceptance by place, cost of the widest verification that was measured, and what limits the setting."""
    shares = " ".join(f"{share:.2f}" for share in costs.acceptance[:MOST_PLACES])
    more = " …" if len(costs.acceptance) > MOST_PLACES else ""
    widest = costs.verify.widest
    parts = [
        f"drafts accepted by place {shares}{more}",
        f"v({widest}) {costs.verify(widest):.2f}" if widest else "",
        costs.limit or costs.unknown,
    ]
    return "; ".join(part for part in parts if part)


def _as_builtins(row: Comparison | None) -> dict[str, Any] | None:
    """Returns a difference with its interval and verdict as plain values."""
    if row is None or row.effect is None:
        return None
    return {**dataclasses.asdict(row.effect), "verdict": row.verdict, "reason": row.reason or None}


def _speed_ratio(
    cell: Cell, baseline: Cell | None, measured: Measurement, against: Comparison | None
) -> Estimate | None:
    if baseline is not None and baseline.label == cell.label:
        return Estimate(value=1.0) if measured.tps else None
    return against.effect if baseline is not None and against is not None else None


def to_json_line(item: dict[str, Any]) -> str:
    """Compact JSON; NaN and infinities become null."""
    return msgspec.json.encode(item).decode()


def render_table(run: Run, *, group: str = ALL, width: int = 150) -> str:
    """Formats the run as a table for a terminal, warnings first.

    ``same`` counts the answers that equal the baseline's token by token.

    Args:
        run: The run.
        group: Samples that the numbers and verdicts are about; warnings are the whole run's.
        width: Columns of the terminal. A longer label is broken between its settings.
    """
    measured = measure_run(run, [group])
    part = _part(run, group)
    cells = run.header.cells
    baselines = {cell.label: baseline_of(cell, cells) for cell in cells}
    several = has_several(cells)
    comparisons: dict[str, list[Comparison]] = {}
    for row in _comparisons(run, group):
        comparisons.setdefault(row.candidate, []).append(row)
    price = run.header.price_per_hour
    rows = []
    for measurement in measured:
        baseline = baselines[measurement.cell]
        identity = token_identity(part, measurement.cell, baseline.label) if baseline else None
        against = comparisons.get(measurement.cell, [])
        cost = dollars_per_million(measurement.machine_tps, price)
        last = [] if price is None else [Text(_number(cost, 2))]
        rows.append([*_row(measurement, against, identity, baseline), *last])
    table = _table(rows, width, has_price=price is not None)
    out = io.StringIO()
    console = Console(file=out, width=max(width, _width_of(table)), no_color=True, highlight=False)
    for note in run.header.notes:
        console.print(Text(f"! {note}"), soft_wrap=True)
    if not run.complete:
        console.print(Text(f"! Unfinished: {len(run.measured)} of {run.num_expected} records."))
    for line in repetition_cautions(run, {m.cell: m for m in measured}):
        console.print(Text(f"! {line}"), soft_wrap=True)
    if (cached := cache_caution(run)) is not None:
        console.print(Text(f"! {cached[0].upper()}{cached[1:]}"), soft_wrap=True)
    if pace := unsettled(run):
        console.print(Text(f"! {pace}."), soft_wrap=True)
    console.print(table)
    if line := timed_prefills(measured):
        console.print(Text(line), soft_wrap=True)
    judged = any(measurement.num_judged for measurement in measured)
    shown = {m.cell for m in measured}
    for cell in cells:
        if cell.label in shown and (line := counted_apart(part.answered(cell.label))):
            console.print(Text(f"{cell.label}: {line}"), soft_wrap=True)
    if comparisons or judged:
        console.print()
    if comparisons and run.header.temperature > 0:
        console.print(Text(SAMPLED_SAME), soft_wrap=True)
    if judged:
        judging = time_line(run) if group == ALL else ""
        console.print(Text(f"{REGRET_WORDS} {judging}".rstrip()), soft_wrap=True)
    for label, costs in all_draft_costs(part).items():
        console.print(Text(f"{label}: {_drafting_words(costs)}"), soft_wrap=True)
    if several:
        console.print(
            "Each ratio is to vanilla under the same conditions; of the other vanilla cells, to the first."
        )
    for label, against in comparisons.items():
        judge = baselines[label]
        beside = f" against {judge.label}" if several and judge else ""
        console.print(Text(f"{label}{beside}: {spoken_verdict(against)}"), soft_wrap=True)
    return out.getvalue().rstrip("\n")


def _part(run: Run, group: str) -> Run:
    """Returns the run with the samples of a group only."""
    if group == ALL:
        return run
    samples = {key: sample for key, sample in run.samples.items() if in_group(sample, group)}
    records = tuple(record for record in run.records if record.sample_id in samples)
    return dataclasses.replace(run, samples=samples, records=records)


def _table(rows: Sequence[Sequence[Text]], width: int, *, has_price: bool) -> Table:
    """Returns the table in a width if it fits: labels give way, never a number."""
    whole = _columns(has_price=has_price)
    for row in rows:
        whole.add_row(*row)
    longest = max(map(cell_len, (TITLES[0], *(row[0].plain for row in rows))))
    room = width - (_width_of(whole) - longest)
    if longest <= room:
        return whole
    broken = _columns(has_price=has_price)
    for label, *numbers in rows:
        broken.add_row(Text("\n".join(_lines(label.plain, room))), *numbers)
    return broken


def _columns(*, has_price: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in TITLES if not has_price else (*TITLES, "$/M tok"):
        table.add_column(title, justify="left" if title == "method" else "right", no_wrap=True)
    return table


def _width_of(table: Table) -> int:
    return Console(width=10_000).measure(table).maximum


def _lines(label: str, room: int) -> list[str]:
    """Breaks a label before its bracket, after a comma or before the name of its run, and nowhere else."""
    lines = [""]
    for piece in re.findall(r"(?:\[| @)?[^,\[]*?(?:,|(?=\[| @)|\Z)", label):
        if piece and lines[-1] and cell_len(lines[-1] + piece) > room:
            lines.append("")
        lines[-1] += piece
    return lines


def spoken_verdict(against: Sequence[Comparison]) -> str:
    """Formats the verdicts on one cell: ``speed better, KV memory worse, accuracy inconclusive (…)``."""
    parts = []
    for comparison in against:
        reason = f" ({comparison.reason})" if comparison.reason else ""
        parts.append(f"{_SPOKEN.get(comparison.metric, comparison.metric)} {comparison.verdict}{reason}")
    return "; ".join(parts)


def _comparisons(run: Run, group: str, metrics: Sequence[str] = COMPARED) -> list[Comparison]:
    cells = run.header.cells
    if not run.measured or all(baseline_of(cell, cells) is None for cell in cells):
        return []
    return compare_run(run, metrics=metrics, groups=[group])


def _row(
    m: Measurement, against: Sequence[Comparison], identity: Identity | None, baseline: Cell | None
) -> list[Text]:
    speed = next((c.effect for c in against if c.metric == "tps"), None)
    is_baseline = baseline is not None and baseline.label == m.cell
    accuracy = _interval(m.accuracy, 1) if m.accuracy else "–"
    count = str(m.num_samples) + (f" (+{m.num_errors} failed)" if m.num_errors else "")
    cells = [
        m.cell,
        _number(m.tps, 1),
        _interval(speed, 2) if speed else ("1" if m.tps and is_baseline else "–"),
        _number(m.ttft_s, 0, 1e3),
        _number(m.tpot_p50_s, 1, 1e3),
        _number(m.tokens_per_target_forward, 2),
        _number(m.acceptance_rate, 2),
        _number(m.kv_bytes, 1, 1 / 2**20),
        _number(m.kv_compression_output, 2),
        _number(m.kv_compression_total, 2),
        accuracy,
        _number(m.regret.value if m.regret else None, 3),
        "–" if m.agreement is None else f"{m.agreement:.1%}",
        f"{identity.num_identical}/{identity.num_samples}" if identity else "–",
        count,
    ]
    # Text, not str: names may hold brackets, which rich would read as markup
    return [Text(cell) for cell in cells]


def _number(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "–" if value is None or math.isnan(value) else f"{value * scale:.{digits}f}"


def _interval(estimate: Estimate, digits: int) -> str:
    value = _number(estimate.value, digits)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{_number(estimate.low, digits)}, {_number(estimate.high, digits)}]"
