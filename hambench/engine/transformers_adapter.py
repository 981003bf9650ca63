"""Runs any transformers causal LM behind the forward of :class:`hambench.engine.llama.Llama`: slower, and it says so.

It serves architectures that the lean forward pass does not support. The cache is transformers' own. The adapter counts
its slots and rolls them back by cropping.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hambench.engine.greedy import GreedyDecoding
from hambench.engine.llama import Llama
from hambench.engine.output import ForwardOutput
from hambench.engine.shape import LlamaShape
from hambench.errors import ContextOverflowError, ModelError, first_line, listed

PREFILL_CHUNK = 512


class AdapterCache:
    """transformers' dynamic cache with the counters of :class:`hambench.engine.kvcache.KVCache`.

    Args:
        capacity: Most slots.
        bytes_per_slot: Bytes per slot over all layers, as measured, because architectures store different things.
    """

    def __init__(self, capacity: int, bytes_per_slot: int) -> None:
        from transformers import DynamicCache

        if capacity < 1:
            raise ValueError(f"capacity must be >= 1, got {capacity}")
        self.inner = DynamicCache()
        self.capacity, self.bytes_per_slot = capacity, bytes_per_slot
        self.slots = 0

    @property
    def bytes_used(self) -> int:
        """Bytes of the slots in use, as the cache really holds them (a shape may predict others)."""
        return cache_bytes(self.inner)

    @property
    def storage_bytes(self) -> int:
        """Bytes held; this cache grows with its slots."""
        return self.bytes_used

    def truncate(self, slots: int) -> None:
        """Forgets every slot from ``slots`` on.

        Raises:
            ValueError: If ``slots`` is negative or more than are in use.
        """
        if not 0 <= slots <= self.slots:
            raise ValueError(f"slots must be in 0..{self.slots} (the slots in use), got {slots}")
        if slots < self.slots:
            # on some layers crop treats 0 as "keep everything", so say how many to drop instead
            self.inner.crop(slots - self.slots)
        self.slots = slots

    def require(self, slots: int) -> None:
        """Checks that ``slots`` more fit.

        Raises:
            ContextOverflowError: If they do not fit.
        """
        if self.slots + slots > self.capacity:
            raise ContextOverflowError(
                f"the KV cache holds {self.capacity} slots, {self.slots + slots} are needed"
            )


def cache_bytes(cache: Any) -> int:
    """Returns the bytes of the keys and values in a transformers cache."""
    num_bytes = 0
    for layer in cache.layers:
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            num_bytes += int(tensor.nbytes) if tensor is not None else 0
    return num_bytes


class TransformersAdapter(GreedyDecoding):
    """A transformers causal LM with the forward of the lean engine.

    Args:
        model: A loaded ``...ForCausalLM`` whose cache grows by one slot per token and can be cropped.

    Raises:
        ModelError: If the model keeps a state that can't be rolled back (a recurrent or sliding-window one).
    """

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        if not kinds <= {"full_attention"} or getattr(model, "_is_stateful", False):
            raise ModelError(
                f"architecture {config.model_type!r} keeps a state that can't be rolled back; "
                "only models with full attention run"
            )
        self.model = model.eval()
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self.shape = _shape_of(config, model.get_output_embeddings().weight.shape[0])
        self.prefill_chunk: int | None = None
        """See :class:`hambench.engine.language_model.LanguageModel`; by default :data:`PREFILL_CHUNK`."""
        self._takes_logits_to_keep = "logits_to_keep" in inspect.signature(model.forward).parameters

    @property
    def weight_bytes(self) -> int:
        """Bytes of parameters that one decode step reads (it reads only a row of an untied embedding)."""
        total: int = sum(parameter.nbytes for parameter in self.model.parameters())
        table = self.model.get_input_embeddings().weight
        tied = table is self.model.get_output_embeddings().weight
        return total if tied else total - int(table.nbytes)

    @property
    def reference(self) -> None:
        """See :class:`hambench.engine.language_model.LanguageModel`. The lean forward can't run it."""
        return

    def with_same_backend(self, other: Llama) -> Llama:
        """See :class:`hambench.engine.language_model.LanguageModel`. The engine's own forward is faster."""
        return other

    def new_cache(self, capacity: int) -> AdapterCache:
        """Returns an empty cache."""
        return AdapterCache(capacity, self.bytes_per_slot)

    @cached_property
    def bytes_per_slot(self) -> int:
        """Bytes per slot over all layers, measured with one slot: no shape gives those of a compressed cache (MLA)."""
        probe = AdapterCache(1, 0)
        self.forward(torch.zeros(1, dtype=torch.int64, device=self.device), probe)
        return probe.bytes_used

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Looks up the embeddings ``[T, D]`` of ids ``[T]``."""
        embedded: torch.Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    @torch.inference_mode()
    def lm_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Computes logits ``[R, V]`` in float32 from normed hidden states ``[R, D]``."""
        logits: torch.Tensor = self.model.get_output_embeddings()(hidden).float()
        return logits

    @torch.inference_mode()
    def forward(
        self,
        inputs: torch.Tensor,
        cache: AdapterCache,
        *,
        positions: torch.Tensor | None = None,
        num_logits: int | None = 1,
        feature_layers: tuple[int, ...] = (),
    ) -> ForwardOutput:
        """Runs T rows; see :meth:`hambench.engine.llama.Llama.forward`."""
        num_rows = inputs.shape[0]
        cache.require(num_rows)
        if positions is None:
            positions = torch.arange(cache.slots, cache.slots + num_rows, device=self.device)
        num_selected = num_rows if num_logits is None else min(num_logits, num_rows)
        input_name = "input_ids" if inputs.ndim == 1 else "inputs_embeds"
        # transformers takes 0 as all: ask for one row and drop it
        keep = {"logits_to_keep": max(num_selected, 1)} if self._takes_logits_to_keep else {}
        out = self.model(
            **{input_name: inputs[None]},
            **keep,
            position_ids=positions[None],
            past_key_values=cache.inner,
            use_cache=True,
            output_hidden_states=True,
        )
        cache.slots += num_rows
        logits = out.logits[0].float()
        return ForwardOutput(
            logits=logits[logits.shape[0] - num_selected :],
            hidden=out.hidden_states[-1][0],
            features=torch.stack([out.hidden_states[layer + 1][0] for layer in feature_layers])
            if feature_layers
            else out.hidden_states[-1].new_empty(0, num_rows, self.shape.hidden_size),
        )

    def prefill_pieces(
        self, ids: torch.Tensor, cache: AdapterCache, *, feature_layers: tuple[int, ...] = ()
    ) -> Iterator[ForwardOutput | None]:
        """See :meth:`hambench.engine.llama.Llama.prefill_pieces`."""
        if ids.shape[0] == 0:
            raise ValueError("ids must hold at least one token, got none")
        *chunks, last = torch.split(ids, self.prefill_chunk or PREFILL_CHUNK)
        for chunk in chunks:
            self.forward(chunk, cache, num_logits=0)
            yield None
        out = self.forward(last, cache, feature_layers=feature_layers)
        yield ForwardOutput(logits=out.logits, hidden=out.hidden[-1:], features=out.features[:, -1:])


def load_adapter(folder: Path, dtype: torch.dtype, device: torch.device) -> tuple[TransformersAdapter, str]:
    """Loads a checkpoint folder as an adapter, from safetensors only and without running code from the checkpoint.

    Returns the adapter and a warning for the user ("" if there is none).

    Raises:
        ModelError: If transformers can't load it as a causal LM, or the adapter can't serve the model.
    """
    model, note = load_causal_lm(folder, dtype)
    try:
        return TransformersAdapter(model.to(device)), note
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"{folder} can't be run as a causal language model: {error}") from error


def load_causal_lm(folder: Path, dtype: torch.dtype) -> tuple[Any, str]:
    """Loads a checkpoint folder as a transformers causal LM; also returns a note on unread weights.

    Raises:
        ModelError: If transformers can't load it, or would initialise weights that the folder lacks.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    # transformers reports odd weights in a table on stderr; the lines below say the same
    logging.set_verbosity_error()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises anything on odd checkpoints
        raise ModelError(
            f"{folder} can't be loaded as a causal language model: {first_line(error)}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{folder} lacks weights of its architecture: {listed(missing)}")
    unread = sorted(info["unexpected_keys"])
    return model, f"unread weights: {listed(unread)}" if unread else ""


def _shape_of(config: Any, vocab_size: int) -> LlamaShape:
    """Returns the sizes that callers read; the switches of the lean forward pass have no meaning here."""
    num_heads = config.num_attention_heads
    hidden_size = config.hidden_size
    return LlamaShape(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=getattr(config, "intermediate_size", None) or 4 * hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=num_heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
        head_dim=getattr(config, "head_dim", None) or hidden_size // num_heads,
        rms_norm_eps=float(getattr(config, "rms_norm_eps", None) or 1e-5),
        rope_theta=10000.0,
        max_positions=_positions_of(config),
        tie_embeddings=bool(config.tie_word_embeddings),
    )


def _positions_of(config: Any) -> int:
    """Returns the number of positions that a config says the model was made for, under any of the names in use."""
    for name in (
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "max_sequence_length",
        "seq_length",
    ):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    raise ModelError(
        f"the config of this {config.model_type!r} model does not say how many positions it was made for: add "
        "max_position_embeddings to config.json"
    )
