"""Identity of the run: the facts to judge or repeat it, without names of users, hosts or folders."""

from __future__ import annotations

from dataclasses import dataclass

from hambench.analysis.cold_start import StartUp, start_ups
from hambench.records import Cell
from hambench.reports.html_text import without_paths
from hambench.reports.number_text import ABSENT, bytes_text, listing, seconds_text
from hambench.reports.view import View

_BYTES = ("_bytes",)


@dataclass(frozen=True, slots=True)
class Facts:
    """A titled list of names and values."""

    title: str
    rows: tuple[tuple[str, str], ...]
    open: bool = False


def identity(view: View, *, include_host: bool = False) -> list[Facts]:
    """Lists what ran, on which model, data and machine, and how to run it again."""
    header = view.run.header
    records = view.run.measured
    seconds = sum(step.seconds or 0.0 for r in records if r.trace is not None for step in r.trace.steps)
    run = (
        ("Run", header.run_id),
        ("Made (UTC)", header.created_at),
        ("Command", " ".join(header.command)),
        ("hambench", f"{header.hambench_version}, commit {header.commit or 'unknown'}"),
        ("Suites", f"{listing(header.suites)} ({header.edition}; rows from {header.data_source})"),
        (
            "Size",
            f"{len(header.cells)} cells × {len(view.run.samples)} samples × {header.repeats} "
            f"= {view.run.num_expected} answers, {len(records)} there",
        ),
        ("Generating took", seconds_text(seconds)),
        (
            "Sampling",
            "greedy"
            if header.temperature == 0
            else f"temperature {header.temperature:g}, top-p {header.top_p:g}, seed {header.seed}",
        ),
        (
            "Answer limit",
            "each task's own" if header.max_new_tokens is None else f"{header.max_new_tokens} tokens",
        ),
        ("Samples per task", "all" if header.limit is None else f"the first {header.limit}"),
    )
    facts = [
        Facts("This run", run, open=True),
        Facts("Model", _rows(header.model)),
        Facts("Machine and software", _rows(header.environment)),
        Facts(
            "Cells",
            tuple((cell.label, _settings(cell)) for cell in header.cells),
        ),
        Facts("Start of each cell", tuple((s.cell, _start(s)) for s in start_ups(view.run).values())),
        Facts("Prompts (sha256)", tuple(header.data_hashes.items())),
    ]
    if include_host:
        return facts
    return [
        Facts(part.title, tuple((without_paths(k), without_paths(v)) for k, v in part.rows), part.open)
        for part in facts
    ]


def _start(start: StartUp) -> str:
    settled = "settled" if start.settled else "did not settle"
    text = f"cold start {seconds_text(start.cold_start_s)}; {settled} in {start.num_passes} passes"
    if start.shares is not None:
        text = f"warm with {start.shares}, one pass of its own"
    if not start.extra_weight_bytes:
        return text
    repaid = (
        "its cache never repays"
        if start.pays_from_tokens is None
        else f"its cache repays from answers of {start.pays_from_tokens:,} tokens"
    )
    return f"{text}; adds {bytes_text(start.extra_weight_bytes)} of weights, which {repaid}"


def _settings(cell: Cell) -> str:
    conditions = [cell.dtype, cell.regime, f"{cell.kernels} kernels"]
    for name, value in (
        ("threads", cell.threads),
        ("context", cell.context),
        ("max_new_tokens", cell.max_new_tokens),
        ("batch", cell.batch if cell.batch > 1 else None),
    ):
        conditions += [] if value is None else [f"{name}={value}"]
    knobs = ", ".join(f"{name}={value}" for name, value in cell.knobs.items())
    return f"{', '.join(conditions)}{f'; {knobs}' if knobs else ''}"


def _rows(values: dict[str, str | int | float | bool | None]) -> tuple[tuple[str, str], ...]:
    return tuple((name.replace("_", " "), _text(name, value)) for name, value in values.items())


def _text(name: str, value: str | int | float | bool | None) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name.endswith(_BYTES):
        return f"{bytes_text(value)} ({value} bytes)"
    return str(value)
