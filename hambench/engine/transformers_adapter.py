"""Any causal LM of transformers behind the forward of :class:`hambench.engine.llama.Llama`: slower, and it says so.

For architectures that the lean forward pass does not run. The cache is transformers' own; slots are counted here and
rolled back by cropping it.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch

from hambench.engine.greedy import GreedyDecoding
from hambench.engine.llama import Llama
from hambench.engine.output import ForwardOutput
from hambench.engine.shape import LlamaShape
from hambench.errors import ContextOverflowError, ModelError

PREFILL_CHUNK = 512


class AdapterCache:
    """transformers' dynamic cache with the counters of :class:`hambench.engine.kvcache.KVCache`.

    Args:
        capacity: Most slots.
        bytes_per_slot: Bytes of one slot's keys and values in every layer.
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
        """Bytes of the slots in use."""
        return self.slots * self.bytes_per_slot

    @property
    def storage_bytes(self) -> int:
        """Bytes held: this cache grows with its slots."""
        return self.bytes_used

    def truncate(self, slots: int) -> None:
        """Forgets every slot from ``slots`` on.

        Raises:
            ValueError: If ``slots`` is negative or more than are in use.
        """
        if not 0 <= slots <= self.slots:
            raise ValueError(f"slots must be in 0..{self.slots} (the slots in use), got {slots}")
        if slots < self.slots:
            # crop takes 0 for "keep everything" on some layers: say how many to drop instead
            self.inner.crop(slots - self.slots)
        self.slots = slots

    def require(self, slots: int) -> None:
        """Checks that ``slots`` more fit.

        Raises:
            ContextOverflowError: If they don't.
        """
        if self.slots + slots > self.capacity:
            raise ContextOverflowError(
                f"the KV cache holds {self.capacity} slots, {self.slots + slots} are needed"
            )


class TransformersAdapter(GreedyDecoding):
    """A transformers causal LM with the forward of the lean engine.

    Args:
        model: A loaded ``...ForCausalLM`` whose cache grows by one slot a token and can be cropped.

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
        self._takes_logits_to_keep = "logits_to_keep" in inspect.signature(model.forward).parameters

    @property
    def weight_bytes(self) -> int:
        """Bytes of parameters read by one decode step (of an untied embedding only a row is)."""
        total: int = sum(parameter.nbytes for parameter in self.model.parameters())
        table = self.model.get_input_embeddings().weight
        tied = table is self.model.get_output_embeddings().weight
        return total if tied else total - int(table.nbytes)

    @property
    def reference(self) -> None:
        """See :class:`hambench.engine.language_model.LanguageModel`: the engine's own forward does not run this."""
        return

    def with_same_backend(self, other: Llama) -> Llama:
        """See :class:`hambench.engine.language_model.LanguageModel`: the engine's own forward is the faster one."""
        return other

    def new_cache(self, capacity: int) -> AdapterCache:
        """An empty cache."""
        shape = self.shape
        return AdapterCache(
            capacity, 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * self.dtype.itemsize
        )

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings ``[T, D]`` of ids ``[T]``."""
        embedded: torch.Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    @torch.inference_mode()
    def lm_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits ``[R, V]`` in float32 of normed hidden states ``[R, D]``."""
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
        """Runs T rows: see :meth:`hambench.engine.llama.Llama.forward`."""
        num_rows = inputs.shape[0]
        cache.require(num_rows)
        if positions is None:
            positions = torch.arange(cache.slots, cache.slots + num_rows, device=self.device)
        wanted = num_rows if num_logits is None else min(num_logits, num_rows)
        given = "input_ids" if inputs.ndim == 1 else "inputs_embeds"
        # 0 means all to transformers: ask for one row and drop it
        keep = {"logits_to_keep": max(wanted, 1)} if self._takes_logits_to_keep else {}
        out = self.model(
            **{given: inputs[None]},
            **keep,
            position_ids=positions[None],
            past_key_values=cache.inner,
            use_cache=True,
            output_hidden_states=True,
        )
        cache.slots += num_rows
        logits = out.logits[0].float()
        return ForwardOutput(
            logits=logits[logits.shape[0] - wanted :],
            hidden=out.hidden_states[-1][0],
            features=torch.stack([out.hidden_states[layer + 1][0] for layer in feature_layers])
            if feature_layers
            else out.hidden_states[-1].new_empty(0, num_rows, self.shape.hidden_size),
        )

    def prefill(
        self, ids: torch.Tensor, cache: AdapterCache, *, feature_layers: tuple[int, ...] = ()
    ) -> ForwardOutput:
        """Runs a prompt ``[T]`` in chunks; logits, hidden state and features of the last row only."""
        if ids.shape[0] == 0:
            raise ValueError("ids must hold at least one token, got none")
        chunks = torch.split(ids, PREFILL_CHUNK)
        for chunk in chunks[:-1]:
            self.forward(chunk, cache, num_logits=0)
        out = self.forward(chunks[-1], cache, feature_layers=feature_layers)
        return ForwardOutput(logits=out.logits, hidden=out.hidden[-1:], features=out.features[:, -1:])


def load_adapter(folder: Path, dtype: torch.dtype, device: torch.device) -> TransformersAdapter:
    """A checkpoint folder as an adapter; safetensors only, and no code from the checkpoint.

    Raises:
        ModelError: If transformers can't load it as a causal LM.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except (ValueError, OSError, ImportError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{folder} can't be loaded as a causal language model: {reason}") from error
    return TransformersAdapter(model.to(device))


def _shape_of(config: Any, vocab_size: int) -> LlamaShape:
    """The sizes that callers read; the switches of the lean forward pass mean nothing here."""
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
        max_positions=config.max_position_embeddings,
        tie_embeddings=bool(config.tie_word_embeddings),
    )
