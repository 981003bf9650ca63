"""Loading checkpoints as transformers models: the peer's target, and the drafts of its assisted generation."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from hambench.engine.int8 import Int8Linear
from hambench.errors import HambenchError

if TYPE_CHECKING:
    from hambench.models.target import TargetModel


def load_model(name: str, dtype: torch.dtype, device: torch.device) -> Any:
    """A checkpoint as a transformers causal LM whose generation config asks for nothing by itself.

    Raises:
        ModelError: If there is no such model.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from hambench.models.target import locate

    folder, _, _ = locate(name)
    # a bar that is there for half a second would tear the run's own
    disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return quiet(model.to(device))


def quiet(model: Any) -> Any:
    """The model without the sampling settings and end tokens of its checkpoint: the engine decides about both."""
    from transformers import GenerationConfig

    # a pad id keeps generate from choosing (and announcing) one; nothing is ever padded here
    model.generation_config = GenerationConfig(pad_token_id=0)
    return model.eval()


def load_assistant(name: str, model: Any, target: TargetModel) -> Any:
    """A draft for assisted generation, made or loaded once.

    Raises:
        HambenchError: If its vocabulary is not the target's.
    """
    if name == "int8":
        return target.shared("transformers/int8", lambda: int8_copy(model))
    draft = target.shared(f"transformers/{name}", lambda: load_model(name, target.dtype, target.device))
    if draft.config.vocab_size != model.config.vocab_size:
        raise HambenchError(
            f"assistant {name} has {draft.config.vocab_size} tokens, {target.name} has {model.config.vocab_size}: "
            "assisted generation needs the same vocabulary"
        )
    return draft


def with_draft_length(assistant: Any, num_draft_tokens: int) -> Any:
    """The assistant, set to draft that many tokens a round.

    transformers would lengthen and shorten the draft as it goes, and stop it early at low confidence: both off, so
    that k means here what it means for ``speculative``.
    """
    configured = copy.copy(assistant)
    configured.generation_config = copy.deepcopy(assistant.generation_config)
    configured.generation_config.num_assistant_tokens = num_draft_tokens
    configured.generation_config.num_assistant_tokens_schedule = "constant"
    configured.generation_config.assistant_confidence_threshold = 0.0
    return configured


def int8_copy(model: Any) -> Any:
    """A copy whose linear layers hold the same int8 codes as the draft of ``speculative``; the rest is shared."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    quantized = copy.deepcopy(model, memo)
    for parent in list(quantized.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(parent, name, _Int8Module(child))
    return quantized


class _Int8Module(torch.nn.Module):
    """An :class:`hambench.engine.int8.Int8Linear` where transformers expects a module."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self._linear = Int8Linear(linear.weight.detach(), linear.bias)
        # registered, so that the copy's bytes can be counted
        self.register_buffer("codes", self._linear.codes)
        self.register_buffer("scales", self._linear.scales)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        projected = self._linear(rows.flatten(0, -2))
        return projected.view(*rows.shape[:-1], projected.shape[-1])
