"""Speed over batch: total and per user, what to take at each batch, and where a method stops paying."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from hambench.analysis.batches.curve import (
    BatchPoint,
    Growth,
    batch_points,
    choices,
    growths,
    identities,
    predicted_vanilla,
    stops_paying,
)
from hambench.analysis.fidelity import Identity
from hambench.groups import ALL
from hambench.records import Estimate
from hambench.reports.draw.canvas import MUTED, Canvas, key_columns, titles
from hambench.reports.number_text import ABSENT, bytes_text, listing, seconds_text, significant
from hambench.reports.page.standing import SAFE, Standing, accuracy_standing
from hambench.reports.values import Column, Figure, Section, Table, TableCell, number_cell, text_cell
from hambench.reports.view import View

WIDTH = 9.4
"""Of the figure, in inches."""
NOT_TAKEN: dict[Standing, str] = {
    "open": "accuracy open",
    "unscored": "accuracy unknown",
    "left": "leaves the target",
    "lost": "less accurate",
}
"""Why a setting that was shown to be faster is not taken, by the standing of its answers."""


def batches_section(view: View) -> Section | None:
    """Shows the curve over batch; ``None`` for a run of one batch."""
    points = points_of(view)
    if not points:
        return None
    return Section(
        name="batches",
        title="Batches",
        lead="Sequences decoded together, without padding: a round reads the weights once for all of them. The total "
        "is what the machine yields, and counts each round once; a user's speed is what one of them waits for. Each "
        "setting is held against vanilla at the same batch.",
        figures=(batch_figure(view, points),),
        tables=(choice_table(view, points),),
    )


def points_of(view: View) -> list[BatchPoint]:
    """Returns the settings over batches, measured over all samples."""
    measured = {cell.label: view.measured(cell) for cell in view.cells}
    compared = {
        label: comparison
        for (label, group, metric), comparison in view.comparisons.items()
        if group == ALL and metric == "tps"
    }
    return batch_points([cell.cell for cell in view.cells], measured, compared)


def batch_figure(view: View, points: Sequence[BatchPoint]) -> Figure:
    """Draws total and per-user speed over batch, one line per setting, and what bandwidth allows vanilla."""
    name = f"{view.prefix}batches-speed"
    settings = dict.fromkeys(point.setting for point in points)
    top = 0.5 + 0.18 * max(2, math.ceil(len(settings) / key_columns(WIDTH)))
    canvas = Canvas(
        name, width=WIDTH, height=3.1 + top, columns=2, margins=(0.6, 0.2, 0.55, top), wspace=0.25
    )
    total, user = canvas.axes
    styles, strengths = {}, {}
    for setting in settings:
        mine = [point for point in points if point.setting == setting]
        look = view.by_label[mine[0].cell.label]
        styles[setting], strengths[setting] = look.style, look.strength
        for ax, values in (
            (total, [(p.batch, p.total_tps) for p in mine]),
            (user, [(p.batch, p.user_tps) for p in mine]),
        ):
            known = [(batch, value) for batch, value in values if value is not None]
            if not known:
                continue
            (line,) = ax.plot(
                *zip(*known, strict=True),
                color=look.style.colour,
                linestyle=look.style.linestyle,
                marker=look.style.marker,
                markersize=5,
                linewidth=1.5,
                alpha=look.strength,
            )
            shown = ", ".join(f"{value:.0f} at {batch}" for batch, value in known)
            canvas.tag(line, tip=f"{setting}: {shown} tokens/s", series=look.series)
    allowed = predicted_vanilla(view.run, points, {cell.label: view.traces(cell) for cell in view.cells})
    for setting, limits in allowed.items():
        for ax, speeds in (
            (total, [limit.total_tps for limit in limits]),
            (user, [limit.user_tps for limit in limits]),
        ):
            (line,) = ax.plot(
                [limit.batch for limit in limits],
                speeds,
                color=MUTED,
                linewidth=1,
                linestyle=(0, (1, 2)),
            )
            canvas.tag(line, tip=f"what memory bandwidth allows {setting}")
    batches = sorted({point.batch for point in points})
    for ax in (total, user):
        _over_batches(ax, batches)
    titles(total, title="all users together", x="batch (log)", y="decode tokens/s")
    titles(user, title="one user", x="batch (log)", y="decode tokens/s")
    canvas.key(list(styles.items()), strengths=strengths)
    same = identities(view.run, points)
    notes = [_identity_words(same)] if same else []
    if allowed:
        notes.append("Dotted: what memory bandwidth allows vanilla; computing and others' prompts left out.")
    return Figure(
        name=name,
        title="Speed over batch",
        finding=finding(points, growths(view.run, points)),
        canvas=canvas,
        series=tuple(
            dict.fromkeys(
                (view.by_label[p.cell.label].series, view.by_label[p.cell.label].method) for p in points
            )
        ),
        table=_speed_table(name, points, same),
        notes=tuple(notes),
    )


def finding(points: Sequence[BatchPoint], grown: Sequence[Growth]) -> str:
    """Returns the answer in a sentence or two: vanilla's growth, and where the others stop paying."""
    said = [
        f"{growth.setting} yields {significant(growth.ratio.value)}{_interval(growth.ratio)} times as much at batch "
        f"{growth.largest} as at batch {growth.smallest}"
        for growth in grown[:2]
    ]
    ends = stops_paying(points)
    # batches where there is nothing to compare with say nothing of a setting
    run_at = {
        setting: [p.batch for p in points if p.setting == setting and p.compared is not None]
        for setting in ends
    }
    never = [setting for setting, end in ends.items() if end == min(run_at[setting])]
    said += [
        f"{setting} is not shown to pay from batch {end} on"
        for setting, end in ends.items()
        if end is not None and setting not in never
    ]
    always: dict[int, list[str]] = {}
    for setting, end in ends.items():
        if end is None:
            always.setdefault(max(run_at[setting]), []).append(setting)
    for largest, settings in always.items():
        verb = "pays" if len(settings) == 1 else "pay"
        said.append(f"{listing(settings[:3])} still {verb} at batch {largest}")
    if never:
        verb = "is" if len(never) == 1 else "are"
        said.append(f"{listing(never[:3])} {verb} shown to pay at no batch")
    return f"{'; '.join(said[:4])}." if said else "No setting has anything to be compared with."


def choice_table(view: View, points: Sequence[BatchPoint]) -> Table:
    """Returns the setting to take at each batch, out of those that the page's answer could ship."""
    standings = {cell.label: accuracy_standing(view, cell) for cell in view.cells}
    controls = {cell.label for cell in view.cells if cell.control}
    safe = {label for label, standing in standings.items() if standing in SAFE} - controls
    rows = []
    for choice in choices(points, safe):
        chosen = choice.chosen
        others: dict[str, BatchPoint] = {}
        for rival in choice.rivals:
            others.setdefault(_why_not(rival, standings, controls), rival)
        rows.append(
            (
                text_cell(str(choice.batch)),
                text_cell(chosen.setting),
                _gain_cell(chosen),
                number_cell(chosen.total_tps, metric="tps"),
                number_cell(chosen.user_tps),
                text_cell(
                    "; ".join(
                        f"{rival.setting} {_gain_cell(rival).text}: {why}" for why, rival in others.items()
                    )
                    or ABSENT
                ),
            )
        )
    return Table(
        name=f"{view.prefix}batches-choice",
        caption="What to take at each batch: of vanilla and the settings that were shown to be faster, with accuracy "
        "shown to hold or lossless by design, the simplest within the interval of the fastest one; vanilla is the "
        "simplest, then the others as listed.",
        columns=(
            Column("Batch", numeric=False),
            Column("Take", numeric=False),
            Column("× vanilla", "at this batch"),
            Column("Total", "tokens/s"),
            Column("One user", "tokens/s"),
            Column("Not taken", "measured faster; the fastest per reason", numeric=False),
        ),
        rows=tuple(rows),
    )


def _why_not(rival: BatchPoint, standings: Mapping[str, Standing], controls: set[str]) -> str:
    if not rival.pays:
        return "not shown to be faster than vanilla"
    if rival.cell.label in controls:
        return "a control"
    return NOT_TAKEN.get(standings[rival.cell.label], "the one taken is simpler")


def _speed_table(name: str, points: Sequence[BatchPoint], same: Mapping[str, Identity]) -> Table:
    return Table(
        name=name,
        caption="Every setting at every batch. Time per token and to the first token are a user's; prompts of other "
        "users are read in between.",
        columns=(
            Column("Setting", numeric=False),
            Column("Batch"),
            Column("Total", "tokens/s"),
            Column("One user", "tokens/s"),
            Column("× vanilla", "at this batch"),
            Column("Mean batch", "sequences"),
            Column("KV cache", "all users, peak"),
            Column("Same tokens", "answers equal to batch 1's"),
            Column("TTFT", "median"),
            Column("TPOT p50"),
            Column("TPOT p90"),
            Column("TPOT p99"),
        ),
        rows=tuple(
            (
                text_cell(p.setting),
                number_cell(float(p.batch), str(p.batch)),
                number_cell(p.total_tps, metric="tps"),
                number_cell(p.user_tps),
                _gain_cell(p),
                number_cell(1.0 if p.batch == 1 else p.measured.mean_batch),
                _text_of(p.kv_bytes, bytes_text),
                _same_cell(same.get(p.cell.label)),
                _text_of(p.measured.ttft_s, seconds_text),
                _text_of(p.measured.tpot_p50_s, seconds_text),
                _text_of(p.measured.tpot_p90_s, seconds_text),
                _text_of(p.measured.tpot_p99_s, seconds_text),
            )
            for p in points
        ),
        wide=False,
    )


def _gain_cell(point: BatchPoint) -> TableCell:
    if point.is_baseline or point.gain is None:
        return number_cell(point.gain, None if point.gain is None else "1")
    interval = "" if point.effect is None else _interval(point.effect)
    return number_cell(point.gain, f"{significant(point.gain)}×{interval}")


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f" ({significant(estimate.low)}–{significant(estimate.high)})"


def _same_cell(identity: Identity | None) -> TableCell:
    if identity is None:
        return TableCell(ABSENT)
    return number_cell(
        identity.num_identical / identity.num_samples, f"{identity.num_identical}/{identity.num_samples}"
    )


def _identity_words(same: Mapping[str, Identity]) -> str:
    equal = sum(identity.num_identical for identity in same.values())
    pairs = sum(identity.num_samples for identity in same.values())
    return f"{equal} of {pairs} answers of a batch are those of the same setting at batch 1, token by token."


def _text_of(value: float | None, words: Callable[[float], str]) -> TableCell:
    return number_cell(value, None if value is None else words(value))


def _over_batches(ax: Axes, batches: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xlim(batches[0] * 0.9, batches[-1] * 1.12)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(FixedLocator(batches))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
