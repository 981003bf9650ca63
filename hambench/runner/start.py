"""Executes one run from request to stored records (capture → generate → score) through the registries."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hambench.decoding import GREEDY_BELOW, SamplingParams
from hambench.engine.chat import chat_template
from hambench.engine.text import count_tokens
from hambench.errors import HambenchError
from hambench.records import Cell, RunHeader, Sample
from hambench.runner.conversations import prompt_sizes, without_begun
from hambench.runner.executors import Executor, get_executor
from hambench.runner.forecast.time_left import ENDING_S, first_share, time_left
from hambench.runner.generator import Generator, Progress, Workload, torch_threads
from hambench.runner.request import Prepared, RunRequest
from hambench.runner.resume import decoding_options, refuse_other_instruction_set, refuse_other_model
from hambench.runner.sweep import Sweep, config_of
from hambench.runner.work import fewest_at_once
from hambench.store import Run, RunWriter, load_run, record_key

if TYPE_CHECKING:
    from hambench.models.target import TargetModel
    from hambench.runner.budget import Speed
    from hambench.runner.judge import Progress as JudgeProgress
    from hambench.suites.api import Capture


def prepare(request: RunRequest, *, calibrated: bool = False) -> Prepared:
    """Loads the model, captures the suite, chooses the samples and checks what the scorers need.

    Raises:
        HambenchError: For a request that can't be run.
    """
    from hambench import suites
    from hambench.engine.requests.shared_prefill import ReadPrompts
    from hambench.models.target import load
    from hambench.runner.backend import build_ahead
    from hambench.runner.budget import bound_samples, calibrate, fit_budget, measure_growth

    began = last = time.monotonic()
    parts: dict[str, float] = {}

    def lap() -> float:
        nonlocal last
        now = time.monotonic()
        seconds, last = now - last, now
        return seconds

    suites.check_own_rows(request.suite)
    # a wrong name or knob, or a rule that needs sampling, is refused before the model is loaded
    _refuse_other_sampling(request)
    build = build_ahead(request.sweep.kernels, request.device)
    target = load(request.sweep.model, dtype=request.sweep.dtype, device=request.device)
    parts["model"] = lap()
    if "auto" in request.sweep.kernels:
        request = dataclasses.replace(request, sweep=_with_kernels_chosen(request.sweep, target))
    expansion = request.sweep.expand(target)
    _refuse_longer_context(request.sweep, target)
    _refuse_batch(request, target)
    captured = _capture(request, target)
    if captured.speed_only:
        request = dataclasses.replace(
            request, decoding=dataclasses.replace(request.decoding, ignore_eos=True)
        )
    samples = captured.samples
    parts["suite"] = lap()
    if build is not None:
        build.join()
    generator = Generator(target, expansion.cells, request.decoding)
    # built before anything is written: a bad checkpoint or knob must not leave half a run behind
    methods = {cell.label: generator.method(cell) for cell in expansion.cells}
    speeds: dict[str, Speed] = {}
    growth = None

    parts["methods"] = lap()

    # a prompt is counted for its task, for the budget and for a plan
    @functools.cache
    def count(text: str) -> int:
        return count_tokens(text, target.tokenizer) if target.tokenizer else 0

    if max(request.sweep.batches) > 1:
        from hambench.runner.batches import refuse_too_large

        refuse_too_large([(cell, methods[cell.label]) for cell in expansion.cells], samples, target, count)
    if calibrated or request.budget_s is not None:
        longest = max(prompt_sizes(samples, lambda sample: count(sample.prompt)).values(), default=0)
        parts["counting tokens"] = lap()
        # before anything else runs: a cold start is one
        for cell in expansion.cells:
            generator.warm_up_cell(cell)
        parts["warm-ups"] = lap()
        growth = measure_growth(target, longest)
        prompts = ReadPrompts()
        for cell in expansion.cells:
            with torch_threads(cell.threads):
                speeds[cell.label] = calibrate(
                    methods[cell.label],
                    target.context_length,
                    temperature=request.decoding.temperature,
                    top_p=request.decoding.top_p,
                    growth=growth,
                    batch=cell.batch,
                    prompts=prompts,
                )
        parts["calibration"] = lap()
    bound = None
    if request.budget_s is not None:
        bound = bound_samples(
            samples,
            expansion.cells,
            speeds,
            count_tokens=count,
            judge=growth if request.fidelity else None,
            judge_reader=generator.judge_reader,
            is_shared=generator.shares_prompts,
            is_greedy=request.decoding.temperature < GREEDY_BELOW,
        )
        samples = fit_budget(
            samples,
            expansion.cells,
            bound,
            request.budget_s,
            repeats=request.repeats,
            spent_s=time.monotonic() - began + seconds_to_come(request, expansion.cells, speeds) + ENDING_S,
            share=1.0 if calibrated else first_share(request),
            fewest=fewest_at_once(expansion.cells),
        )
    return Prepared(
        request,
        expansion,
        target,
        captured,
        samples,
        generator,
        speeds,
        growth=growth,
        seconds=time.monotonic() - began,
        parts=parts,
        began=began,
        bound=bound,
    )


def seconds_to_come(request: RunRequest, cells: Sequence[Cell], speeds: Mapping[str, Speed]) -> float:
    """Bandwidth probes of each number of threads, and the warm-ups of a cluster's workers, which are cold."""
    from hambench.runner.budget import PROBES_S

    warm_ups = 0.0 if request.executor == "local" else sum(speed.warm_up_s for speed in speeds.values())
    return PROBES_S * len({cell.threads for cell in cells}) + warm_ups


def start_run(
    request: RunRequest,
    folder: Path,
    *,
    progress: Progress | None = None,
    judging: JudgeProgress | None = None,
) -> Run:
    """Makes a new run in ``folder``; ``judging`` is called with the number of distinct answers judged so far.

    Raises:
        HambenchError: For a request that can't be run; nothing has been written in that case.
    """
    from hambench.runner.header import make_header
    from hambench.runner.judge import judge_run

    executor = get_executor(request.executor, ray_address=request.ray_address)
    # claimed before the model is loaded: a refusal should not take a minute, nor find out after another's header
    with RunWriter.claim(folder) as writer:
        prepared = prepare(request)
        header = make_header(prepared, folder)
        writer.begin(header, prepared.samples)
        writer.append_telemetry({"kind": "preparation", "parts": dict(prepared.parts)})
        generator, left = prepared.generator, time_left(prepared)
        work = Workload.of(generator.cells, prepared.samples, request.repeats, progress=progress, more=left)
        _generate(executor, writer, generator, header, prepared.captured.samples, work)
        if request.fidelity:
            judge_run(writer, generator.judge, progress=judging)
        score_run(writer, allow_code_execution=request.allow_code_execution)
        if left is not None:
            writer.append_telemetry(
                {
                    "kind": "budget",
                    "budget_s": request.budget_s,
                    "spent_s": time.monotonic() - prepared.began,
                    "num_first": len(prepared.samples),
                    "num_added": len(work.added),
                }
            )
    return load_run(folder)


def resume_run(
    folder: Path,
    *,
    allow_code_execution: bool = False,
    progress: Progress | None = None,
    judging: JudgeProgress | None = None,
    say: Callable[[str], None] | None = None,
    executor: str = "local",
    ray_address: str | None = None,
) -> Run:
    """Finishes an interrupted run with the same result as an undisturbed one.

    Args:
        folder: The run.
        allow_code_execution: Whether programs of the model may run.
        progress: Called after each record.
        judging: Called with the number of distinct answers judged so far.
        say: Called with each difference from the original environment (versions, machine, threads).
        executor: Name of the executor.
        ray_address: Address of a running Ray cluster.

    Raises:
        HambenchError: If the model's weights, or weights that a method uses, have changed since the run started, or
            the executor can't decode the run's batches.
    """
    from hambench.models.target import load
    from hambench.runner.judge import judge_run

    place = get_executor(executor, ray_address=ray_address)
    with RunWriter.resume(folder) as writer:
        run = load_run(folder)
        header, cell = run.header, run.header.cells[0]
        _refuse_batch_elsewhere((each.batch for each in header.cells), executor)
        device = header.model.get("device")
        target = load(cell.model, dtype=cell.dtype, device=None if device is None else str(device))
        refuse_other_model(header, target)
        generator = Generator(target, header.cells, decoding_options(header))
        if not run.complete:
            _compare_with_the_beginning(header, target, generator, writer, say or (lambda _: None))
        done = without_begun({record_key(record) for record in run.measured}, run.samples)
        samples = list(run.samples.values())
        work = Workload.of(generator.cells, samples, header.repeats, done=done, progress=progress)
        _generate(place, writer, generator, header, samples, work)
        if header.fidelity:
            judge_run(writer, generator.judge, progress=judging)
        score_run(writer, allow_code_execution=allow_code_execution)
    return load_run(folder)


def _generate(
    place: Executor,
    writer: RunWriter,
    generator: Generator,
    header: RunHeader,
    samples: Sequence[Sample],
    work: Workload,
) -> None:
    """Makes the records; where this process has the prompts, their answers are judged on the way."""
    from hambench.runner.judge import JudgeBySample

    if not header.fidelity:
        place.run(generator, writer, work)
        return
    judging = JudgeBySample(writer, header, samples, generator.judge)
    generator.after_sample = judging
    try:
        place.run(generator, writer, work)
    finally:
        judging.finish()


def score_run(writer: RunWriter, *, allow_code_execution: bool) -> None:
    """Scores every stored answer without a score; a fixed-length run has none to score."""
    from hambench import suites

    run = load_run(writer.folder)
    if decoding_options(run.header).ignore_eos:
        return
    scored = {(item.cell, item.sample_id, item.repeat) for item in run.scores if item.error is None}
    left = [record for record in run.measured if record_key(record) not in scored]
    if left:
        scores = suites.score(
            run.header.suite_spec, run.samples, left, allow_code_execution=allow_code_execution
        )
        writer.append_scores(scores)


def _capture(request: RunRequest, target: TargetModel) -> Capture:
    from hambench import suites

    tokenizer = target.tokenizer
    if tokenizer is None:
        raise HambenchError(
            f"{target.name} has no tokenizer, which a suite needs to ask in words: use a folder with tokenizer.json, "
            "or `hambench generate --prompt-ids`"
        )
    captured = suites.capture(
        suites.CaptureRequest(
            suite=request.suite,
            tasks=request.tasks,
            limit=request.limit,
            data=request.data,
            edition=request.edition,
            preset=request.preset,
            apply_chat_template=chat_template(tokenizer, request.decoding.chat_template_args),
            count_tokens=lambda text: count_tokens(text, tokenizer),
            context_length=target.context_length,
        )
    )
    notes = suites.scoring_notes(captured, allow_code_execution=request.allow_code_execution)
    return dataclasses.replace(
        captured,
        samples=tuple(sample.limited(request.max_new_tokens) for sample in captured.samples),
        notes=(*captured.notes, *notes),
    )


def _with_kernels_chosen(sweep: Sweep, target: TargetModel) -> Sweep:
    from hambench.runner.backend import choose_kernels

    chosen = (choose_kernels(kernels, target, sweep.regimes) for kernels in sweep.kernels)
    return dataclasses.replace(sweep, kernels=tuple(dict.fromkeys(chosen)))


def _refuse_other_sampling(request: RunRequest) -> None:
    decoding = request.decoding
    params = SamplingParams(max_new_tokens=1, temperature=decoding.temperature, top_p=decoding.top_p)
    for cell in request.sweep.expand().cells:
        if reason := config_of(cell).unavailable_when(params):
            raise HambenchError(reason)


def _refuse_longer_context(sweep: Sweep, target: TargetModel) -> None:
    # a longer one would be the model's own under another label
    for context in sweep.contexts:
        if context is not None and context > target.context_length:
            raise HambenchError(
                f"context must be <= {target.context_length}, the positions that {target.name} has, got {context}"
            )


def _refuse_batch(request: RunRequest, target: TargetModel) -> None:
    if max(request.sweep.batches) == 1:
        return
    _refuse_batch_elsewhere(request.sweep.batches, request.executor)
    if target.llama.reference is None:
        raise HambenchError(
            f"--batch above 1 needs the engine's own forward pass, and {target.name} runs through the transformers "
            "adapter: give --batch 1"
        )


def _refuse_batch_elsewhere(batches: Iterable[int], executor: str) -> None:
    # a worker would store answers of single runs under the batch's label
    if max(batches) > 1 and executor != "local":
        raise HambenchError("--batch above 1 needs --executor local: Ray workers decode sample by sample")


def _compare_with_the_beginning(
    header: RunHeader,
    target: TargetModel,
    generator: Generator,
    writer: RunWriter,
    say: Callable[[str], None],
) -> None:
    """Refuses weights other than those of the run's start; reports and stores all other differences."""
    from hambench._version import __version__
    from hambench.machine.fingerprint import ACCURACY_KEYS, SPEED_KEYS, differences, fingerprint
    from hambench.runner.backend import backend_facts

    for cell in header.cells:
        generator.method(cell)
    for what, before in header.weights.items():
        now = target.companions.get(what, "")
        if now != before:
            raise HambenchError(
                f"{what}: the weights have changed since this run began ({before[:12]} then, {now[:12] or 'none'} "
                "now): start a new run"
            )
    keys = tuple(dict.fromkeys((*SPEED_KEYS, *ACCURACY_KEYS, "python", "numpy", "commit", "commit_dirty")))
    facts = backend_facts(cell.kernels for cell in header.cells)
    refuse_other_instruction_set(header, facts)
    environment = {**fingerprint(), **facts}
    changed = differences(header.environment, environment, keys)
    if header.hambench_version != __version__:
        changed["hambench"] = f"{header.hambench_version} → {__version__}"
    if changed:
        listed = ", ".join(f"{key} {values}" for key, values in changed.items())
        say(f"resumed where not all is as it began: {listed}; speeds before and after are not of one kind")
        writer.append_telemetry({"kind": "resumed", "changed": changed})
