"""Tables of every number per task and cell, and per cell over all samples."""

from __future__ import annotations

from collections.abc import Sequence

from hambench.analysis.cautions.shared_prompts import timed_prefills
from hambench.analysis.cost import dollars_per_million
from hambench.analysis.fidelity import token_identity
from hambench.analysis.measurements import Measurement
from hambench.analysis.suite_averages import averages_of, left_out
from hambench.groups import ALL, Bounds, bounds_by_group, group_title
from hambench.records import Estimate, Verdict
from hambench.reports.compared import FIDELITY_WORDS, effect_of
from hambench.reports.number_text import ABSENT, bytes_text, ratio_text, seconds_text, signed
from hambench.reports.page.verdict_words import ACCURACY_WORDS, SPEED_WORDS, SYMBOLS, TONES
from hambench.reports.values import Column, Table, TableCell, number_cell, text_cell
from hambench.reports.view import CellView, View

COLUMNS = (
    Column("n", "samples answered"),
    Column("Accuracy", "points, its own 95 %"),
    Column("Δ accuracy", "paired with baseline, 95 %"),
    Column("Accuracy verdict", "", numeric=False),
    Column("Regret", "nats/token"),
    Column("Δ regret", "vs baseline, 95 %"),
    Column("Fidelity verdict", "", numeric=False),
    Column("Agreement", "target's own tokens"),
    Column("4-grams", "distinct"),
    Column("TPS", "decode tokens/s"),
    Column("Speed", "× baseline, paired, 95 %"),
    Column("Speed verdict", "", numeric=False),
    Column("m", "tokens/target forward"),
    Column("Acceptance", "accepted/drafted"),
    Column("KV", "mean peak"),
    Column("KV out", "tokens/slot"),
    Column("KV total", "positions/slot"),
    Column("TTFT", "median"),
    Column("TPOT p50", "per token"),
    Column("TPOT p90", "from 29 answers"),
    Column("TPOT p99", "from 299 answers"),
    Column("Prefill", "tokens/s"),
    Column("Failed", "samples"),
    Column("Cut", "prompts truncated"),
)


def all_tables(view: View) -> tuple[Table, ...]:
    """Every table of the section."""
    averages = averages_table(view)
    more = (category_table(view), turn_table(view))
    return (
        summary_table(view),
        *((averages,) if averages else ()),
        *(table for table in more if table is not None),
        task_table(view),
    )


def summary_table(view: View) -> Table:
    """Builds a table with one row per cell over all samples."""
    caution = timed_prefills(view.measured(cell) for cell in view.cells)
    return Table(
        name=f"{view.prefix}summary",
        caption="All samples together. Accuracy is the mean over tasks; its own interval says how well this cell is "
        "known, and where two of them overlap nothing follows: Δ accuracy is the paired difference. Speed is Σ tokens "
        "/ Σ seconds, so long answers weigh more; TTFT and TPOT are medians over answers, whatever their task. "
        f"{caution}".rstrip(),
        columns=(
            Column("Cell", numeric=False),
            *_columns(view),
            *([Column("Thinking", "tokens cut before scoring")] if _thinks(view) else []),
            Column("Same tokens", "answers equal to baseline's"),
            Column("First difference", "at token"),
            *([Column("Baseline", "of its ratios", numeric=False)] if view.several_baselines else []),
        ),
        rows=tuple(
            (
                text_cell(cell.label),
                *_row(view, cell, ALL),
                *_thinking(view, cell),
                *_identity(view, cell),
                *_baseline(view, cell),
            )
            for cell in view.cells
        ),
    )


def averages_table(view: View) -> Table | None:
    """Builds a table of each cell's accuracy as the suite's benchmark averages it; ``None`` without such a rule."""
    averages = averages_of(view.run)
    if not averages:
        return None
    first = averages[0]
    titles = ["overall", *(each.category for each in first.average.categories), *first.lengths]
    rows = []
    for each in averages:
        values = [each.average.overall, *(part.points for part in each.average.categories)]
        values += each.lengths.values()
        rows.append((text_cell(each.average.cell), *(number_cell(value, _points(value)) for value in values)))
    return Table(
        name=f"{view.prefix}averages",
        caption=f"Accuracy as {first.average.suite} averages: the mean of its categories' means, each the mean of its "
        f"tasks. Verdicts compare the mean over tasks instead. {' '.join(left_out(averages))}".rstrip(),
        columns=(Column("Cell", numeric=False), *(Column(title, "points") for title in titles)),
        rows=tuple(rows),
    )


def _points(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"


def _chance(view: View, cell: CellView, group: str, bounds: Bounds | None) -> tuple[TableCell, TableCell]:
    """Returns a task's floor, which needs no reading, and the cell's points above chance."""
    if bounds is None:
        return TableCell(ABSENT), TableCell(ABSENT)
    accuracy = view.measured(cell, group).accuracy
    above = None if accuracy is None else bounds.corrected(accuracy.value)
    return number_cell(bounds.floor, _points(bounds.floor)), number_cell(above, _points(above))


def task_table(view: View) -> Table:
    """Builds a table with one row per task and cell."""
    bounds = bounds_by_group(view.run.header.suite_spec)
    rows = [
        (
            text_cell(f"{group_title(group)}"),
            text_cell(cell.label),
            *_row(view, cell, group),
            *(_chance(view, cell, group, bounds.get(group)) if bounds else ()),
        )
        for group in view.tasks
        for cell in view.cells
    ]
    return Table(
        name=f"{view.prefix}tasks",
        caption="Per task. These comparisons are many: read them as a hint where to look, not as verdicts.",
        columns=(
            Column("Task", numeric=False),
            Column("Cell", numeric=False),
            *_columns(view),
            *([Column("Floor", "without reading"), Column("Above chance", "0 to 100")] if bounds else []),
        ),
        rows=tuple(rows),
    )


def category_table(view: View) -> Table | None:
    """Builds a table with one row per category and cell; ``None`` where tasks are the categories."""
    if not view.wider_categories:
        return None
    return _group_table(
        view,
        view.wider_categories,
        name="categories",
        title="Category",
        caption="Per category: the samples of all its tasks together.",
    )


def turn_table(view: View) -> Table | None:
    """Builds a table with one row per turn and cell; ``None`` without conversations."""
    if not view.turns:
        return None
    return _group_table(
        view,
        view.turns,
        name="turns",
        title="Turn",
        caption="Per turn of the conversations. A turn is asked after the cell's own answers to the turns before, read "
        "again from the start: TTFT and KV grow with the conversation, and answers of later turns may differ because "
        "earlier ones did.",
    )


def _group_table(view: View, groups: Sequence[str], *, name: str, title: str, caption: str) -> Table:
    return Table(
        name=f"{view.prefix}{name}",
        caption=caption,
        columns=(Column(title, numeric=False), Column("Cell", numeric=False), *_columns(view)),
        rows=tuple(
            (text_cell(group_title(group)), text_cell(cell.label), *_row(view, cell, group))
            for group in groups
            for cell in view.cells
        ),
    )


def _ttft(m: Measurement) -> str:
    """The TTFT, with its timings where prompts were copied from another cell."""
    copied = m.num_ttfts < m.num_answers and m.ttft_s is not None
    return f"{seconds_text(m.ttft_s)} (n={m.num_ttfts})" if copied else seconds_text(m.ttft_s)


def _columns(view: View) -> tuple[Column, ...]:
    cost = Column("Cost", "$ per million output tokens")
    return COLUMNS if view.run.header.price_per_hour is None else (*COLUMNS, cost)


def _cost(view: View, machine_tps: float | None) -> tuple[TableCell, ...]:
    price = view.run.header.price_per_hour
    if price is None:
        return ()
    cost = dollars_per_million(machine_tps, price)
    return (number_cell(cost, None if cost is None else f"{cost:.2f}", metric="dollars_per_million_tokens"),)


def _row(view: View, cell: CellView, group: str) -> tuple[TableCell, ...]:
    m = view.measured(cell, group)
    speed, accuracy = view.compared(cell, "tps", group), view.compared(cell, "accuracy", group)
    fidelity = view.compared(cell, "regret", group)
    ratio, delta, lost = effect_of(speed), effect_of(accuracy), effect_of(fidelity)
    return (
        number_cell(m.num_samples, str(m.num_samples), metric="num_samples"),
        _accuracy(m.accuracy),
        number_cell(
            delta.value if delta else None,
            _with_interval(delta, 1, as_signed=True) if delta else None,
            metric="accuracy_delta",
        ),
        _verdict(accuracy.verdict if accuracy else None, ACCURACY_WORDS),
        number_cell(
            m.regret.value if m.regret else None,
            f"{m.regret.value:.3f}" if m.regret else None,
            metric="regret",
        ),
        number_cell(
            lost.value if lost else None,
            _with_interval(lost, 3, as_signed=True) if lost else None,
            metric="regret_delta",
        ),
        _verdict(fidelity.verdict if fidelity else None, FIDELITY_WORDS),
        number_cell(m.agreement, None if m.agreement is None else f"{m.agreement:.1%}", metric="agreement"),
        number_cell(
            m.distinct_4grams,
            None if m.distinct_4grams is None else f"{m.distinct_4grams:.0%}",
            metric="distinct_4grams",
        ),
        number_cell(m.tps, None if m.tps is None else f"{m.tps:.1f}", metric="tps"),
        number_cell(
            ratio.value if ratio else None,
            _with_interval(ratio, 2) if ratio else None,
            metric="tps_ratio",
        ),
        _verdict(speed.verdict if speed else None, SPEED_WORDS),
        number_cell(m.tokens_per_target_forward, metric="tokens_per_target_forward"),
        number_cell(
            m.acceptance_rate,
            None if m.acceptance_rate is None else f"{m.acceptance_rate:.0%}",
            metric="acceptance_rate",
        ),
        number_cell(m.kv_bytes, bytes_text(m.kv_bytes), metric="kv_bytes"),
        number_cell(m.kv_compression_output, metric="kv_compression_output"),
        number_cell(m.kv_compression_total, metric="kv_compression_total"),
        number_cell(m.ttft_s, _ttft(m), metric="ttft_s"),
        number_cell(m.tpot_p50_s, seconds_text(m.tpot_p50_s), metric="tpot_p50_s"),
        number_cell(m.tpot_p90_s, seconds_text(m.tpot_p90_s), metric="tpot_p90_s"),
        number_cell(m.tpot_p99_s, seconds_text(m.tpot_p99_s), metric="tpot_p99_s"),
        number_cell(m.prefill_tps, metric="prefill_tps"),
        number_cell(m.num_errors, str(m.num_errors), metric="num_errors", tone="bad" if m.num_errors else ""),
        number_cell(m.num_truncated, str(m.num_truncated), metric="num_truncated"),
        *_cost(view, m.machine_tps),
    )


def _thinks(view: View) -> bool:
    return any(view.measured(cell).num_thinking_tokens is not None for cell in view.cells)


def _thinking(view: View, cell: CellView) -> tuple[TableCell, ...]:
    """Returns how many of the answers' tokens are thinking, if the run cut any."""
    if not _thinks(view):
        return ()
    m = view.measured(cell)
    if m.num_thinking_tokens is None:
        return (TableCell(ABSENT),)
    share = m.num_thinking_tokens / m.num_tokens if m.num_tokens else 0.0
    return (number_cell(m.num_thinking_tokens, f"{m.num_thinking_tokens} of {m.num_tokens} ({share:.0%})"),)


def _identity(view: View, cell: CellView) -> tuple[TableCell, TableCell]:
    """Returns how many answers equal the baseline's token by token, and where the first of the others differs."""
    same = None
    base = view.baseline_of(cell)
    if base is not None and base is not cell:
        same = token_identity(view.run, cell.label, base.label)
    if same is None:
        return TableCell(ABSENT), TableCell(ABSENT)
    share = same.num_identical / same.num_samples
    first = None if same.first_difference is None else same.first_difference + 1
    return (
        number_cell(share, f"{same.num_identical} of {same.num_samples}", metric="identical_share"),
        number_cell(first, None if first is None else str(first)),
    )


def _baseline(view: View, cell: CellView) -> tuple[TableCell, ...]:
    """Returns the baseline's name, if cells have different baselines."""
    if not view.several_baselines:
        return ()
    base = view.baseline_of(cell)
    return (TableCell(ABSENT) if base is None or base is cell else text_cell(base.label),)


def _accuracy(estimate: Estimate | None) -> TableCell:
    if estimate is None:
        return number_cell(None, metric="accuracy")
    return number_cell(estimate.value, _with_interval(estimate, 1), metric="accuracy")


def _with_interval(estimate: Estimate, digits: int, *, as_signed: bool = False) -> str:
    def show(value: float) -> str:
        if as_signed:
            return signed(value, digits)
        return ratio_text(value) if digits == 2 else f"{value:.{digits}f}"

    if estimate.low is None or estimate.high is None:
        return show(estimate.value)
    return f"{show(estimate.value)} [{show(estimate.low)}, {show(estimate.high)}]"


def _verdict(verdict: Verdict | None, words: dict[Verdict, str]) -> TableCell:
    if verdict is None:
        return TableCell(ABSENT, None)
    word = words[verdict].removeprefix("speed ").removeprefix("accuracy ")
    return TableCell(f"{SYMBOLS[verdict]} {word}", word, tone=TONES[verdict])
