"""Replays methods that propose from tokens alone on stored answers, without a model.

Such a method verifies exactly, so on a greedy answer of the target it emits the same tokens, which determine its
proposals and their acceptance. Counts are exact; seconds are predicted from the run's own verification costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hambench.analysis import metrics
from hambench.analysis.baselines import is_baseline
from hambench.analysis.drafts.acceptance import acceptance_conditional
from hambench.analysis.drafts.costs import VerifyCost, step_seconds, verify_cost
from hambench.decoding import GREEDY_BELOW
from hambench.errors import HambenchError
from hambench.method_config import MethodConfig
from hambench.method_facts import TokenDrafter
from hambench.records import Cell, GenerationTrace, SampleRecord, StepRecord
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
    """Foretold over the stored cell's own seconds; ``None`` where the run tells no cost of a verification."""
    num_measured: int = 0
    """Answers that the run's own cell of this setting gave with the stored tokens; the rest is over these."""
    measured_m: float | None = None
    replayed_m: float | None = None
    measured_speedup: float | None = None
    replayed_speedup: float | None = None


def source_cell(run: Run) -> Cell:
    """Returns the cell whose answers to replay: the first vanilla cell, else the first lossless one.

    Raises:
        HambenchError: If the run's answers were sampled, or all its methods are lossy.
    """
    if run.header.temperature >= GREEDY_BELOW:
        raise HambenchError(
            f"{run.path} can't be replayed: its answers were sampled (temperature {run.header.temperature:g}), and "
            "only a greedy answer tells what the target would have kept"
        )
    cells = sorted(run.header.cells, key=lambda cell: not is_baseline(cell))
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
    seconds_of: Mapping[int, float] | VerifyCost | None = None,
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
        cost = 0.0 if seconds_of is None else _cost(seconds_of, 1 + len(drafted))
        steps.append(
            StepRecord(
                tokens=tuple(emitted),
                seconds=unit_s * cost,
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
    verify = verify_cost(run, cell)
    costs = verify if verify.widest is not None else None
    units = step_seconds(run, cell)
    records = run.answered(cell.label)
    rows = []
    for config in configs:
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
            rows.append(_row(run, config, records, traces, oracle=oracle, has_costs=costs is not None))
    return rows


Traces = Mapping[tuple[str, int], GenerationTrace]


def _row(
    run: Run,
    config: MethodConfig,
    records: Sequence[SampleRecord],
    traces: Traces,
    *,
    oracle: bool,
    has_costs: bool,
) -> ReplayRow:
    each = list(traces.values())
    stored = [record.trace for record in records if record.trace is not None]
    row = ReplayRow(
        method=f"{ORACLE} of {config.label}" if oracle else config.label,
        num_answers=len(each),
        m=metrics.tokens_per_target_forward(each),
        acceptance_rate=metrics.acceptance_rate(each),
        num_drafted=metrics.num_drafted(each) or 0,
        num_target_forwards=metrics.num_target_forwards(each) or 0,
        acceptance=acceptance_conditional(each),
        speedup=_ratio(metrics.tps(each), metrics.tps(stored)) if has_costs else None,
    )
    return row if oracle else _with_measured(run, config, records, traces, row)


def _with_measured(
    run: Run, config: MethodConfig, records: Sequence[SampleRecord], traces: Traces, row: ReplayRow
) -> ReplayRow:
    """Adds the measurements of the run's own cell of this setting, over answers equal to the stored ones."""
    same = next((c for c in run.header.cells if _is_setting(c, config)), None)
    if same is None:
        return row
    stored = {(r.sample_id, r.repeat): r.trace for r in records if r.trace is not None}
    measured = {
        (r.sample_id, r.repeat): r.trace
        for r in run.answered(same.label)
        if r.trace is not None
        and (r.sample_id, r.repeat) in stored
        and r.trace.token_ids == stored[r.sample_id, r.repeat].token_ids
    }
    if not measured:
        return row
    theirs, replayed = list(measured.values()), [traces[key] for key in measured]
    unit = metrics.tps([stored[key] for key in measured])
    return replace(
        row,
        num_measured=len(measured),
        measured_m=metrics.tokens_per_target_forward(theirs),
        replayed_m=metrics.tokens_per_target_forward(replayed),
        measured_speedup=_ratio(metrics.tps(theirs), unit),
        replayed_speedup=None if row.speedup is None else _ratio(metrics.tps(replayed), unit),
    )


def _is_setting(cell: Cell, config: MethodConfig) -> bool:
    if cell.method != config.method:
        return False
    try:
        return method_config(cell.method).from_knobs(cell.knobs) == config
    except HambenchError:
        return False


def _cost(seconds_of: Mapping[int, float] | VerifyCost, rows: int) -> float:
    return seconds_of(rows) if isinstance(seconds_of, VerifyCost) else seconds_of[rows]


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def render_replay(rows: Sequence[ReplayRow], source: str) -> str:
    """Formats the rows for a terminal.

    Args:
        rows: Result of :func:`replay_run`.
        source: Label of the cell whose answers were replayed.
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
    notes = [f"{answers} greedy answers of {source}, token by token. × is over {source}'s own seconds."]
    if any(row.speedup is None for row in rows):
        notes.append(
            "No speed is foretold: no cell of the run tells what a verification of several rows costs."
        )
    notes += [
        f"{row.method} is a cell of the run: on its {row.num_measured} answers with these tokens m was "
        f"{_number(row.measured_m, '{:.3f}')}, replayed {_number(row.replayed_m, '{:.3f}')}; speed "
        f"{_number(row.measured_speedup, '{:.2f}')}×, foretold {_number(row.replayed_speedup, '{:.2f}')}×."
        for row in rows
        if row.num_measured
    ]
    return "\n".join([out.getvalue().rstrip("\n"), *notes])


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
