"""A tiny seeded Llama and four prompts, which give the same counts on every machine without a download.

Weights come from a bit generator and powers of two, not from a library's normal distribution, so that their bits are
the same everywhere. Greedy decoding in float32 then gives the same ids wherever no two logits are nearly equal.
:func:`watched_margins` measures the smallest gap between the two largest logits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hambench.decoding import KnobValue

if TYPE_CHECKING:
    import torch

    from hambench.engine.llama import Llama
    from hambench.engine.shape import LlamaShape
    from hambench.models.target import TargetModel

NAME = "toy"
SEED = 29
"""The best of 51 seeds: it has wide margins, and drafts are both accepted and rejected."""
MAX_NEW_TOKENS = 48
SAFE_MARGIN = 1e-3
"""Smallest gap between the two largest logits that rounding, about 1e-5 here, can't close."""

_SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "max_positions": 256,
}


def prompts() -> dict[str, tuple[int, ...]]:
    """Returns prompt ids by name: one repeats itself, one never does, one is short, one long."""
    draws = [int(value % 250) for value in np.random.PCG64(SEED).random_raw(160)]
    return {
        "toy/repeating": tuple(draws[:12] * 4),
        "toy/varied": tuple(draws[12:60]),
        "toy/short": tuple(draws[60:63]),
        "toy/long": tuple(draws[64:160]),
    }


def workload_hash() -> str:
    """Returns a hash of everything except the code that the counts depend on."""
    spec: dict[str, KnobValue | list[int]] = {**_SIZES, "seed": SEED, "max_new_tokens": MAX_NEW_TOKENS}
    asked = {name: list(ids) for name, ids in prompts().items()}
    return hashlib.sha256(json.dumps([spec, asked], sort_keys=True).encode()).hexdigest()[:16]


def load_toy() -> TargetModel:
    """Returns the toy as a target model, in float32 on the CPU."""
    import torch

    from hambench.engine.llama import Llama
    from hambench.engine.shape import LlamaShape
    from hambench.models.target import ModelIdentity, TargetModel

    shape = LlamaShape(rms_norm_eps=1e-5, rope_theta=10_000.0, tie_embeddings=False, **_SIZES)
    return TargetModel(
        name=NAME,
        llama=Llama(shape, _weights(shape), torch.float32, "cpu"),
        tokenizer=None,
        eos_ids=frozenset(),
        context_length=shape.max_positions,
        identity=ModelIdentity(
            name=NAME,
            source="built in",
            sha256=workload_hash(),
            architecture="llama",
            dtype="float32",
            note="seeded random weights: counts only",
        ),
    )


def _weights(shape: LlamaShape) -> dict[str, torch.Tensor]:
    import torch

    from hambench.models.contents import EMBEDDING, HEAD, sizes_of

    bits = np.random.PCG64(SEED + 1)

    def uniform(*size: int, scale: float) -> torch.Tensor:
        # a float32 represents 24 random bits exactly, also after multiplication by a power of two
        values = (bits.random_raw(int(np.prod(size))) >> 40).astype(np.float64) / 2**23 - 1
        return torch.tensor(values * scale, dtype=torch.float32).reshape(size)

    scales = {EMBEDDING: 2.0, HEAD: 0.5}
    return {
        name: uniform(*size, scale=scales.get(name, 0.25)) if len(size) > 1 else torch.ones(*size)
        for name, size in sizes_of(shape).items()
    }


@contextlib.contextmanager
def watched_margins(target: TargetModel) -> Iterator[Callable[[], float]]:
    """Records the gap between the two largest logits of every row that target and draft compute in the context."""
    from hambench.methods.common.drafting import load_draft

    smallest = [float("inf")]

    def watch(llama: Llama) -> None:
        inner = llama.lm_head

        def lm_head(hidden):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            logits = inner(hidden)
            if logits.shape[0]:
                top = logits.topk(2, dim=-1).values
                smallest[0] = min(smallest[0], float((top[:, 0] - top[:, 1]).min()))
            return logits

        llama.lm_head = lm_head  # type: ignore[method-assign]

    references = [model.reference for model in (target.llama, load_draft("int8", target))]
    models = [llama for llama in references if llama is not None]
    for llama in models:
        watch(llama)
    try:
        yield lambda: smallest[0]
    finally:
        for llama in models:
            del llama.lm_head  # removes the instance's attribute, which uncovers the class's method
