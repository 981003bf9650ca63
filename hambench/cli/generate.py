"""``hambench generate``: decodes one prompt with one method, the quickest way to try a method."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from hambench.cli._method_options import knob_texts, method_options
from hambench.cli._options import chat_option, kernels_option, make_sweep, method_option, model_options
from hambench.cli._repeats import ListOption
from hambench.errors import HambenchError
from hambench.terminal_text import terminal_safe

if TYPE_CHECKING:
    from hambench.decoding import DecodingMethod, SamplingParams
    from hambench.models.target import TargetModel
    from hambench.records import GenerationTrace, StepRecord


@click.command(
    epilog="""
\b
Examples:
  hambench generate "Why is the sky blue?"
  hambench generate --method speculative -k 4 --json "def fib(n):" --raw
  hambench generate --model FOLDER --prompt-ids 5,6,7 --ignore-eos --max-steps 14 --json
"""
)
@method_options
@click.argument("prompt", required=False)
@click.option("--prompt-ids", cls=ListOption, metavar="IDS", help="Token ids instead of PROMPT: 5,6,7.")
@method_option
@model_options
@kernels_option
@click.option("--max-new-tokens", type=int, default=256, show_default=True)
@click.option("--max-steps", type=int, help="Stop after this number of steps, the prefill included.")
@click.option("--ignore-eos", is_flag=True, help="Do not stop at an end-of-sequence token.")
@click.option("--raw", is_flag=True, help="Do not wrap the prompt in the model's chat template.")
@chat_option
@click.option("--temperature", type=float, default=0.0, show_default=True)
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with every step.")
def command(prompt: str | None, prompt_ids: str | None, as_json: bool, **options: Any) -> None:
    """Decode one PROMPT and stream its text."""
    if (prompt is None) == (prompt_ids is None):
        raise HambenchError("give either a PROMPT or --prompt-ids")
    if options["max_steps"] is not None and options["max_steps"] < 1:
        raise HambenchError(f"max-steps must be >= 1, got {options['max_steps']}")
    ids = _parse_ids(prompt_ids) if prompt_ids is not None else None
    sweep = make_sweep(
        model=options["model"],
        dtype=options["dtype"],
        methods=options["method"],
        own_options=knob_texts(options),
        method_args=options["method_args"],
    )
    cell = sweep.single()
    from hambench.decoding import SamplingParams
    from hambench.engine.chat import parse_arguments
    from hambench.models.target import load
    from hambench.runner.backend import run_by
    from hambench.runner.sweep import config_of

    arguments = parse_arguments(options["chat_template_args"])
    try:
        params = SamplingParams(
            max_new_tokens=options["max_new_tokens"],
            temperature=options["temperature"],
            top_p=options["top_p"],
            seed=options["seed"],
        )
    except ValueError as error:
        raise HambenchError(str(error)) from error
    target = run_by(
        load(options["model"], dtype=options["dtype"], device=options["device"]), kernels=options["kernels"]
    )
    target.chat_arguments = arguments
    ids = ids if ids is not None else _encode(prompt or "", target, raw=options["raw"])
    _check_ids(ids, target)
    method = config_of(cell).build(target)
    trace = _decode(method, ids, params, target, options, show=not as_json)
    if as_json:
        click.echo(json.dumps(_as_object(trace, method, target, ids)))
    else:
        click.echo()
        click.echo(_summary(trace, method), err=True)


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise HambenchError(f"--prompt-ids must be comma-separated whole numbers, got {text!r}") from error


def _encode(prompt: str, target: TargetModel, *, raw: bool) -> list[int]:
    tokenizer = target.tokenizer
    if tokenizer is None:
        raise HambenchError(f"{target.name} has no tokenizer: give --prompt-ids")
    from hambench.engine.chat import check_arguments, encode_chat
    from hambench.engine.text import encode_text

    if raw and target.chat_arguments:
        raise HambenchError("--chat-template-arg has no effect with --raw: leave one of them out")
    if raw or not getattr(tokenizer, "chat_template", None):
        check_arguments(tokenizer, target.chat_arguments)
        return encode_text(prompt, tokenizer)
    return encode_chat(tokenizer, [{"role": "user", "content": prompt}], target.chat_arguments)


def _check_ids(ids: list[int], target: TargetModel) -> None:
    size = target.llama.shape.vocab_size
    wrong = [token for token in ids if not 0 <= token < size]
    if wrong:
        raise HambenchError(f"prompt ids must be in 0..{size - 1} for {target.name}, got {wrong[0]}")
    if not ids:
        raise HambenchError("the prompt is empty: give at least one token")


def _decode(
    method: DecodingMethod,
    ids: list[int],
    params: SamplingParams,
    target: TargetModel,
    options: dict[str, Any],
    *,
    show: bool,
) -> GenerationTrace:
    from hambench.engine.loop import stream
    from hambench.records import GenerationTrace
    from hambench.serving.answer_text import AnswerText

    eos_ids = () if options["ignore_eos"] else target.eos_ids
    text = AnswerText(target.tokenizer, (), end_ids=eos_ids) if target.tokenizer is not None else None
    run = stream(method, ids, params, eos_ids=eos_ids, max_steps=options["max_steps"])
    steps: list[StepRecord] = []

    def write(piece: str) -> None:
        if show:
            # a model's text must not control the terminal, nor one at the end of a pipe; --json has it raw
            sys.stdout.write(terminal_safe(piece))
            sys.stdout.flush()

    while True:
        try:
            step = next(run)
        except StopIteration as end:
            write(text.rest() if text is not None else "")
            return GenerationTrace(prompt_tokens=len(ids), steps=tuple(steps), finish=end.value)
        steps.append(step)
        write(text.add(step.tokens) if text is not None else " ".join(map(str, step.tokens)) + " ")


def _as_object(
    trace: GenerationTrace, method: DecodingMethod, target: TargetModel, ids: list[int]
) -> dict[str, Any]:
    import dataclasses

    from hambench.engine.text import answer_text

    text = None if target.tokenizer is None else answer_text(trace, target.tokenizer, ())
    return {
        "method": method.name,
        "model": dataclasses.asdict(target.identity),
        "prompt_ids": ids,
        "token_ids": list(trace.token_ids),
        "text": text,
        "finish": trace.finish,
        "steps": [dataclasses.asdict(step) for step in trace.steps],
    }


def _summary(trace: GenerationTrace, method: DecodingMethod) -> str:
    from hambench.analysis.metrics import acceptance_rate, tokens_per_target_forward, tps, ttft_s

    traces = [trace]
    parts = [f"{method.name}: {len(trace.token_ids)} tokens in {len(trace.steps)} steps ({trace.finish})"]
    first, speed, m = ttft_s(traces), tps(traces), tokens_per_target_forward(traces)
    accepted = acceptance_rate(traces)
    parts += [f"first token {first * 1e3:.0f} ms"] if first is not None else []
    parts += [f"{speed:.1f} tok/s"] if speed is not None else []
    parts += [f"m = {m:.2f}"] if m is not None else []
    parts += [f"acceptance {accepted:.2f}"] if accepted is not None else []
    return " · ".join(parts)
