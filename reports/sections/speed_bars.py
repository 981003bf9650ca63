"""The paper's figure 5: decode speed per task as bars from zero, with the paired speed-up and its interval."""

from __future__ import annotations

from collections.abc import Sequence

from hambench.groups import group_title
from hambench.records import Comparison
from hambench.registry import facts_of
from hambench.reports.draw.canvas import INK, MUTED, Canvas, titles
from hambench.reports.number_text import clip
from hambench.reports.values import Column, Figure, Table, number_cell, text_cell
from hambench.reports.view import CellView, View

MOST_TASKS = 8


def speed_bars(view: View) -> Figure | None:
    """Draws bars for the baseline and each method's main settings; ``None`` if nothing was timed."""
    cells = chosen(view)
    by_category = len(view.tasks) > MOST_TASKS and bool(view.wider_categories)
    groups = view.wider_categories if by_category else view.tasks
    groups = [g for g in groups if any(view.measured(cell, g).tps is not None for cell in cells)]
    if not groups or not cells:
        return None
    shown = groups[:MOST_TASKS]
    name = f"{view.prefix}speed-bars"
    rows = -(-len(shown) // 4)
    per_row = -(-len(shown) // rows)
    canvas = Canvas(
        name,
        width=max(5.0, 0.7 + per_row * (0.42 * len(cells) + 0.45)),
        height=2.9 * rows + 0.6,
        rows=rows,
        margins=(0.55, 0.2, 0.55, 0.85),
        hspace=0.4,
    )
    width = 0.8 / len(cells)
    top = max(view.measured(cell, g).tps or 0.0 for cell in cells for g in shown)
    for index, ax in enumerate(canvas.axes):
        here = shown[index * per_row : (index + 1) * per_row]
        ax.set_xlim(-0.5, per_row - 0.5)
        ax.set_ylim(0, top * 1.22)
        ax.grid(False, axis="x")
        ax.set_xticks(
            range(len(here)),
            [
                f"{clip(group_title(g).rpartition('/')[2], 22)}\nn={_most_samples(view, cells, g)}"
                for g in here
            ],
            color=INK,
        )
        for at, group in enumerate(here):
            for order, cell in enumerate(cells):
                tps = view.measured(cell, group).tps
                if tps is None:
                    continue
                x = at + (order - (len(cells) - 1) / 2) * width
                estimate = view.estimate(cell, "tps", group)
                (bar,) = ax.bar(
                    x,
                    tps,
                    width=width * 0.9,
                    color=cell.style.colour,
                    alpha=0.35 if _repeated(cells, cell) else 0.8,
                    edgecolor=cell.style.colour,
                    linewidth=1,
                )
                compared = view.compared(cell, "tps", group)
                ratio = compared.effect.value if compared and compared.effect else None
                said = "" if ratio is None else f", {ratio:.2f}×"
                canvas.tag(bar, tip=f"{cell.label}, {group_title(group)}: {tps:.1f} tokens/s{said}")
                high = tps
                if estimate is not None and estimate.low is not None and estimate.high is not None:
                    ax.plot([x, x], [estimate.low, estimate.high], color=INK, linewidth=1)
                    high = max(high, estimate.high)
                if ratio is not None:
                    text = ax.annotate(
                        f"{ratio:.2f}×",
                        (x, min(high, top * 1.13)),
                        xytext=(0, 3),
                        textcoords="offset points",
                        ha="center",
                        fontsize=7,
                        color=cell.style.colour,
                    )
                    canvas.tag(text, halo=1)
        titles(ax, y="decode tokens/s")
    _key(canvas, cells)
    fast = [cell for cell in cells if cell is not view.baseline]
    left = f" {len(groups) - len(shown)} more are in the table." if len(groups) > len(shown) else ""
    return Figure(
        name=name,
        title="Decode speed per category" if by_category else "Decode speed per task (the paper's figure 5)",
        finding=_finding(view, fast, shown),
        canvas=canvas,
        table=_table(view, cells, groups, name),
        notes=(
            "Over each bar: the paired ratio to the baseline; thin lines are its 95 % interval. "
            "A method with many settings shows its first and last."
            f"{left}",
        ),
    )


def chosen(view: View) -> list[CellView]:
    """Returns each method's settings without its control; only first and last if there are more than its bars."""
    cells: list[CellView] = []
    for method in view.methods:
        mine = [cell for cell in view.cells if cell.method == method and not cell.control]
        if len(mine) > facts_of(method).max_bars:
            mine = [mine[0], mine[-1]]
        cells += mine
    return cells[:9]


def _most_samples(view: View, cells: Sequence[CellView], group: str) -> int:
    return max(view.measured(cell, group).num_samples for cell in cells)


def _repeated(cells: Sequence[CellView], cell: CellView) -> bool:
    """Returns True if an earlier bar has the same hue; this one is then paler."""
    return any(other.method == cell.method for other in cells[: cells.index(cell)])


def _key(canvas: Canvas, cells: Sequence[CellView]) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(
            facecolor=(cell.style.colour, 0.35 if _repeated(cells, cell) else 0.8),
            edgecolor=cell.style.colour,
            label=clip(cell.label, 30),
        )
        for cell in cells
    ]
    key = canvas.axes[0].legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1.17),
        ncols=max(1, min(len(cells), int(canvas.width // 1.9))),
        fontsize=7.5,
        frameon=False,
        borderaxespad=0,
        handlelength=1.2,
    )
    for text in key.get_texts():
        text.set_color(MUTED)


def _finding(view: View, cells: Sequence[CellView], groups: Sequence[str]) -> str:
    compared = [
        (row, cell, group)
        for cell in cells
        for group in groups
        if (row := view.compared(cell, "tps", group)) is not None and row.effect is not None
    ]
    if not compared:
        return "Speeds as measured; there is no baseline to divide by."
    faster = [entry for entry in compared if entry[0].verdict == "better"]
    slower = [entry for entry in compared if entry[0].verdict == "worse"]
    if not faster and not slower:
        return f"None of {len(compared)} bars is shown to be faster or slower than its baseline."

    def most(entries: Sequence[tuple[Comparison, CellView, str]], *, fastest: bool) -> str:
        if not entries:
            return ""
        row, cell, group = (max if fastest else min)(
            entries, key=lambda e: e[0].effect.value if e[0].effect else 1.0
        )
        assert row.effect is not None
        return f" (most so {cell.label} on {group_title(group)}, {row.effect.value:.2f}×)"

    return (
        f"Of {len(compared)} bars {len(faster)} are shown to be faster than the baseline"
        f"{most(faster, fastest=True)} and "
        f"{len(slower)} slower{most(slower, fastest=False)}, corrected for their number."
    )


def _table(view: View, cells: Sequence[CellView], groups: Sequence[str], name: str) -> Table:
    rows = []
    for group in groups:
        for cell in cells:
            compared = view.compared(cell, "tps", group)
            effect = compared.effect if compared else None
            rows.append(
                (
                    text_cell(group_title(group)),
                    text_cell(cell.label),
                    number_cell(view.measured(cell, group).tps),
                    number_cell(effect.value if effect else None),
                    number_cell(effect.low if effect else None),
                    number_cell(effect.high if effect else None),
                    number_cell(
                        view.measured(cell, group).num_samples, str(view.measured(cell, group).num_samples)
                    ),
                )
            )
    return Table(
        name=name,
        caption="Bars as drawn.",
        columns=(
            Column("Task", numeric=False),
            Column("Cell", numeric=False),
            Column("TPS"),
            Column("ratio", "× baseline"),
            Column("low", "95 %"),
            Column("high", "95 %"),
            Column("n"),
        ),
        rows=tuple(rows),
    )
