"""KV memory while an answer grows, compared with the weights."""

from __future__ import annotations

from matplotlib.axes import Axes

from hambench.analysis.cold_start import start_ups
from hambench.records import SampleRecord
from hambench.reports.draw.canvas import INK, MUTED, PAGE, Canvas, padded, titles
from hambench.reports.draw.labels import beside_row
from hambench.reports.number_text import bytes_text, clip, listing, significant
from hambench.reports.sections.steps_figures import end_labels
from hambench.reports.values import Column, Figure, Section, Table, number_cell, text_cell
from hambench.reports.view import CellView, View

MIB = 2**20


def memory_section(view: View) -> Section:
    """Shows growth over the longest answer, and totals next to the weights."""
    figures = [figure for figure in (growth_figure(view), totals_figure(view)) if figure is not None]
    return Section(
        name="memory",
        title="Memory",
        lead="Bytes in use by all KV caches, counted from slots (layers × key and value × heads × head size × bytes), "
        "including the draft's cache. Reserved bytes that are not in use do not count.",
        figures=tuple(figures),
        missing=() if figures else ("No answer recorded its KV memory.",),
    )


def growth_figure(view: View) -> Figure | None:
    """Draws KV bytes against answer tokens, for the sample with the longest answers in all cells."""
    sample_id = _longest(view)
    if sample_id is None:
        return None
    lines: list[tuple[CellView, list[int], list[float]]] = []
    peaks: dict[str, list[float]] = {}
    for cell in view.cells:
        record = next((r for r in view.records[cell.label] if r.sample_id == sample_id), None)
        if record is None or record.trace is None or cell.control:
            continue
        in_use = [step.kv_bytes for step in record.trace.steps if step.kv_bytes is not None]
        if len(in_use) < len(record.trace.steps):
            continue
        tokens, total = [], 0
        for step in record.trace.steps:
            total += len(step.tokens)
            tokens.append(total)
        lines.append((cell, tokens, [value / MIB for value in in_use]))
        # rejected drafts and micro-steps are gone after the step
        peaks[cell.label] = [
            max(value, step.peak_kv_bytes or 0) / MIB
            for value, step in zip(in_use, record.trace.steps, strict=True)
        ]
    if not lines:
        return None
    name = f"{view.prefix}memory-growth"
    canvas = Canvas(name, width=6.9, height=3.6, margins=(0.55, 1.4, 0.55, 0.35))
    ax = canvas.axes[0]
    ax.set_xlim(0, max(tokens[-1] for _, tokens, _ in lines) * 1.02)
    heights = [value for _, _, values in lines for value in values]
    ax.set_ylim(*padded([*heights, *(max(mine) for mine in peaks.values())], floor=0))
    for cell, tokens, values in lines:
        (line,) = ax.plot(
            tokens,
            values,
            color=cell.style.colour,
            linestyle=cell.style.linestyle,
            drawstyle="steps-post",
            linewidth=1.5,
            alpha=cell.strength,
        )
        mine = peaks[cell.label]
        canvas.tag(line, tip=f"{cell.label}: peak {max(mine):.2f} MiB", series=cell.series)
        peak = max(range(len(mine)), key=mine.__getitem__)
        (mark,) = ax.plot(
            [tokens[peak]],
            [mine[peak]],
            marker=cell.style.marker,
            markersize=5,
            color=cell.style.colour,
            linestyle="none",
        )
        canvas.tag(
            mark,
            tip=f"{cell.label}: peak {mine[peak]:.2f} MiB in the step to token {tokens[peak]}",
            series=cell.series,
            point=cell.label,
            x=repr(float(tokens[peak])),
            y=repr(mine[peak]),
        )
    end_labels(canvas, ax, [(values[-1], float(tokens[-1]), cell) for cell, tokens, values in lines])
    titles(ax, x="tokens of the answer", y="KV in use, MiB (the axis need not begin at 0)")
    least, most = (choose(peaks, key=lambda label: max(peaks[label])) for choose in (min, max))
    record = next(r for r in view.records[least] if r.sample_id == sample_id)
    prompt = record.trace.prompt_tokens if record.trace else 0
    return Figure(
        name=name,
        title="KV memory while the longest answer grows",
        finding=f"{least} peaks lowest at {max(peaks[least]):.1f} MiB, {most} highest at {max(peaks[most]):.1f} MiB; "
        f"{prompt} prompt tokens are in all of them.",
        canvas=canvas,
        series=tuple(dict.fromkeys((cell.series, cell.method) for cell, _, _ in lines)),
        notes=(
            f"Sample {sample_id}. Lines are what is held after a step, until the next one. Marks are peaks, which a "
            "step may reach before it drops rejected drafts or micro-steps.",
        ),
    )


def totals_figure(view: View) -> Figure | None:
    """Draws weights, what a method adds to them, and KV per cell, which shows what a smaller cache saves in total."""
    weights = view.run.header.model.get("weight_bytes")
    starts = start_ups(view.run)
    rows = [
        (cell, float((starts[cell.label].extra_weight_bytes if cell.label in starts else None) or 0), kv)
        for cell in view.cells
        if (kv := _kv_in_use(view, cell)) is not None
    ]
    if not rows or not isinstance(weights, int | float) or isinstance(weights, bool):
        return None
    name = f"{view.prefix}memory-totals"
    left = min(3.2, 0.35 + 0.074 * max(len(cell.label) for cell, _, _ in rows))
    canvas = Canvas(name, width=left + 6.2, height=0.95 + 0.3 * len(rows), margins=(left, 1.3, 0.55, 0.35))
    ax = canvas.axes[0]
    _total_bars(canvas, ax, rows, float(weights))
    base = next((kv for cell, _, kv in rows if cell is view.baseline), rows[0][2])
    share = base / (base + weights)
    least = min(rows, key=lambda row: row[1] + row[2])
    unknown = [cell.label for cell, _, _ in rows if cell.label not in starts]
    return Figure(
        name=name,
        title="KV memory next to the weights",
        finding=f"KV is {share:.1%} of weights and KV together for {(view.baseline or rows[0][0]).label}: "
        f"halving it saves {share / 2:.1%}. {least[0].label} needs least in all, "
        f"{bytes_text(weights + least[1] + least[2])}.",
        canvas=canvas,
        notes=(
            "Weights of the target, one copy, then what the method adds to them (a quantised draft, grafted layers), "
            + (
                "then KV: the most in use at once, by all sequences of a batch."
                if _has_batches(view)
                else "then KV: the mean over answers of each answer's peak."
            ),
            *(
                (f"What {listing(unknown)} may add to the weights is not in this run, and in no bar.",)
                if unknown
                else ()
            ),
        ),
        table=Table(
            name=name,
            caption="Bars as drawn.",
            columns=(
                Column("Cell", numeric=False),
                Column("Weights"),
                Column("Added weights"),
                Column("KV"),
                Column("KV share", "of all three"),
            ),
            rows=tuple(
                (
                    text_cell(cell.label),
                    number_cell(float(weights), bytes_text(float(weights))),
                    number_cell(None if cell.label in unknown else added, bytes_text(added)),
                    number_cell(kv, bytes_text(kv)),
                    number_cell(kv / (kv + added + weights), f"{kv / (kv + added + weights):.1%}"),
                )
                for cell, added, kv in rows
            ),
        ),
    )


def _total_bars(canvas: Canvas, ax: Axes, rows: list[tuple[CellView, float, float]], weights: float) -> None:
    ax.set_xlim(0, (weights + max(added + kv for _, added, kv in rows)) / MIB * 1.02)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(False, axis="y")
    ax.set_yticks(range(len(rows)), [clip(cell.label, 42) for cell, _, _ in rows], fontsize=8.5, color=INK)
    for row, (cell, added, kv) in enumerate(rows):
        (plain,) = ax.barh(row, weights / MIB, height=0.6, color=MUTED, alpha=0.3, edgecolor=PAGE)
        canvas.tag(plain, tip=f"weights {bytes_text(weights)}")
        if added:
            (more,) = ax.barh(
                row,
                added / MIB,
                left=weights / MIB,
                height=0.6,
                color=cell.style.colour,
                alpha=0.35,
                edgecolor=PAGE,
                hatch="///",
            )
            canvas.tag(more, tip=f"{cell.label} adds {bytes_text(added)} of weights")
        (bar,) = ax.barh(
            row, kv / MIB, left=(weights + added) / MIB, height=0.6, color=cell.style.colour, edgecolor=PAGE
        )
        canvas.tag(bar, tip=f"{cell.label}: KV {bytes_text(kv)}")
        beside_row(ax, row, f"KV {significant(kv / MIB)} MiB")
    titles(ax, x="MiB: weights, hatched what the method adds to them, then KV")


def _has_batches(view: View) -> bool:
    return any(cell.cell.batch > 1 for cell in view.cells)


def _kv_in_use(view: View, cell: CellView) -> float | None:
    # a mean over answers can't be compared with what several answers hold together
    measured = view.measured(cell)
    return measured.batch_kv_bytes if _has_batches(view) else measured.kv_bytes


def _longest(view: View) -> str | None:
    """Returns the sample answered by the most cells, and of those the one with most tokens."""
    by_sample: dict[str, list[SampleRecord]] = {}
    for records in view.records.values():
        for record in records:
            if record.repeat == 0:
                by_sample.setdefault(record.sample_id, []).append(record)

    def weight(sample_id: str) -> tuple[int, int]:
        records_of_sample = by_sample[sample_id]
        return len(records_of_sample), sum(
            len(r.trace.token_ids) for r in records_of_sample if r.trace is not None
        )

    return max(by_sample, key=weight, default=None)
