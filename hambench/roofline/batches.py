"""What memory bandwidth allows a batch: weights are read once per round for all sequences, the cache for each.

Per token of the total, weights are divided by the number of sequences and the cache is not. Every method's own rule is
asked with such sizes, so what it states of one sequence says what it gains in a batch. Computing is left out: from
some batch on it, and not bandwidth, is the limit, first for forwards of many rows. Sequences are taken to be alike; a
macro-step of a batch in fact lasts as long as its longest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from hambench.registry import facts_of, method_names
from hambench.roofline.byte_model import ByteModel, tokens_per_second

if TYPE_CHECKING:
    from hambench.method_facts import ModelBytes


@dataclass(frozen=True, slots=True)
class SharedWeights:
    """Sizes per sequence of a batch, as :class:`hambench.method_facts.ModelBytes`: a share of the weights each.

    Args:
        one: Sizes of one sequence's forward.
        batch: Sequences.
    """

    one: ByteModel
    batch: int

    @property
    def dtype_bytes(self) -> float:
        """A sequence's share of one weight."""
        return self.one.dtype_bytes / self.batch

    @property
    def hidden_size(self) -> int:
        """Width of the hidden state."""
        return self.one.hidden_size

    @property
    def layer(self) -> float:
        """A share of one layer."""
        return self.one.layer / self.batch

    @property
    def body(self) -> float:
        """A share of all layers."""
        return self.one.body / self.batch

    @property
    def head(self) -> float:
        """A share of the LM head."""
        return self.one.head / self.batch

    @property
    def step(self) -> float:
        """A share of a forward's weights."""
        return self.one.step / self.batch

    @property
    def int8_draft(self) -> float:
        """A share of a draft's weights."""
        return self.one.int8_draft / self.batch

    @property
    def kv_per_slot(self) -> int:
        """Its own cache, whole."""
        return self.one.kv_per_slot

    @property
    def int8_kv_per_slot(self) -> int:
        """Its own 8-bit cache, whole."""
        return self.one.int8_kv_per_slot

    @property
    def kernels_per_forward(self) -> float:
        """A share of the kernels."""
        return self.one.kernels_per_forward / self.batch

    def kernels(self, *, layers: float = 0, heads: float = 0, merges: float = 0) -> float:
        """Returns a share of these kernels."""
        return self.one.kernels(layers=layers, heads=heads, merges=merges) / self.batch


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPrediction:
    """The ceiling of one configuration at one batch."""

    batch: int
    method: str
    setting: str
    total_tps: float
    user_tps: float
    speedup: float
    """Over vanilla at the same batch."""
    kv_bytes: float | None
    """All caches of all sequences behind their prompts; ``None`` if the method does not say."""

    def as_dict(self) -> dict[str, object]:
        """Returns plain values for JSON."""
        return dataclasses.asdict(self)


def predict_batches(
    bytes_of: ByteModel,
    bandwidth: float,
    batches: Sequence[int],
    *,
    model: str,
    context: int = 0,
    gap_s: float = 0.0,
) -> list[BatchPrediction]:
    """Asks every method for its ceilings at each batch.

    Args:
        bytes_of: The byte model of one sequence.
        bandwidth: Bytes per second.
        batches: Numbers of sequences.
        model: Name of the model.
        context: Cached positions of each sequence.
        gap_s: Seconds lost between two kernels.
    """
    predictions = []
    for batch in batches:
        sizes = cast("ModelBytes", SharedWeights(bytes_of, batch))
        rows: list[tuple[str, str, float, float | None]] = []
        for name in method_names():
            said = facts_of(name).ceilings(sizes, model=model, context=context)
            for row in () if said is None else said.rows:
                setting = ", ".join(word for word in (row.setting, row.column) if word)
                tps = tokens_per_second(
                    row.bytes_per_token, bandwidth, kernels_per_token=row.kernels_per_token, gap_s=gap_s
                )
                held = None if row.kv_per_position is None else batch * context * row.kv_per_position
                rows.append((name, setting, tps, held))
        read = sizes.step + context * sizes.kv_per_slot
        vanilla = tokens_per_second(read, bandwidth, kernels_per_token=sizes.kernels_per_forward, gap_s=gap_s)
        predictions += [
            BatchPrediction(
                batch=batch,
                method=name,
                setting=setting,
                total_tps=tps,
                user_tps=tps / batch,
                speedup=tps / vanilla,
                kv_bytes=kv_bytes,
            )
            for name, setting, tps, kv_bytes in rows
        ]
    return predictions


def render_batches(predictions: Sequence[BatchPrediction], *, width: int = 110) -> str:
    """Formats the predictions as text: total tok/s and, in brackets, × vanilla at the same batch."""
    import io

    from rich.console import Console
    from rich.table import Table

    batches = list(dict.fromkeys(each.batch for each in predictions))
    at = {(each.method, each.setting, each.batch): each for each in predictions}
    table = Table(box=None, pad_edge=False)
    table.add_column("method")
    table.add_column("setting")
    for batch in batches:
        table.add_column(f"batch {batch} tok/s (×)", justify="right")
    for method, setting in dict.fromkeys((each.method, each.setting) for each in predictions):
        row = [at[method, setting, batch] for batch in batches]
        table.add_row(method, setting, *(f"{each.total_tps:.0f} ({each.speedup:.2f})" for each in row))
    caches: dict[int, BatchPrediction] = {}
    for each in predictions:
        if each.kv_bytes is not None:
            caches.setdefault(each.batch, each)
    out = io.StringIO()
    console = Console(file=out, width=width, no_color=True, highlight=False, markup=False, emoji=False)
    console.print(
        "batches, all sequences together: weights once per round, each sequence's cache; no computing"
    )
    console.print(table)
    if caches:
        held = ", ".join(
            f"{(each.kv_bytes or 0.0) / 1e6:.0f} MB at {batch}" for batch, each in caches.items()
        )
        method = next(iter(caches.values())).method
        console.print(f"keys and values of all sequences with {method}: {held}", soft_wrap=True)
    return out.getvalue().rstrip("\n")
