"""Plans a run: cells, samples, tokens, time and memory, estimated from a short calibration."""

from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING, Any

from hambench.engine.kvcache import KVCache
from hambench.engine.text import count_tokens
from hambench.run_notes import Note
from hambench.runner.budget import MARGIN, sample_seconds
from hambench.runner.conversations import prompt_sizes
from hambench.runner.forecast.time_left import adds_samples
from hambench.runner.knobs import what_all_leaves_out
from hambench.runner.request import RunRequest
from hambench.runner.work import timed_prompts

if TYPE_CHECKING:
    from hambench.records import Sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """One task of a plan."""

    task: str
    num_samples: int
    num_prompt_tokens: int
    """Over all samples."""
    max_new_tokens: int
    """Over all samples: the most that a cell's or their own limits allow."""
    seconds: float
    """Longest time over all cells, the target's judgement of the answers included, once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What would run. Times are upper bounds on a machine as busy as during calibration.

    They assume that every answer is distinct and as long as its task allows, and add a quarter for what calibration
    can't see. Of a budget it has the samples that fit by these bounds.
    """

    cells: tuple[str, ...]
    tasks: tuple[TaskPlan, ...]
    repeats: int
    decode_tps: dict[str, float]
    """Speed of each cell in the calibration."""
    weight_bytes: int
    extra_weight_bytes: dict[str, int]
    """Weights that a method adds to the target's."""
    kv_bytes: int
    """Target cache of the longest sample, as often as the largest batch has sequences."""
    notes: tuple[Note, ...]
    fixed_s: float = 0.0
    """Loading, capturing, warming up and calibrating as it was here, and bandwidth probes; on a cluster also its
    workers' warm-ups, as if none settled."""
    beyond_all: tuple[str, ...] = ()
    """Lines on what ``--methods all`` leaves out; none where methods were named."""
    budget_s: float | None = None
    """Budget of a run that chooses its samples on the way, by what they really take; ``None`` for one that doesn't."""
    placement: tuple[str, ...] = ()
    """Workers of the cluster that would share the work; none when it runs here."""

    @property
    def num_records(self) -> int:
        """Number of records of these samples."""
        return len(self.cells) * self.repeats * sum(task.num_samples for task in self.tasks)

    @property
    def seconds(self) -> float:
        """Upper bound for a run of these samples in seconds, without scoring."""
        return self.fixed_s + MARGIN * self.repeats * sum(task.seconds for task in self.tasks)

    def as_dict(self) -> dict[str, Any]:
        """Returns the plan as JSON-compatible values."""
        return {**dataclasses.asdict(self), "num_records": self.num_records, "seconds": self.seconds}


def plan_run(request: RunRequest) -> Plan:
    """Prepares a request and estimates it, without generating any answer.

    Raises:
        HambenchError: For a request that can't be run.
    """
    from hambench.runner.executors import get_executor
    from hambench.runner.header import warnings_of
    from hambench.runner.start import prepare, seconds_to_come

    prepared = prepare(request, calibrated=True)
    tokenizer = prepared.target.tokenizer
    assert tokenizer is not None
    cells = prepared.expansion.cells
    by_task: dict[str, list[tuple[Sample, int]]] = {}
    sizes = prompt_sizes(
        prepared.samples,
        lambda sample: count_tokens(sample.prompt, tokenizer, add_special_tokens=not sample.chat),
        longest_answer=max(cell.max_new_tokens or 0 for cell in cells),
    )
    for sample in prepared.samples:
        by_task.setdefault(f"{sample.suite}/{sample.task}", []).append((sample, sizes[sample.sample_id]))
    judge = prepared.growth if request.fidelity else None
    shared, timed = prepared.generator.shares_prompts, timed_prompts(prepared.samples)
    tasks = tuple(
        TaskPlan(
            task=task,
            num_samples=len(rows),
            num_prompt_tokens=sum(count for _, count in rows),
            max_new_tokens=sum(max(cell.asks(sample).max_new_tokens for cell in cells) for sample, _ in rows),
            seconds=sum(
                sample_seconds(
                    sample,
                    count,
                    cells,
                    prepared.speeds,
                    judge=judge,
                    judge_reader=prepared.generator.judge_reader,
                    is_shared=shared and sample.sample_id not in timed,
                )
                for sample, count in rows
            ),
        )
        for task, rows in by_task.items()
    )
    longest = max(
        min(count + cell.asks(sample).max_new_tokens, cell.positions(prepared.target.context_length))
        for rows in by_task.values()
        for sample, count in rows
        for cell in cells
    )
    probe: KVCache = prepared.target.llama.new_cache(1)
    return Plan(
        cells=tuple(cell.label for cell in cells),
        tasks=tasks,
        repeats=request.repeats,
        decode_tps={label: 1 / speed.decode_s_per_token for label, speed in prepared.speeds.items()},
        weight_bytes=prepared.target.weight_bytes,
        extra_weight_bytes={cell.label: prepared.generator.method(cell).extra_weight_bytes for cell in cells},
        kv_bytes=probe.bytes_per_slot * longest * max(cell.batch for cell in cells),
        notes=warnings_of(prepared),
        fixed_s=prepared.seconds + seconds_to_come(request, cells, prepared.speeds),
        beyond_all=what_all_leaves_out(request.sweep.methods),
        budget_s=request.budget_s if adds_samples(request) else None,
        placement=get_executor(request.executor, ray_address=request.ray_address).placement(),
    )


def render_plan(plan: Plan, *, width: int = 110) -> str:
    """Renders the plan as text for a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("cell", "tok/s (calibration)", "extra weights MB"):
        cells.add_column(title, justify="left" if title == "cell" else "right")
    for label in plan.cells:
        extra = plan.extra_weight_bytes[label] / 1e6
        cells.add_row(Text(label), f"{plan.decode_tps[label]:.0f}", f"{extra:.0f}")
    tasks = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("task", "samples", "prompt tokens", "new tokens ≤", "minutes ≤"):
        tasks.add_column(title, justify="left" if title == "task" else "right")
    for task in plan.tasks:
        numbers = (task.num_samples, task.num_prompt_tokens, task.max_new_tokens)
        tasks.add_row(Text(task.task), *map(str, numbers), f"{MARGIN * task.seconds * plan.repeats / 60:.1f}")
    out = io.StringIO()
    console = Console(file=out, width=width, no_color=True, highlight=False)
    for note in plan.notes:
        console.print(Text(f"! {note}"))
    console.print(cells)
    console.print()
    console.print(tasks)
    console.print()
    console.print(
        f"{plan.num_records} records, at most {plan.seconds / 60:.1f} minutes (every answer at its limit and none like "
        f"another; {plan.fixed_s / 60:.1f} of them are loading and warm-ups; scoring is not counted); weights "
        f"{plan.weight_bytes / 1e6:.0f} MB, KV cache at most {plan.kv_bytes / 1e6:.0f} MB."
    )
    if plan.budget_s is not None:
        console.print(
            f"These samples fit into the budget of {plan.budget_s:.0f} s by their bounds. The run chooses on the way: "
            "more while time is left, fewer where the machine is slower than it was here."
        )
    for line in plan.beyond_all:
        console.print(Text(line), soft_wrap=True)
    if plan.placement:
        console.print(f"shared by {len(plan.placement)} Ray workers, all cells of a sample on one of them:")
        for place in plan.placement:
            console.print(Text(f"  {place}"))
    return out.getvalue().rstrip("\n")
