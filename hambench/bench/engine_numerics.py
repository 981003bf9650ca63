"""Compares the greedy choices of engines with transformers': no speed is given for one that computes something else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hambench.bench.llama_cpp import LlamaCppError

if TYPE_CHECKING:
    import torch

    from hambench.bench.llama_cpp import LlamaCppEngines
    from hambench.engine.language_model import LanguageModel

NUMERICS_PROMPT_TOKENS = 64
MOST_DIFFERENT = 0.25
"""Share of the greedy choices that another program's rounding may change; beyond it, it computes something else."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numerics:
    """Agreement of an engine's greedy choices with transformers', given the same tokens before them."""

    engine: str
    dtype: str
    num_tokens: int
    num_different: int
    first_different: int | None
    """Index of the first generated token that transformers would not choose."""


def compare(name: str, ours: LanguageModel, theirs: Any, prompt: torch.Tensor, num_tokens: int) -> Numerics:
    """Generates greedily with our engine, then asks transformers for its choice after each of the same prefixes.

    If all agree, transformers' own greedy run is the same run: each choice follows from an equal beginning.
    """
    import torch

    ids = prompt[:NUMERICS_PROMPT_TOKENS]
    chosen = []
    cache = ours.new_cache(len(ids) + num_tokens)
    logits = ours.prefill(ids, cache).logits
    for _ in range(num_tokens):
        chosen.append(logits[-1].argmax())
        logits = ours.forward(chosen[-1][None], cache).logits
    return _numerics(name, str(ours.dtype).removeprefix("torch."), theirs, ids, torch.stack(chosen))


def compare_llama_cpp(
    others: LlamaCppEngines, theirs: Any, prompt: torch.Tensor, num_tokens: int
) -> Iterator[Numerics]:
    """Compares llama.cpp's choices likewise, and drops an engine that fails or computes something else."""
    import torch

    ids = prompt[:NUMERICS_PROMPT_TOKENS]
    vocab_size = theirs.get_input_embeddings().num_embeddings
    for other in tuple(others.engines):
        try:
            chosen = other.greedy_tokens(ids, num_tokens)
        except LlamaCppError as error:
            others.drop(other.name, str(error))
            continue
        unknown = next((token for token in chosen if not 0 <= token < vocab_size), None)
        if unknown is not None:
            others.drop(
                other.name, f"{other.name} chose token {unknown} of {vocab_size}: it is another model"
            )
            continue
        numerics = _numerics(other.name, other.kind, theirs, ids, torch.tensor(chosen, device=ids.device))
        yield numerics
        if numerics.num_different > MOST_DIFFERENT * num_tokens:
            others.drop(other.name, f"{other.name} computes something else: no speed is given for it")


def _numerics(name: str, dtype: str, theirs: Any, ids: torch.Tensor, tokens: torch.Tensor) -> Numerics:
    """Asks transformers for its choice before each token, after the same prefix."""
    import torch

    with torch.inference_mode():
        expected = theirs(torch.cat([ids, tokens])[None]).logits[0, len(ids) - 1 : -1].argmax(-1)
    different = (expected != tokens).nonzero()[:, 0].tolist()
    return Numerics(
        engine=name,
        dtype=dtype,
        num_tokens=len(tokens),
        num_different=len(different),
        first_different=different[0] if different else None,
    )
