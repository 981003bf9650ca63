"""Replays methods that propose from tokens alone on stored answers, without a model.

Such a method verifies exactly, so on a greedy answer of the target it emits the same tokens, which determine its
proposals and their acceptance. Counts are exact; seconds are predicted from the run's own verification costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hambench.analysis import metrics
from hambench.analysis.arms import Arm, Key
from hambench.analysis.baselines import is_baseline
from hambench.analysis.comparisons import compare_arms
from hambench.analysis.drafts.acceptance import acceptance_conditional
from hambench.analysis.drafts.costs import step_seconds, verify_cost
from hambench.analysis.verdicts import Margins
from hambench.decoding import GREEDY_BELOW
from hambench.errors import HambenchError
from hambench.groups import ALL
from hambench.method_config import MethodConfig
from hambench.method_facts import TokenDrafter
from hambench.records import Cell, Estimate, GenerationTrace, SampleRecord, StepRecord
from hambench.registry import is_lossless, method_config
from hambench.store import Run

ORACLE = "oracle"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRow:
    """One method over the stored answers of a run."""

    method: str
    """Its label; ``oracle of LABEL`` where each proposal is cut where the target rejects it."""
    num_answers: int
    m: float | None
    """Tokens per target forward."""
    acceptance_rate: float | None
    num_drafted: int
    num_target_forwards: int
    acceptance: dict[int, float]
    """Conditional, by place."""
    speedup: float | None
    """Foretold over the stored cell's own seconds on the same answers; ``None`` where no seconds can be foretold."""
    num_measured: int = 0
    """Answers that the run's own cell of this setting under the same conditions gave with the stored tokens; the rest
    is over these, on both sides."""
    measured_m: float | None = None
    replayed_m: float | None = None
    measured_speedup: Estimate | None = None
    """Paired by sample."""
    replayed_speedup: float | None = None


def source_cell(run: Run) -> Cell:
    """Returns the cell whose answers to replay: vanilla before other lossless ones, single sequences before batches.

    Raises:
        HambenchError: If the run's answers were sampled, or all its methods are lossy.
    """
    if run.header.temperature >= GREEDY_BELOW:
        raise HambenchError(
            f"{run.path} can't be replayed: its answers were sampled (temperature {run.header.temperature:g}), and "
            "only a greedy answer tells what the target would have kept"
        )
    cells = sorted(run.header.cells, key=lambda cell: (not is_baseline(cell), cell.batch > 1))
    found = next((cell for cell in cells if is_lossless(cell) and run.answered(cell.label)), None)
    if found is None:
        raise HambenchError(
            f"{run.path} can't be replayed: it has no answer of a lossless method, and a lossy answer does not tell "
            "what the target would have kept"
        )
    return found


def replayable(configs: Sequence[MethodConfig]) -> None:
    """Checks that the methods' proposals depend only on the tokens.

    Raises:
        HambenchError: If one's do not; the message names the first such method.
    """
    for config in configs:
        if config.token_drafter() is None:
            raise HambenchError(
                f"{config.label} can't be replayed: what it proposes or keeps does not follow from the tokens of an "
                "answer alone; run it"
            )


def replay_answer(
    drafter: TokenDrafter,
    prompt_ids: Sequence[int],
    answer: GenerationTrace,
    *,
    max_new_tokens: int,
    seconds_of: Callable[[int], float | None] | None = None,
    unit_s: float = 0.0,
    oracle: bool = False,
) -> GenerationTrace:
    """Returns a drafter's trace on a stored greedy answer, without cache sizes.

    Args:
        drafter: A new drafter.
        prompt_ids: Prompt ids of the stored answer.
        answer: The stored answer.
        max_new_tokens: Limit of the stored answer, near which fewer tokens are proposed.
        seconds_of: Cost of a verification by rows, in units of ``unit_s``; without it steps take no time.
        unit_s: Seconds of a step over one row.
        oracle: Whether to cut each proposal at the first rejected token.
    """
    tokens = list(answer.token_ids)
    text = [*prompt_ids, *tokens[:1]]
    drafter.update(text)
    steps = [answer.steps[0]]
    place = 1
    while place < len(tokens):
        room = max_new_tokens - place - 1
        drafted = drafter.propose(text, room) if room > 0 else []
        num_kept = 0
        while num_kept < len(drafted) and tokens[place + num_kept : place + num_kept + 1] == [
            drafted[num_kept]
        ]:
            num_kept += 1
        if oracle:
            drafted = drafted[:num_kept]
        emitted = tokens[place : place + num_kept + 1]
        cost = None if seconds_of is None else seconds_of(1 + len(drafted))
        steps.append(
            StepRecord(
                tokens=tuple(emitted),
                seconds=unit_s * (cost or 0.0),
                drafted=len(drafted),
                accepted=num_kept,
                kv_slots=None,
                kv_bytes=None,
                # the answer ended inside what was accepted: one token more was emitted and dropped
                discarded=num_kept + 1 - len(emitted),
            )
        )
        place += len(emitted)
        text += emitted
        drafter.update(text)
    return GenerationTrace(prompt_tokens=answer.prompt_tokens, steps=tuple(steps), finish=answer.finish)


def replay_run(
    run: Run, prompts: Mapping[tuple[str, int], Sequence[int]], configs: Sequence[MethodConfig]
) -> list[ReplayRow]:
    """Replays methods over a run's stored answers, each with its oracle.

    Args:
        run: The run.
        prompts: Ids of each sample's prompt, by sample id and repeat.
        configs: Methods that propose from tokens alone.

    Raises:
        HambenchError: If the run or a method can't be replayed.
    """
    replayable(configs)
    cell = source_cell(run)
    units = step_seconds(run, cell)
    records = run.answered(cell.label)
    is_foretold = not no_speed(run)
    rows = []
    for config in configs:
        same = _cell_of(run, config, cell)
        costs = verify_cost(run, cell, same) if is_foretold else None
        for oracle in (False, True):
            traces = {}
            for record in records:
                drafter = config.token_drafter()
                assert drafter is not None
                assert record.trace is not None
                traces[record.sample_id, record.repeat] = replay_answer(
                    drafter,
                    prompts[record.sample_id, record.repeat],
                    record.trace,
                    max_new_tokens=cell.asks(run.samples[record.sample_id]).max_new_tokens,
                    seconds_of=costs,
                    unit_s=units.get(record.sample_id, 0.0),
                    oracle=oracle,
                )
            row = _row(config, records, traces, oracle=oracle, is_foretold=is_foretold)
            rows.append(row if same is None or oracle else _with_measured(run, cell, same, traces, row))
    return rows


def no_speed(run: Run) -> str:
    """Returns why no speed is foretold for any method; empty if it may be."""
    cell = source_cell(run)
    if cell.batch > 1:
        return f"its answers were given in batches of {cell.batch}, where a verification shares its forward"
    if not is_baseline(cell):
        return f"a round of {cell.label} is not a step over one row, and the run has no vanilla"
    if verify_cost(run, cell).widest is None:
        return "no cell of the run tells what a verification of several rows costs"
    return ""


def _cell_of(run: Run, config: MethodConfig, source: Cell) -> Cell | None:
    """Returns the run's own cell of a setting, under the conditions of the replayed one."""
    return next(
        (c for c in run.header.cells if c.conditions == source.conditions and _is_setting(c, config)), None
    )


Traces = Mapping[Key, GenerationTrace]


def _row(
    config: MethodConfig,
    records: Sequence[SampleRecord],
    traces: Traces,
    *,
    oracle: bool,
    is_foretold: bool,
) -> ReplayRow:
    each = list(traces.values())
    stored = [record.trace for record in records if record.trace is not None]
    return ReplayRow(
        method=f"{ORACLE} of {config.label}" if oracle else config.label,
        num_answers=len(each),
        m=metrics.tokens_per_target_forward(each),
        acceptance_rate=metrics.acceptance_rate(each),
        num_drafted=metrics.num_drafted(each) or 0,
        num_target_forwards=metrics.num_target_forwards(each) or 0,
        acceptance=acceptance_conditional(each),
        speedup=_ratio(metrics.tps(each), metrics.tps(stored)) if is_foretold else None,
    )


def _with_measured(run: Run, source: Cell, same: Cell, traces: Traces, row: ReplayRow) -> ReplayRow:
    """Adds the measurements of the run's own cell of this setting, over answers equal to the stored ones."""
    stored, measured = Arm.of(run, source.label), Arm.of(run, same.label)
    keys = [key for key in traces if _equal(stored.records.get(key), measured.records.get(key))]
    if not keys:
        return row
    theirs, unit = (_traces(arm, keys) for arm in (measured, stored))
    replayed = [traces[key] for key in keys]
    return replace(
        row,
        num_measured=len(keys),
        measured_m=metrics.tokens_per_target_forward(theirs),
        replayed_m=metrics.tokens_per_target_forward(replayed),
        measured_speedup=_paired_speedup(run, measured, stored, keys),
        replayed_speedup=None if row.speedup is None else _ratio(metrics.tps(replayed), metrics.tps(unit)),
    )


def _equal(one: SampleRecord | None, other: SampleRecord | None) -> bool:
    if one is None or other is None or one.trace is None or other.trace is None:
        return False
    return one.trace.token_ids == other.trace.token_ids


def _traces(arm: Arm, keys: Sequence[Key]) -> list[GenerationTrace]:
    return [trace for key in keys if (trace := arm.records[key].trace) is not None]


def _paired_speedup(run: Run, candidate: Arm, baseline: Arm, keys: Sequence[Key]) -> Estimate | None:
    """Returns the ratio of two cells' decode speeds over given answers, paired by sample."""
    mine, other = (
        replace(arm, records={key: arm.records[key] for key in keys}) for arm in (candidate, baseline)
    )
    asked = {sample_id: run.samples[sample_id] for sample_id, _ in keys}
    (row,) = compare_arms(mine, other, asked, metrics=("tps",), groups=(ALL,), margins=Margins.of(run))
    return row.effect


def _is_setting(cell: Cell, config: MethodConfig) -> bool:
    if cell.method != config.method:
        return False
    try:
        return method_config(cell.method).from_knobs(cell.knobs) == config
    except HambenchError:
        return False


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def render_replay(rows: Sequence[ReplayRow], source: str, *, why_no_speed: str = "") -> str:
    """Formats the rows for a terminal.

    Args:
        rows: Result of :func:`replay_run`.
        source: Label of the cell whose answers were replayed.
        why_no_speed: Result of :func:`no_speed`.
    """
    import io

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = (
        "method",
        "m",
        "accept",
        "drafted",
        "forwards",
        "× foretold",
        "by place",
    )
    for title in titles:
        table.add_column(title, justify="left" if title == "method" else "right")
    for row in rows:
        table.add_row(
            *map(
                Text,
                (
                    row.method,
                    _number(row.m, "{:.2f}"),
                    _number(row.acceptance_rate, "{:.2f}"),
                    str(row.num_drafted),
                    str(row.num_target_forwards),
                    _number(row.speedup, "{:.2f}"),
                    " ".join(f"{share:.2f}" for share in list(row.acceptance.values())[:6]) or "–",
                ),
            )
        )
    out = io.StringIO()
    Console(file=out, width=150, no_color=True, highlight=False).print(table)
    answers = rows[0].num_answers if rows else 0
    notes = [f"{answers} greedy answers of {source}, token by token."]
    if why_no_speed:
        notes.append(f"No speed is foretold: {why_no_speed}.")
    else:
        notes[0] += f" × is over {source}'s own seconds for them."
    for row in rows:
        if not row.num_measured:
            continue
        line = (
            f"{row.method} is a cell of the run: on its {row.num_measured} answers with these tokens m was "
            f"{_number(row.measured_m, '{:.3f}')}, replayed {_number(row.replayed_m, '{:.3f}')}"
        )
        speed = row.measured_speedup
        if speed is not None:
            span = "" if speed.low is None or speed.high is None else f" [{speed.low:.2f}, {speed.high:.2f}]"
            line += f"; speed {speed.value:.2f}×{span}, foretold {_number(row.replayed_speedup, '{:.2f}×')}"
        notes.append(f"{line}.")
    return "\n".join([out.getvalue().rstrip("\n"), *notes])


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
