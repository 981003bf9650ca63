"""Loads checkpoints as transformers models, for the peer's target and the drafts of assisted generation."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from hambench.engine.int8 import Int8Linear
from hambench.engine.transformers_adapter import load_causal_lm
from hambench.methods.common.vocabulary import check_tokens
from hambench.models.embedded import hash_cache
from hambench.models.folder import load_tokenizer, read_config
from hambench.models.safetensors import digest, weight_files
from hambench.models.target import locate

if TYPE_CHECKING:
    from hambench.decoding import Target


def load_model(name: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Loads a checkpoint as a transformers causal LM with a neutral generation config.

    Raises:
        ModelError: If the model does not exist.
    """
    from transformers.utils.logging import disable_progress_bar

    folder, _, _ = locate(name)
    # a bar that is there for half a second would tear the run's own
    disable_progress_bar()
    read_config(folder)
    model, _ = load_causal_lm(folder, dtype)
    return quiet(model.to(device))


def quiet(model: Any) -> Any:
    """Removes the checkpoint's sampling settings and end tokens from the model, because the engine decides on both."""
    from transformers import GenerationConfig

    # a pad id keeps generate from choosing (and announcing) one; nothing is ever padded here
    model.generation_config = GenerationConfig(pad_token_id=0)
    return model.eval()


def load_assistant(name: str, model: Any, target: Target) -> Any:
    """Makes or loads a draft for assisted generation, once.

    Raises:
        ModelError: If its tokens differ from the target's.
    """
    if name == "int8":
        return target.shared("transformers/int8", lambda: int8_copy(model))
    return target.shared(f"transformers/{name}", lambda: _load_other(name, model, target))


def _load_other(name: str, model: Any, target: Target) -> Any:
    draft = load_model(name, target.dtype, target.device)
    folder, _, _ = locate(name)
    num_rows = model.get_output_embeddings().weight.shape[0]
    check_tokens(name, load_tokenizer(folder), draft.get_output_embeddings().weight.shape[0], target)
    target.companions[f"draft {name}"] = digest(weight_files(folder), hash_cache())
    # assisted generation compares whole rows of probabilities; rows cut or added stand for padding
    if draft.config.get_text_config().vocab_size != num_rows:
        draft.resize_token_embeddings(num_rows, mean_resizing=False)
    return draft


def with_schedule(assistant: Any, num_draft_tokens: int, schedule: str = "constant") -> Any:
    """The assistant, set to draft that many tokens per round, or to adapt their number from there.

    With ``constant``, the adaptation and the end at low confidence are off, so that k means here what it means for
    ``speculative``. transformers keeps what a schedule has learnt in the assistant: a new one of these forgets it.
    """
    configured = copy.copy(assistant)
    configured.generation_config = copy.deepcopy(assistant.generation_config)
    configured.generation_config.num_assistant_tokens = num_draft_tokens
    configured.generation_config.num_assistant_tokens_schedule = (
        "heuristic_transient" if schedule == "heuristic" else "constant"
    )
    # transformers' own default threshold
    configured.generation_config.assistant_confidence_threshold = 0.4 if schedule == "dynamic" else 0.0
    return configured


def int8_copy(model: Any) -> Any:
    """Returns a copy with the int8 codes of ``speculative``'s draft in its linear layers; shares the rest."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    quantized = copy.deepcopy(model, memo)
    for parent in list(quantized.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(parent, name, _Int8Module(child))
    return quantized


class _Int8Module(torch.nn.Module):
    """Wraps an :class:`hambench.engine.int8.Int8Linear` as a module for transformers."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self._linear = Int8Linear(linear.weight.detach(), linear.bias)
        # registered, so that the copy's bytes can be counted
        self.register_buffer("codes", self._linear.codes)
        self.register_buffer("scales", self._linear.scales)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        projected = self._linear(rows.flatten(0, -2))
        return projected.view(*rows.shape[:-1], projected.shape[-1])
