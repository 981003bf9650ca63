"""``hambench run``: measures methods on a suite."""

from __future__ import annotations

import datetime
import itertools
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hambench.cli._method_options import knob_texts
from hambench.cli._options import (
    RunFolder,
    UserPath,
    chat_option,
    config_option,
    make_sweep,
    model_options,
    price_option,
    price_per_hour,
    seconds,
    sweep_options,
    whole_numbers,
)
from hambench.cli._repeats import ListOption, OnceOption
from hambench.cli._streams import echo_json_text, echo_shown
from hambench.errors import FolderTakenError, HambenchError
from hambench.paths import runs_root

if TYPE_CHECKING:
    from hambench.runner.request import RunRequest
    from hambench.store import Run


@click.command(
    epilog="""
\b
Examples:
  hambench run --methods all --suite longbench
  hambench run --methods vanilla,speculative -k 1,2,4,8 --suite standard --limit 20
  hambench run --suite longbench --data DIR --tasks lcc,gov_report --budget 10m
  hambench run --suite prompts.jsonl --methods vanilla,prompt_lookup
  hambench run --suite efficiency --methods vanilla,hamburger --threads 1,2 --max-new-tokens 64,256
  hambench run --suite longbench --methods vanilla,speculative --batch 1,2,4,8 --budget 10m
  hambench run --config sweep.yaml --limit 5
  hambench run --resume runs/2026-01-31-longbench
"""
)
@config_option
@sweep_options
@model_options
@click.option(
    "--suite",
    cls=OnceOption,
    instead="a run has one; name tasks of several suites with --tasks alone or in a YAML file",
    metavar="NAME",
    help="A name from `hambench ls suites`, a YAML file, or your prompts: a .jsonl, .csv or .parquet file or a folder.",
)
@click.option(
    "--tasks", cls=ListOption, metavar="LIST", help="Tasks of the suite, or any generative lm-eval tasks."
)
@click.option("--preset", metavar="NAME", help="Use a suite's published settings, e.g. paper.")
@click.option(
    "--data",
    type=UserPath(exists=True, file_okay=False, path_type=Path),
    help="Folder of rows as plain files.",
)
@click.option(
    "--edition",
    type=click.Choice(["auto", "official", "offline"]),
    default="auto",
    show_default=True,
    help="official rows (--data or hub) or offline tasks built on this machine; auto tries them in this order.",
)
@click.option(
    "--limit", type=int, help="Maximum number of rows per task; for your own prompts, per category."
)
@click.option(
    "--budget",
    metavar="TIME",
    help="Take as many rows per task as fit in this time, loading and report included: 4m, 2h. First those that surely "
    "fit; while time is left, more.",
)
@price_option
@click.option("--repeats", type=int, default=1, show_default=True)
@click.option(
    "--max-new-tokens",
    cls=ListOption,
    metavar="AXIS",
    help="Replaces the tasks' own limits; several values form an axis: 64,256.",
)
@click.option(
    "--context",
    cls=ListOption,
    metavar="AXIS",
    help="Positions for prompt plus answer: 1024,4096. The suite's rule cuts or rejects longer prompts.",
)
@click.option("--temperature", type=float, default=0.0, show_default=True)
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@chat_option
@click.option(
    "--think-end",
    metavar="TOKEN",
    help="Score (and look for stop strings in) only the text after the last TOKEN, e.g. </think>.",
)
@click.option(
    "--prefill",
    type=click.Choice(["shared", "each"]),
    default="shared",
    show_default=True,
    help="shared: on a CPU, cells with the same weights read a sample's prompt once and copy it; only the first three "
    "prompts are read and timed by every cell. each: every cell reads every prompt.",
)
@click.option(
    "--prefill-chunk",
    type=click.IntRange(min=1),
    metavar="ROWS",
    help="Read prompts in pieces of this many rows, in every cell; in a batch, others take a step between two. "
    "[default: 2048]",
)
@click.option("--ignore-eos", is_flag=True, help="Decode fixed lengths; measures speed only, no scores.")
@click.option(
    "--allow-code-execution", is_flag=True, help="Let HumanEval and MBPP run programs that the model wrote."
)
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Make records in this process or on a Ray cluster.",
)
@click.option(
    "--ray-address", metavar="ADDR", help="host:port of a Ray cluster; by default one is started here."
)
@click.option("--out", type=UserPath(path_type=Path), help="Run folder; defaults to runs/DATE-SUITE.")
@click.option("--resume", type=RunFolder(), metavar="RUN", help="Finish an interrupted run.")
@click.option(
    "--losslessness",
    is_flag=True,
    help="Also print where answers first differ from vanilla's, and how close to a tie that was.",
)
@click.option(
    "--fidelity/--no-fidelity",
    default=True,
    show_default=True,
    help="Judge every answer by the target model afterwards (regret and agreement).",
)
@click.option(
    "--report/--no-report", default=True, show_default=True, help="Write report.html into the run folder."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per cell on stdout and nothing else."
)
def command(
    suite: str | None,
    out: Path | None,
    resume: Path | None,
    report: bool,
    losslessness: bool,
    fidelity: bool,
    as_json: bool,
    allow_code_execution: bool,
    **options: Any,
) -> None:
    """Measure speed, KV memory and accuracy of methods on a suite.

    All three are measured on the same generated tokens.
    """
    from hambench.runner.start import resume_run, start_run

    if losslessness and not fidelity:
        raise HambenchError(
            "--losslessness needs the target's judgement of the answers: leave out --no-fidelity"
        )
    if resume is None:
        request = request_from(
            suite=suite, allow_code_execution=allow_code_execution, fidelity=fidelity, **options
        )
        folders = [out] if out is not None else _new_folders(suite or "tasks")
    else:
        _refuse_other_options(resume)
        folders = [resume]
    from hambench.cli._progress import progress_bar
    from hambench.runner.forecast.time_left import adds_samples

    folder = folders[0]
    try:
        with progress_bar(is_open=resume is None and adds_samples(request)) as (progress, judging):
            if resume is None:
                for folder in folders:
                    try:
                        run = start_run(request, folder, progress=progress, judging=judging)
                        break
                    except FolderTakenError:
                        # another run took this name since the folders were listed, so try the next one
                        if folder == folders[-1]:
                            raise
            else:
                run = resume_run(
                    folder,
                    allow_code_execution=allow_code_execution,
                    progress=progress,
                    say=lambda line: echo_shown(f"hambench: {line}", err=True),
                    judging=judging,
                    executor=options["executor"],
                    ray_address=options["ray_address"],
                )
    except KeyboardInterrupt:
        if (folder / "run.json").is_file():
            message = f"interrupted; finish it with: hambench run --resume {shlex.quote(str(folder))}"
            echo_shown(f"\nhambench: {message}", err=True)
        raise
    proxies: list[dict[str, Any]] = []
    if losslessness:
        from hambench.analysis.proxy_rows import proxy_rows
        from hambench.runner.judge import judge

        run = judge(folder, device=str(run.header.model.get("device") or "cpu"))
        proxies = proxy_rows(run)
    report_path = _write_report(run) if report else None
    _warn_of_thinking(run)
    if as_json:
        from hambench.analysis.summary import cell_objects, to_json_line

        judged = {row["cell"]: row for row in proxies}
        for item in cell_objects(run):
            more = {"losslessness": judged[item["cell"]]} if judged else {}
            echo_json_text(to_json_line({**item, **more}))
        _exit_if_all_failed(run)
        return
    from hambench.analysis.summary import render_table

    echo_shown(render_table(run))
    if proxies:
        from hambench.analysis.proxy_rows import render_proxies

        echo_shown(f"\n{render_proxies(proxies)}\n")
    for line in _budget_lines(run):
        echo_shown(line)
    echo_shown(f"run: {run.path}")
    if report_path is not None:
        echo_shown(f"report: {report_path}")
    _exit_if_all_failed(run)


def _budget_lines(run: Run) -> list[str]:
    """Returns where the time of a run with a budget went, up to its scores."""
    samples_s = sum(item["seconds"] for item in run.telemetry if item.get("kind") == "samples")
    return [
        f"budget: {samples_s:.0f} of {item['budget_s']:.0f} s went to samples ({samples_s / item['budget_s']:.0%}); "
        f"{item['spent_s']:.0f} s until all was scored; {item['num_first']} samples by calibrated bounds, "
        f"{item['num_added']} more in time that was left"
        for item in run.telemetry
        if item.get("kind") == "budget"
    ]


def _warn_of_thinking(run: Run) -> None:
    from hambench.analysis.cautions.thinking import advice, uncut_thinking

    answers = [record for record in run.measured if record.text is not None]
    num, marker = uncut_thinking(answers)
    if marker is not None and run.header.think_end is None:
        echo_shown(f"hambench: {advice(num, len(answers), marker)}", err=True)


def _exit_if_all_failed(run: Run) -> None:
    """Exits with 3, the code for nothing measured, if a run has no answer."""
    errors = [record.error for record in run.measured if record.error is not None]
    if errors and len(errors) == len(run.measured):
        echo_shown(f"hambench: all {len(errors)} answers failed; the first: {errors[0]}", err=True)
        raise SystemExit(3)


def request_from(
    suite: str | None, allow_code_execution: bool, fidelity: bool = True, **options: Any
) -> RunRequest:
    """Builds the request from the options of ``hambench run`` or ``plan``."""
    from hambench.engine.chat import parse_arguments
    from hambench.runner.generator import DecodingOptions
    from hambench.runner.request import RunRequest

    tasks = tuple(name.strip() for name in (options["tasks"] or "").split(",") if name.strip())
    if suite is None and not tasks:
        raise HambenchError("name a --suite (see `hambench ls suites`) or --tasks")
    sweep_names = (
        "model",
        "dtype",
        "methods",
        "method_args",
        "batch",
        "threads",
        "regime",
        "kernels",
        "control",
        "context",
    )
    limits = whole_numbers(options["max_new_tokens"], "--max-new-tokens")
    # one limit belongs to the run and not to a cell's label; several form an axis
    axis = options["max_new_tokens"] if len(limits) > 1 else None
    return RunRequest(
        sweep=make_sweep(
            **{name: options[name] for name in sweep_names},
            own_options=knob_texts(options),
            max_new_tokens=axis,
        ),
        suite=suite,
        tasks=tasks,
        limit=options["limit"],
        data=options["data"],
        edition=options["edition"],
        preset=options["preset"],
        repeats=options["repeats"],
        price_per_hour=price_per_hour(options["price"]),
        max_new_tokens=limits[0] if len(limits) == 1 else None,
        budget_s=seconds(options["budget"]),
        device=options["device"],
        allow_code_execution=allow_code_execution,
        fidelity=fidelity,
        executor=options["executor"],
        ray_address=options["ray_address"],
        decoding=DecodingOptions(
            temperature=options["temperature"],
            top_p=options["top_p"],
            seed=options["seed"],
            ignore_eos=options["ignore_eos"],
            prefill=options["prefill"],
            prefill_chunk=options["prefill_chunk"],
            think_end=options["think_end"],
            chat_template_args=parse_arguments(options["chat_template_args"]),
        ),
    )


def _new_folders(suite: str) -> list[Path]:
    """Returns free folders named by date and suite, with a number if needed."""
    stem = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-{Path(suite).stem}"
    candidates = (
        runs_root() / (stem if number == 1 else f"{stem}-{number}") for number in itertools.count(1)
    )
    return list(itertools.islice((folder for folder in candidates if not folder.exists()), 100))


_RESUMING = ("resume", "report", "losslessness", "as_json", "allow_code_execution", "executor", "ray_address")
"""Options that may change how a run is finished; all others define the run and are fixed."""


def _refuse_other_options(folder: Path) -> None:
    """Refuses options with ``--resume`` that would change the run in the folder.

    Raises:
        HambenchError: If there are any; the message names them.
    """
    from hambench.store import load_header

    ctx = click.get_current_context()
    header = load_header(folder)
    settled: dict[str, Any] = {
        "model": header.cells[0].model,
        "dtype": header.cells[0].dtype,
        "device": header.model.get("device"),
        **{name: getattr(header, name) for name in ("limit", "repeats", "seed", "temperature", "top_p")},
        "ignore_eos": header.ignore_eos,
        "prefill": header.prefill,
        "prefill_chunk": header.prefill_chunk,
        "fidelity": header.fidelity,
        "max_new_tokens": None if header.max_new_tokens is None else str(header.max_new_tokens),
        "suite": header.suites[0] if len(header.suites) == 1 else None,
        "out": folder,
    }
    others = []
    for option in ctx.command.params:
        name = option.name or ""
        source = ctx.get_parameter_source(name)
        is_given = source in (click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.DEFAULT_MAP)
        if not is_given or name in (*_RESUMING, "config"):
            continue
        if name not in settled or ctx.params[name] != settled[name]:
            others.append(max(option.opts, key=len))
    if others:
        raise HambenchError(
            f"--resume finishes {folder} with its own options: leave out {', '.join(others)}, or start a new run"
        )


def _write_report(run: Run) -> Path:
    from hambench.reports import write_html

    path: Path = run.path / "report.html"
    write_html([run], path)
    return path
