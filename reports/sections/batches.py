"""Speed over batch: total and per user, what to take at each batch, and where a method stops paying."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from hambench.analysis.batches.curve import (
    BatchPoint,
    batch_points,
    choices,
    predicted_vanilla,
    stops_paying,
)
from hambench.groups import ALL
from hambench.reports.draw.canvas import MUTED, Canvas, titles
from hambench.reports.number_text import ABSENT, bytes_text, listing, seconds_text, significant
from hambench.reports.values import Column, Figure, Section, Table, TableCell, number_cell, text_cell
from hambench.reports.view import View


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
        "setting is held against vanilla at the same batch. Answers are those of batch 1, token by token.",
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
    canvas = Canvas(name, width=9.4, height=3.9, columns=2, margins=(0.6, 0.2, 0.55, 0.8), wspace=0.25)
    total, user = canvas.axes
    settings = dict.fromkeys(point.setting for point in points)
    styles = {}
    for setting in settings:
        mine = [point for point in points if point.setting == setting]
        look = view.by_label[mine[0].cell.label]
        styles[setting] = look.style
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
    if len(allowed) > 1:
        for ax, scale in ((total, lambda batch: 1), (user, lambda batch: batch)):
            (line,) = ax.plot(
                list(allowed),
                [tps / scale(batch) for batch, tps in allowed.items()],
                color=MUTED,
                linewidth=1,
                linestyle=(0, (1, 2)),
            )
            canvas.tag(line, tip="what memory bandwidth allows vanilla")
    batches = sorted({point.batch for point in points})
    for ax in (total, user):
        _over_batches(ax, batches)
    titles(total, title="all users together", x="batch (log)", y="decode tokens/s")
    titles(user, title="one user", x="batch (log)")
    canvas.key(list(styles.items()))
    notes = ("Dotted: what memory bandwidth allows vanilla, computing left out.",) if len(allowed) > 1 else ()
    return Figure(
        name=name,
        title="Speed over batch",
        finding=finding(points),
        canvas=canvas,
        series=tuple(
            dict.fromkeys(
                (view.by_label[p.cell.label].series, view.by_label[p.cell.label].method) for p in points
            )
        ),
        table=_speed_table(name, points),
        notes=notes,
    )


def finding(points: Sequence[BatchPoint]) -> str:
    """Returns the answer in a sentence or two: vanilla's growth, and where the others stop paying."""
    vanilla = [p for p in points if p.is_baseline and p.total_tps]
    said = []
    if len(vanilla) > 1 and vanilla[0].total_tps:
        first, last = vanilla[0], vanilla[-1]
        growth = (last.total_tps or 0.0) / vanilla[0].total_tps
        said.append(
            f"Vanilla yields {significant(growth)} times as much at batch {last.batch} as at batch {first.batch}"
        )
    ends = stops_paying(points)
    largest, smallest = max(p.batch for p in points), min(p.batch for p in points)
    never = [setting for setting, end in ends.items() if end == smallest]
    always = [setting for setting, end in ends.items() if end is None]
    said += [
        f"{setting} is not shown to pay from batch {end} on"
        for setting, end in ends.items()
        if end is not None and end != smallest
    ]
    if always:
        verb = "pays" if len(always) == 1 else "pay"
        said.append(f"{listing(always[:3])} still {verb} at batch {largest}")
    if never:
        verb = "is" if len(never) == 1 else "are"
        said.append(f"{listing(never[:3])} {verb} shown to pay at no batch")
    return "; ".join(said[:4]) + "."


def choice_table(view: View, points: Sequence[BatchPoint]) -> Table:
    """Returns the setting to take at each batch."""
    rows = []
    for choice in choices(points):
        chosen, fastest = choice.chosen, choice.fastest
        rows.append(
            (
                text_cell(str(choice.batch)),
                text_cell(chosen.setting),
                _gain_cell(chosen),
                number_cell(chosen.total_tps, metric="tps"),
                number_cell(chosen.user_tps),
                text_cell(ABSENT if fastest is chosen else fastest.setting),
                TableCell(ABSENT) if fastest is chosen else _gain_cell(fastest),
            )
        )
    return Table(
        name=f"{view.prefix}batches-choice",
        caption="What to take at each batch: the simplest setting within the interval of the fastest one; vanilla is "
        "the simplest, then the others as listed.",
        columns=(
            Column("Batch", numeric=False),
            Column("Take", numeric=False),
            Column("× vanilla", "at this batch"),
            Column("Total", "tokens/s"),
            Column("One user", "tokens/s"),
            Column("Fastest", "if another", numeric=False),
            Column("× vanilla", "of the fastest"),
        ),
        rows=tuple(rows),
    )


def _speed_table(name: str, points: Sequence[BatchPoint]) -> Table:
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
    effect = None if point.compared is None else point.compared.effect
    interval = ""
    if effect is not None and effect.low is not None and effect.high is not None:
        interval = f" ({significant(effect.low)}–{significant(effect.high)})"
    return number_cell(point.gain, f"{significant(point.gain)}×{interval}")


def _text_of(value: float | None, words: object) -> TableCell:
    assert callable(words)
    return number_cell(value, None if value is None else words(value))


def _over_batches(ax: Axes, batches: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xlim(batches[0] * 0.9, batches[-1] * 1.12)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(FixedLocator(batches))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
