"""Acceptance by place in the draft, and what drafting costs and can gain: a figure and its table."""

from __future__ import annotations

from hambench.analysis.drafts.acceptance import PlaceCounts, place_counts
from hambench.analysis.drafts.costs import MIN_ROUNDS, DraftCosts, all_draft_costs
from hambench.reports.draw.canvas import Canvas, titles
from hambench.reports.draw.labels import Label, place_labels
from hambench.reports.number_text import ABSENT, significant
from hambench.reports.values import Column, Figure, Table, number_cell, text_cell
from hambench.reports.view import CellView, View

MOST_PLACES = 8
"""Places drawn."""

Drafting = tuple[CellView, tuple[PlaceCounts, ...], DraftCosts | None]


def drafts_figure(view: View) -> Figure | None:
    """Draws the acceptance of each place of a draft, given that all places before it were accepted.

    Returns ``None`` if no cell drafts.
    """
    drafting: list[Drafting] = []
    costs = all_draft_costs(view.run)
    for cell in view.cells:
        counts = place_counts(view.traces(cell))
        if counts:
            drafting.append((cell, counts, costs.get(cell.label)))
    if not drafting:
        return None
    name = f"{view.prefix}draft-places"
    canvas = Canvas(name, width=6.9, height=3.9, margins=(0.55, 0.4, 0.55, 0.35))
    ax = canvas.axes[0]
    longest = min(MOST_PLACES, max(len(counts) for _, counts, _ in drafting))
    ax.set_xlim(0.7, longest + 0.9)
    ax.set_ylim(0, 1.06)
    ax.set_xticks(range(1, longest + 1))
    labels = []
    for cell, counts, _ in drafting:
        drawn = [
            (place, share, count.tried)
            for place, count in enumerate(counts[:longest], start=1)
            if count.tried >= MIN_ROUNDS and (share := count.conditional) is not None
        ]
        if not drawn:
            continue
        style = cell.style
        (line,) = ax.plot(
            [place for place, _, _ in drawn],
            [share for _, share, _ in drawn],
            color=style.colour,
            linestyle=style.linestyle,
            alpha=cell.strength,
            linewidth=1.3,
        )
        canvas.tag(line, series=cell.series)
        for place, share, tried in drawn:
            (mark,) = ax.plot(
                [place],
                [share],
                marker=style.marker,
                markersize=5,
                color=style.colour,
                alpha=cell.strength,
                linestyle="none",
            )
            canvas.tag(
                mark,
                tip=f"{cell.label}, place {place}: {share:.0%} of {tried} rounds",
                series=cell.series,
                point=f"{cell.label}/{place}",
                x=str(place),
                y=repr(share),
            )
        place, share, _ = drawn[-1]
        labels.append(Label(place, share, cell.short or cell.method, cell.series, style.colour))
    place_labels(canvas, ax, labels)
    titles(ax, x="place in the draft", y="accepted, of rounds that accepted all before")
    return Figure(
        name=name,
        title="Acceptance by place in the draft, and what limits drafting",
        finding=_finding(drafting),
        canvas=canvas,
        series=tuple(dict.fromkeys((cell.series, cell.method) for cell, _, _ in drafting)),
        table=_table(name, drafting),
        notes=(
            f"Places of fewer than {MIN_ROUNDS} rounds are in the table only; longer drafts are not asked about. δ is "
            "the time of a draft forward and v(r) the time of a verification of r rows, both relative to a vanilla "
            "step of the same sample. With E tokens per round, k drafted tokens give S = E / (v(k + 1) + kδ) times the "
            "speed of vanilla, an estimate. The limit is "
            "whatever would gain more if it were ideal: drafts that cost nothing, or drafts that are all accepted.",
        ),
    )


def _finding(drafting: list[Drafting]) -> str:
    """Returns what limits each method; of several settings, of the one whose drafts can gain most."""
    best: dict[str, tuple[float, str]] = {}
    for cell, _, costs in drafting:
        most = costs.best() if costs else None
        if costs is None or most is None or costs.rate is None or costs.delta is None:
            continue
        if cell.method not in best or most[1] > best[cell.method][0]:
            side = "the draft's cost" if costs.is_limited_by_cost else "acceptance"
            name = f"{cell.method} ({cell.short})" if cell.short else cell.method
            best[cell.method] = (
                most[1],
                f"{name}: {costs.rate:.0%} accepted, δ {costs.delta:.2f}, {costs.best_words} ({side} limits it)",
            )
    if not best:
        told = [costs.unknown for _, _, costs in drafting if costs is not None and costs.delta is not None]
        if told:
            return f"{told[0][0].upper()}{told[0][1:]}."
        return "What drafting costs is unknown: no cell tells the time of drafts from that of verifications."
    return "; ".join(sentence for _, sentence in best.values()) + "."


def _table(name: str, drafting: list[Drafting]) -> Table:
    longest = min(MOST_PLACES, max(len(counts) for _, counts, _ in drafting))
    rows = []
    for cell, counts, costs in drafting:
        places = [*counts[:longest], *[None] * (longest - len(counts))]
        most = costs.best() if costs else None
        widest = costs.verify.widest if costs else None
        rows.append(
            (
                text_cell(cell.label),
                number_cell(costs.rate if costs else None),
                number_cell(costs.delta if costs else None),
                text_cell(f"{costs.verify(widest):.2f} at {widest} rows" if costs and widest else ABSENT),
                number_cell(most[1] if most else None, f"{most[1]:.2f}× at k={most[0]}" if most else None),
                *(
                    number_cell(
                        count.conditional if count else None,
                        None
                        if count is None or count.conditional is None
                        else f"{significant(count.conditional)} ({count.accepted}/{count.tried})",
                    )
                    for count in places
                ),
            )
        )
    return Table(
        name=name,
        caption="Acceptance of each place, given that all places before were accepted (accepted/tried rounds).",
        columns=(
            Column("Cell", numeric=False),
            Column("Acceptance", "accepted/drafted"),
            Column("δ", "draft forward / vanilla step"),
            Column("v", "verification / vanilla step", numeric=False),
            Column("Best k", "× vanilla, estimated"),
            *(Column(f"Place {place}", "conditional") for place in range(1, longest + 1)),
        ),
        rows=tuple(rows),
    )
