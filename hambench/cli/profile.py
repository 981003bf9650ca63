"""``hambench profile``: splits a token's time by phase, and writes a trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hambench.cli._options import UserPath, kernels_option, model_options
from hambench.errors import HambenchError

if TYPE_CHECKING:
    from hambench.models.target import TargetModel
    from hambench.profiling.profile import Profile

PROMPT = "Write a Python function that returns the n-th Fibonacci number, and explain it step by step."


@click.command()
@click.option(
    "--method",
    default="vanilla",
    show_default=True,
    metavar="NAME",
    help="A method, optionally with knobs: speculative[k=4].",
)
@click.option("--against", metavar="NAME", help="A second method to show side by side.")
@click.option("-n", "--max-new-tokens", "num_tokens", type=int, default=32, show_default=True)
@click.option("--prompt", default=PROMPT, help="The prompt to answer.")
@click.option(
    "--out",
    type=UserPath(path_type=Path, file_okay=False),
    help="Folder for a trace of each method, for Perfetto.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@kernels_option
@model_options
def command(
    method: str,
    against: str | None,
    num_tokens: int,
    prompt: str,
    out: Path | None,
    as_json: bool,
    **where: Any,
) -> None:
    """Profile one answer: time per phase, memory over the steps.

    A native forward is one call, and so one phase: --kernels reference shows torch's operations by part.
    """
    import dataclasses
    import json
    import os

    if num_tokens < 2:
        raise HambenchError(f"-n must be >= 2 (the first token comes with the prefill), got {num_tokens}")
    # at any other level torch's profiler prints each start and stop on stderr
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    from hambench.models.target import load
    from hambench.reports.terminal.profile import render_profiles
    from hambench.runner.backend import run_by

    target = load(where["model"], dtype=where["dtype"], device=where["device"])
    target = run_by(target, kernels=where["kernels"])
    names = [method] if against is None else [method, against]
    profiles = [_profile(name, target, prompt, num_tokens, where, out) for name in names]
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(profile) for profile in profiles]))
    else:
        click.echo(f"{target.title}\n")
        click.echo(render_profiles(profiles))


def _profile(
    name: str, target: TargetModel, prompt: str, num_tokens: int, where: dict[str, Any], out: Path | None
) -> Profile:
    import dataclasses
    import re

    from hambench.decoding import SamplingParams
    from hambench.engine.text import encode_text
    from hambench.profiling.memory import measure_kv_memory
    from hambench.profiling.profile import profile_method
    from hambench.runner.axis_text import split_methods
    from hambench.runner.sweep import Sweep, config_of

    sweep = Sweep(model=where["model"], methods=split_methods(name), knobs={}, dtype=where["dtype"])
    cell = sweep.single()
    ids = encode_text(prompt, target.tokenizer) if target.tokenizer else [1] * 16
    if not ids:
        raise HambenchError("--prompt is empty: give at least one token to answer")
    config = config_of(cell)
    method = config.build(target)
    trace = (
        None
        if out is None
        else out / f"{re.sub(r'[^A-Za-z0-9.=]+', '-', cell.label).strip('-')}.trace.json.gz"
    )
    profile = profile_method(
        method,
        ids,
        SamplingParams(max_new_tokens=num_tokens),
        phases=config.phases,
        device=str(target.device),
        weight_bytes=target.weight_bytes,
        trace_to=trace,
    )
    if profile.kv_slots is not None:
        kv = measure_kv_memory(target.llama, capacity=len(ids) + num_tokens, slots=profile.kv_slots)
        profile = dataclasses.replace(profile, target_kv=kv)
    if trace is not None:
        click.echo(f"trace: {trace}", err=True)
    return profile
