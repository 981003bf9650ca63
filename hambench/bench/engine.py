"""Compares the lean engine with transformers' ``generate``: first the tokens, then the speed.

Both run the same weights on the same threads in the same process, in turn, so that a change in the machine's pace
affects both. In float32 every greedy choice must equal transformers', or no speed is given. In bfloat16 two correct
programs round differently; the result says how often that changed a choice.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hambench.errors import HambenchError, ModelError

if TYPE_CHECKING:
    import torch

    from hambench.engine.language_model import LanguageModel


NUMERICS_PROMPT_TOKENS = 64
DECODE_PROMPT_TOKENS = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numerics:
    """Agreement of the engine's greedy choices with transformers', given the same tokens before them."""

    dtype: str
    num_tokens: int
    num_different: int
    first_different: int | None
    """Index of the first generated token that transformers would not choose."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds per token of one engine in each repeat."""

    engine: str
    phase: str
    """``decode`` or ``prefill``."""
    seconds_per_token: tuple[float, ...]
    bytes_per_token: int | None
    """Bytes of weights read per token, if reading them bounds the phase."""

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second in the median repeat."""
        return 1 / statistics.median(self.seconds_per_token)

    @property
    def gigabytes_per_second(self) -> float | None:
        """Gigabytes of weights read per second in the median repeat."""
        return None if self.bytes_per_token is None else self.bytes_per_token * self.tokens_per_second / 1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineBenchmark:
    """Everything that ``hambench bench engine`` prints."""

    model: str
    note: str
    dtype: str
    device: str
    threads: int
    num_prompt_tokens: int
    num_new_tokens: int
    numerics: tuple[Numerics, ...]
    read_gigabytes_per_second: float
    """Read speed of a plain reduction over memory: the ceiling of a decode step."""
    paces: tuple[Pace, ...]

    def pace(self, engine: str, phase: str) -> Pace:
        """Returns the pace of one engine in one phase."""
        return next(pace for pace in self.paces if (pace.engine, pace.phase) == (engine, phase))

    def ratio(self, engine: str, phase: str) -> tuple[float, float, float]:
        """Returns an engine's speed-up over transformers: median, least and most over the repeats.

        Each repeat compares the two timings of the same turn.
        """
        transformers_seconds = self.pace("transformers", phase).seconds_per_token
        engine_seconds = self.pace(engine, phase).seconds_per_token
        ratios = [t / o for t, o in zip(transformers_seconds, engine_seconds, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


def benchmark_engine(
    model: str,
    *,
    dtype: str = "bfloat16",
    device: str | None = None,
    num_new_tokens: int = 64,
    num_prompt_tokens: int = 2048,
    repeats: int = 5,
    threads: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> EngineBenchmark:
    """Checks the numerics, then times decode and prefill of both engines in turn.

    Raises:
        HambenchError: If a greedy choice in float32 differs from transformers'.
        ModelError: If the model runs through the transformers adapter, which leaves nothing to compare.
    """
    import torch

    from hambench.engine.int8 import quantize_int8
    from hambench.machine.bandwidth import measure_bandwidth
    from hambench.models.target import load, locate

    if threads is not None:
        torch.set_num_threads(threads)
    folder = locate(model)[0]
    say("numerics in float32")
    target = load(model, dtype="float32", device=device)
    if target.llama.reference is None:
        raise ModelError(
            f"{model} runs through the transformers adapter: there is no engine of ours to measure"
        )
    needed = max(num_prompt_tokens, DECODE_PROMPT_TOKENS) + num_new_tokens
    if needed > target.context_length:
        raise HambenchError(f"{model} has a context of {target.context_length} tokens, {needed} are needed")
    prompt = _prompt(target.tokenizer, num_prompt_tokens, target.llama.shape.vocab_size).to(target.device)
    exact = _compare(target.llama, _reference(folder, torch.float32, target.device), prompt, 32)
    if exact.num_different:
        raise HambenchError(
            f"{exact.num_different} of {exact.num_tokens} greedy tokens in float32 are not transformers', the first "
            f"at {exact.first_different}: no speed is given for an engine that computes something else"
        )
    del target

    say(f"numerics in {dtype}")
    target = load(model, dtype=dtype, device=device)
    engine, reference = target.llama, _reference(folder, target.dtype, target.device)
    rounded = _compare(engine, reference, prompt, num_new_tokens)

    engines: dict[str, Callable[[torch.Tensor, int], tuple[float, float]]] = {
        "transformers": lambda ids, n: _time_generate(reference, ids, n),
        "hambench": lambda ids, n: _time_llama(engine, ids, n),
    }
    draft = quantize_int8(engine)
    engines["hambench int8"] = lambda ids, n: _time_llama(draft, ids, n)
    sizes = {
        "transformers": engine.weight_bytes,
        "hambench": engine.weight_bytes,
        "hambench int8": draft.weight_bytes,
    }
    decode: dict[str, list[float]] = {name: [] for name in engines}
    prefill: dict[str, list[float]] = {name: [] for name in engines}
    for repeat in range(repeats + 1):
        say("warm-up" if repeat == 0 else f"repeat {repeat} of {repeats}")
        for name, timed in engines.items():
            _, decode_s = timed(prompt[:DECODE_PROMPT_TOKENS], num_new_tokens)
            prefill_s, _ = timed(prompt, 1)
            if repeat > 0:
                decode[name].append(decode_s / (num_new_tokens - 1))
                prefill[name].append(prefill_s / len(prompt))
    paces = [
        Pace(engine=name, phase="decode", seconds_per_token=tuple(decode[name]), bytes_per_token=sizes[name])
        for name in engines
    ]
    paces += [
        Pace(engine=name, phase="prefill", seconds_per_token=tuple(prefill[name]), bytes_per_token=None)
        for name in engines
    ]
    return EngineBenchmark(
        model=model,
        note=target.identity.note,
        dtype=dtype,
        device=str(target.device),
        threads=torch.get_num_threads(),
        num_prompt_tokens=len(prompt),
        num_new_tokens=num_new_tokens,
        numerics=(exact, rounded),
        read_gigabytes_per_second=measure_bandwidth(str(target.device)).read / 1e9,
        paces=tuple(paces),
    )


def _compare(engine: LanguageModel, reference: Any, prompt: torch.Tensor, num_tokens: int) -> Numerics:
    """Generates greedily with our engine, then asks transformers for its choice after each of the same prefixes.

    If all choices agree, transformers' own greedy run is the same run, because each choice follows from an equal
    prefix.
    """
    import torch

    ids = prompt[:NUMERICS_PROMPT_TOKENS]
    chosen = []
    cache = engine.new_cache(len(ids) + num_tokens)
    logits = engine.prefill(ids, cache).logits
    for _ in range(num_tokens):
        chosen.append(logits[-1].argmax())
        logits = engine.forward(chosen[-1][None], cache).logits
    tokens = torch.stack(chosen)
    with torch.inference_mode():
        expected = reference(torch.cat([ids, tokens])[None]).logits[0, len(ids) - 1 : -1].argmax(-1)
    different = (expected != tokens).nonzero()[:, 0].tolist()
    return Numerics(
        dtype=str(engine.dtype).removeprefix("torch."),
        num_tokens=num_tokens,
        num_different=len(different),
        first_different=different[0] if different else None,
    )


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
    import torch

    cache = llama.new_cache(len(ids) + num_tokens)
    start = time.perf_counter()
    token = int(llama.prefill(ids, cache).logits[-1].argmax())
    first = time.perf_counter()
    for _ in range(num_tokens - 1):
        token = int(llama.forward(torch.tensor([token], device=llama.device), cache).logits[-1].argmax())
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

    num_tokens = max(num_tokens, DECODE_PROMPT_TOKENS)
    if tokenizer is None:
        return torch.randint(vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(0))
    from pydoc_data.topics import topics

    ids: list[int] = tokenizer.encode("\n".join(topics[name] for name in sorted(topics)))[:num_tokens]
    return torch.tensor(ids)
