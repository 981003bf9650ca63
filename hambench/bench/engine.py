"""Compares the engine's paths with transformers' ``generate`` and llama.cpp: first the tokens, then the speed.

All run the same weights on the same number of threads, in turn, so that a change in the machine's pace affects all. In
float32 every greedy choice must equal transformers', or no speed is given. In bfloat16 two correct programs round
differently; the result says how often that changed a choice.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hambench.bench.engine_numerics import (
    NUMERICS_PROMPT_TOKENS,
    Numerics,
    compare,
    compare_llama_cpp,
)
from hambench.bench.llama_cpp import LlamaCppEngines, LlamaCppError
from hambench.errors import HambenchError, ModelError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from hambench.engine.language_model import LanguageModel


CONTEXTS = (64, 512, 2048)
ROWS_CONTEXT = 512
MOST_ROWS = 16
CALLS_PER_TURN = 6
"""Forwards of each number of rows in a repeat; the fastest counts."""
TRANSFORMERS, REFERENCE, NATIVE, INT8 = "transformers", "reference", "native", "native int8"


Timer = Callable[["torch.Tensor", int], tuple[float, float]]
"""Returns seconds to the first token of so many behind a prompt, and from there to the last."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds per token of one engine behind one context, in each repeat."""

    engine: str
    phase: str
    """``decode`` or ``prefill``."""
    context: int
    """Tokens of the prompt."""
    seconds_per_token: tuple[float, ...]
    bytes_per_token: int | None
    """Bytes of weights, keys and values read per token, if reading them bounds the phase."""

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second in the median repeat."""
        return 1 / statistics.median(self.seconds_per_token)

    @property
    def gigabytes_per_second(self) -> float | None:
        """Gigabytes read per second in the median repeat."""
        return None if self.bytes_per_token is None else self.bytes_per_token * self.tokens_per_second / 1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowsCost:
    """Seconds of a forward of several rows in each repeat: the cost of a verification."""

    rows: int
    seconds: tuple[float, ...]


class Ratio(NamedTuple):
    """A ratio over the repeats, each paired with its turn."""

    median: float
    least: float
    most: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineBenchmark:
    """Everything that ``hambench bench engine`` prints."""

    model: str
    note: str
    dtype: str
    device: str
    cpu: str | None
    native: str | None
    """Instruction set and compiler of the native engine; ``None`` if it is not available."""
    native_missing: str | None
    """Reason that it is not available."""
    llama_cpp: str | None
    """The weights that llama.cpp runs; ``None`` if it is not compared."""
    llama_cpp_missing: str | None
    """Reason that it is not compared, or not with all files."""
    threads: int
    num_new_tokens: int
    numerics: tuple[Numerics, ...]
    read_gigabytes_per_second: float
    """Read speed of a plain reduction over memory, the median of one reading per repeat: the ceiling of decoding."""
    paces: tuple[Pace, ...]
    rows: tuple[RowsCost, ...]
    """Of the native engine behind 512 slots, for 1 to 16 rows."""

    @property
    def engines(self) -> tuple[str, ...]:
        """Names of the engines that were timed."""
        return tuple(dict.fromkeys(pace.engine for pace in self.paces))

    @property
    def contexts(self) -> tuple[int, ...]:
        """Prompt lengths that were timed."""
        return tuple(dict.fromkeys(pace.context for pace in self.paces))

    def pace(self, engine: str, phase: str, context: int) -> Pace:
        """Returns the pace of one engine in one phase behind one context."""
        return next(
            pace for pace in self.paces if (pace.engine, pace.phase, pace.context) == (engine, phase, context)
        )

    def ratio(self, engine: str, base: str, phase: str, context: int) -> Ratio:
        """Returns an engine's speed-up over ``base``; each repeat compares the two timings of the same turn."""
        slow, fast = (self.pace(name, phase, context).seconds_per_token for name in (base, engine))
        return _ratio(slow, fast)

    def bandwidth_share(self, pace: Pace) -> float | None:
        """Returns the share of the read bandwidth at which a token's bytes were read."""
        read = pace.gigabytes_per_second
        return None if read is None else read / self.read_gigabytes_per_second

    def rows_ratio(self, rows: int) -> Ratio:
        """Returns v(r): the cost of a forward of ``rows`` rows in forwards of one."""
        one, several = (next(cost.seconds for cost in self.rows if cost.rows == count) for count in (1, rows))
        return _ratio(several, one)


def benchmark_engine(
    model: str,
    *,
    dtype: str = "bfloat16",
    device: str | None = None,
    num_new_tokens: int = 32,
    contexts: Sequence[int] = CONTEXTS,
    repeats: int = 5,
    threads: int | None = None,
    gguf: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> EngineBenchmark:
    """Checks the numerics, then times decode and prefill of all engines in turn.

    On a CPU llama.cpp takes part if llama-server is installed. ``gguf`` is the model's file for it, by default the
    embedded model's own.

    Raises:
        HambenchError: If a greedy choice in float32 differs from transformers'.
        ModelError: If the model runs through the transformers adapter: there is nothing to compare. If ``gguf`` can't
            be used.
    """
    import torch

    from hambench.engine.int8 import quantize_int8
    from hambench.machine.bandwidth import measure_bandwidth
    from hambench.machine.fingerprint import cpu_model
    from hambench.methods.peers.llama_cpp import bytes_per_slot
    from hambench.models.target import load, locate
    from hambench.runner.backend import backend_facts, native_obstacle, run_by

    if threads is not None:
        torch.set_num_threads(threads)
    folder = locate(model)[0]
    say("numerics in float32")
    target = load(model, dtype="float32", device=device)
    if target.llama.reference is None:
        raise ModelError(
            f"{model} runs through the transformers adapter: there is no engine of ours to measure"
        )
    rows_context = min(ROWS_CONTEXT, max(contexts))
    needed = max(*contexts, NUMERICS_PROMPT_TOKENS, rows_context) + max(num_new_tokens, MOST_ROWS)
    if needed > target.context_length:
        raise HambenchError(f"{model} has a context of {target.context_length} tokens, {needed} are needed")
    longest = max(*contexts, NUMERICS_PROMPT_TOKENS)
    prompt = _prompt(target.tokenizer, longest, target.llama.shape.vocab_size).to(target.device)
    obstacle = native_obstacle(target) if target.device.type == "cpu" else f"the model is on {target.device}"
    kinds = {REFERENCE: "reference"} if obstacle else {REFERENCE: "reference", NATIVE: "native"}
    numerics = []
    theirs = _reference(folder, torch.float32, target.device)
    for name, kernels in kinds.items():
        exact = compare(name, run_by(target, kernels=kernels).llama, theirs, prompt, 32)
        if exact.num_different:
            raise HambenchError(
                f"{exact.num_different} of {exact.num_tokens} greedy tokens of {name} in float32 are not "
                f"transformers', the first at {exact.first_different}: no speed is given for an engine that computes "
                "something else"
            )
        numerics.append(exact)
    del target, theirs

    say(f"numerics in {dtype}")
    target = load(model, dtype=dtype, device=device)
    theirs = _reference(folder, target.dtype, target.device)
    models = {name: run_by(target, kernels=kernels).llama for name, kernels in kinds.items()}
    numerics += [compare(name, ours, theirs, prompt, num_new_tokens) for name, ours in models.items()]
    models[INT8 if NATIVE in models else "reference int8"] = quantize_int8(
        models.get(NATIVE, models[REFERENCE])
    )
    timers: dict[str, Timer] = {TRANSFORMERS: functools.partial(_time_generate, theirs)}
    timers |= {name: functools.partial(_time_llama, llama) for name, llama in models.items()}
    seconds: dict[tuple[str, str, int], list[float]] = {}
    rows_seconds: dict[int, list[float]] = {rows: [] for rows in range(1, MOST_ROWS + 1)}
    reads = []
    with LlamaCppEngines(model, folder, gguf, say) as others:
        others.start(target, needed)
        numerics += compare_llama_cpp(others, theirs, prompt, num_new_tokens)
        timers |= {other.name: other.time for other in others.engines}
        for repeat in range(repeats + 1):
            say("warm-up" if repeat == 0 else f"repeat {repeat} of {repeats}")
            read = measure_bandwidth(str(target.device), seconds=0.15).read / 1e9
            for context in contexts:
                for name, timed in tuple(timers.items()):
                    try:
                        prefill_s, decode_s = timed(prompt[:context], num_new_tokens)
                    except LlamaCppError as error:
                        others.drop(name, str(error))
                        del timers[name]
                        continue
                    if repeat > 0:
                        decoded = seconds.setdefault((name, "decode", context), [])
                        decoded.append(decode_s / (num_new_tokens - 1))
                        seconds.setdefault((name, "prefill", context), []).append(prefill_s / context)
            if NATIVE in models:
                costs = _time_rows(models[NATIVE], prompt[:rows_context])
                if repeat > 0:
                    for rows, cost in costs.items():
                        rows_seconds[rows].append(cost)
            if repeat > 0:
                reads.append(read)
    weights = {
        TRANSFORMERS: target.weight_bytes,
        **{name: llama.weight_bytes for name, llama in models.items()},
        **{other.name: other.weight_bytes for other in others.engines},
    }
    slots = dict.fromkeys(weights, target.llama.new_cache(1).bytes_per_slot)
    slots |= {other.name: bytes_per_slot(target) for other in others.engines}
    paces = [
        Pace(
            engine=name,
            phase=phase,
            context=context,
            seconds_per_token=tuple(each),
            bytes_per_token=weights[name] + context * slots[name] if phase == "decode" else None,
        )
        for (name, phase, context), each in seconds.items()
        if name in timers  # a server that ended on the way lacks repeats
    ]
    facts = backend_facts(kinds.values())
    return EngineBenchmark(
        model=model,
        note=target.identity.note,
        dtype=dtype,
        device=str(target.device),
        cpu=cpu_model(),
        native=", ".join(facts.values()) or None,
        native_missing=obstacle,
        llama_cpp=others.note,
        llama_cpp_missing=others.missing,
        threads=torch.get_num_threads(),
        num_new_tokens=num_new_tokens,
        numerics=tuple(numerics),
        read_gigabytes_per_second=statistics.median(reads),
        paces=tuple(sorted(paces, key=lambda pace: pace.phase)),
        rows=tuple(
            RowsCost(rows=rows, seconds=tuple(each))
            for rows, each in rows_seconds.items()
            if NATIVE in models
        ),
    )


def _ratio(dividends: Sequence[float], divisors: Sequence[float]) -> Ratio:
    ratios = [a / b for a, b in zip(dividends, divisors, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def _time_rows(llama: LanguageModel, prompt: torch.Tensor) -> dict[int, float]:
    """Seconds of the fastest of a few forwards of 1 to 16 rows with their greedy tokens, behind a prompt."""
    cache = llama.new_cache(len(prompt) + MOST_ROWS)
    llama.prefill(prompt, cache)
    seconds: dict[int, list[float]] = {rows: [] for rows in range(1, MOST_ROWS + 1)}
    for _ in range(CALLS_PER_TURN):
        for rows, each in seconds.items():
            cache.truncate(len(prompt))
            start = time.perf_counter()
            llama.greedy([1] * rows, cache, num_tokens=rows)
            each.append(time.perf_counter() - start)
    return {rows: min(each) for rows, each in seconds.items()}


def _reference(folder: Any, dtype: torch.dtype, device: torch.device) -> Any:
    import sys

    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    return (
        AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", use_safetensors=True
        )
        .to(device)
        .eval()
    )


def _time_llama(llama: LanguageModel, ids: torch.Tensor, num_tokens: int) -> tuple[float, float]:
    """Returns seconds to the first token, and from there to the last.

    Each token is on the host before the next begins.
    """
    cache = llama.new_cache(len(ids) + num_tokens)
    start = time.perf_counter()
    tokens = [int(llama.prefill(ids, cache).logits[-1].argmax())]
    first = time.perf_counter()
    for _ in range(num_tokens - 1):
        tokens = llama.greedy(tokens, cache)
    return first - start, time.perf_counter() - first


def _time_generate(model: Any, ids: torch.Tensor, num_tokens: int) -> tuple[float, float]:
    """Times transformers' ``generate`` likewise, at its check after each token of whether to stop."""
    import torch
    from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

    class Clock(StoppingCriteria):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times: list[float] = []

        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            int(input_ids[0, -1])  # copies the token to the host, as our loop does
            self.times.append(time.perf_counter())
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    clock = Clock()
    plan = GenerationConfig(max_new_tokens=num_tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
    start = time.perf_counter()
    model.generate(
        ids[None],
        attention_mask=torch.ones_like(ids)[None],
        generation_config=plan,
        stopping_criteria=StoppingCriteriaList([clock]),
    )
    return clock.times[0] - start, clock.times[-1] - clock.times[0]


def _prompt(tokenizer: Any, num_tokens: int, vocab_size: int) -> torch.Tensor:
    """Returns English prose from Python's own documentation as ids; random ids without a tokenizer."""
    import torch

    if tokenizer is None:
        return torch.randint(vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(0))
    from pydoc_data.topics import topics

    ids: list[int] = tokenizer.encode("\n".join(topics[name] for name in sorted(topics)))[:num_tokens]
    return torch.tensor(ids)
