"""transformers' own ``generate`` as a peer, timed step by step.

``mode`` selects the form: ``dynamic`` (the default cache), ``static`` (a cache of fixed size, for which transformers
compiles the forward on a GPU), ``assistant`` (assisted generation with a draft model) or ``prompt_lookup``. Generation
runs in its own thread and pauses at every streamed token until the next step is requested, so that a step's time covers
only the work between two streamed pieces.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hambench.decoding import KVUsage, SamplingParams, SessionEndedError, Step
from hambench.methods.peers.base import PeerConfig

if TYPE_CHECKING:
    from hambench.decoding import Target
    from hambench.methods.peers.paused_generate import PausedGenerate

SCHEDULES = ("constant", "heuristic", "dynamic")
MODES = ("dynamic", "static", "assistant", "prompt_lookup")
INT8 = "int8"
MODEL_KEY = "transformers/target"
"""Key of the transformers model in :meth:`hambench.decoding.Target.shared`."""


@dataclass(frozen=True, kw_only=True)
class TransformersConfig(PeerConfig):
    """Decodes with transformers' own generate, plain or with a draft, as a peer to compare with."""

    method: ClassVar[str] = "transformers"
    lossless: ClassVar[bool] = True
    aliases: ClassVar[dict[str, str]] = {"k": "num_draft_tokens", "n": "max_ngram"}

    mode: str = "dynamic"
    """``dynamic``, ``static``, ``assistant`` or ``prompt_lookup``."""
    num_draft_tokens: int = 4
    """Tokens drafted per step (``assistant``, ``prompt_lookup``); a schedule begins there, or goes no further."""
    schedule: str = "constant"
    """How ``assistant`` changes the draft's length: ``constant``; ``heuristic``, two more after a draft that was wholly
    accepted, else one less; ``dynamic``, transformers' own default: a draft ends at low confidence, and the threshold
    adapts. Each answer begins afresh."""
    max_ngram: int = 3
    """Longest n-gram looked up (``prompt_lookup``)."""
    assistant: str = INT8
    """Draft model (``assistant``): ``int8`` for a weight-only copy of the target, or a model's name or folder."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.schedule != "constant" and self.mode != "assistant":
            raise ValueError(f"schedule={self.schedule} needs mode=assistant, got mode={self.mode}")
        if self.num_draft_tokens < 1:
            raise ValueError(f"num_draft_tokens (k) must be >= 1, got {self.num_draft_tokens}")
        if self.max_ngram < 1:
            raise ValueError(f"max_ngram (n) must be >= 1, got {self.max_ngram}")

    def build(self, target: Target) -> TransformersGenerate:
        """Loads the checkpoint again as a transformers model, once for all cells that use it."""
        from hambench.methods.peers.transformers_models import load_assistant, load_model, with_schedule

        model = target.shared(MODEL_KEY, lambda: load_model(target.name, target.dtype, target.device))
        assistant = None
        if self.mode == "assistant":
            draft = load_assistant(self.assistant, model, target)
            assistant = with_schedule(draft, self.num_draft_tokens, self.schedule)
        return TransformersGenerate(self.label, self, target, model, assistant)


@dataclass(frozen=True)
class TransformersGenerate:
    """The transformers model and, in ``assistant`` mode, its draft."""

    name: str
    config: TransformersConfig
    target: Target
    model: Any
    """A transformers causal LM, with a generation config that asks for nothing by itself."""
    assistant: Any | None
    lossless: bool = True

    @property
    def extra_weight_bytes(self) -> int:
        """The draft's weights."""
        if self.assistant is None:
            return 0
        tensors = [*self.assistant.parameters(), *self.assistant.buffers()]
        return sum(int(tensor.nbytes) for tensor in tensors)

    def warmup(self) -> None:
        """Decodes a few tokens; with a static cache on a GPU, transformers compiles here."""
        from hambench.methods.common.sequence import decode_a_little

        decode_a_little(self)

    def start(self, prompt_ids: Sequence[int], params: SamplingParams) -> TransformersSession:
        """Opens a session; see :class:`hambench.decoding.DecodingMethod`."""
        from hambench.methods.common.sequence import check_request

        check_request(self.target, prompt_ids, params.max_new_tokens)
        return TransformersSession(self, list(prompt_ids), params)


class TransformersSession:
    """One call of ``generate``, paused between its steps.

    Args:
        method: The method it belongs to.
        prompt_ids: The prompt.
        params: Limit and sampling.
    """

    def __init__(self, method: TransformersGenerate, prompt_ids: list[int], params: SamplingParams) -> None:
        self._method, self._num_prompt = method, len(prompt_ids)
        self._num_emitted = 0
        self._generation = _paused_generate(method, prompt_ids, params)

    def prefill(self) -> Step:
        """Processes the prompt and emits the first token, or the first burst if the mode drafts after the prompt."""
        return self.step()

    def step(self) -> Step:
        """Lets ``generate`` run up to the next piece it streams.

        Raises:
            SessionEndedError: If it has reached its limit.
        """
        burst = self._generation.advance()
        if burst is None:
            raise SessionEndedError("length")
        # rows of the verifying forward that were neither prompt nor the token before
        num_known = self._num_prompt if self._num_emitted == 0 else 1
        self._num_emitted += len(burst.tokens)
        return Step(
            tokens=burst.tokens,
            target_forwards=burst.num_forwards,
            draft_forwards=burst.num_draft_forwards,
            drafted=burst.num_rows - num_known,
            accepted=len(burst.tokens) - 1,
        )

    @property
    def kv(self) -> KVUsage:
        """Slots of all tokens but the newest; no bytes, because the assistant's cache is not accessible."""
        slots = self._num_prompt + self._num_emitted - 1
        if self._method.assistant is not None:
            return KVUsage(slots, None)
        return KVUsage(slots, slots * bytes_per_slot(self._method.target))


def bytes_per_slot(target: Target) -> int:
    """Bytes of one slot of the target's cache."""
    num_bytes: int = target.llama.new_cache(1).bytes_per_slot
    return num_bytes


def _paused_generate(
    method: TransformersGenerate, prompt_ids: list[int], params: SamplingParams
) -> PausedGenerate:
    import torch
    from transformers import DynamicCache, StaticCache

    from hambench.methods.peers.paused_generate import PausedGenerate
    from hambench.methods.peers.transformers_models import with_schedule

    _hush()
    config, model = method.config, method.model
    ids = torch.tensor([prompt_ids], dtype=torch.int64, device=method.target.device)
    options: dict[str, Any] = {}
    if config.mode == "static":
        capacity = len(prompt_ids) + params.max_new_tokens
        options["past_key_values"] = StaticCache(config=model.config, max_cache_len=capacity)
    else:
        options["past_key_values"] = DynamicCache(config=model.config)
    if config.mode == "assistant":
        # what an adaptive schedule has learnt of one answer is not carried into the next
        options["assistant_model"] = with_schedule(method.assistant, config.num_draft_tokens, config.schedule)

    def generate(streamer: Any) -> None:
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=_generation_config(config, params),
            streamer=streamer,
            **options,
        )

    return PausedGenerate(
        generate, model=model, assistant=method.assistant, seed=None if params.greedy else params.seed
    )


def _hush() -> None:
    """Silences warnings about arguments that transformers renamed between its oldest and newest supported versions."""
    warnings.filterwarnings("ignore", message=".*past_key_values.*", category=FutureWarning)
    logging.getLogger("transformers.generation.utils").setLevel(logging.ERROR)


def _generation_config(config: TransformersConfig, params: SamplingParams) -> Any:
    from transformers import GenerationConfig

    options: dict[str, Any] = {"max_new_tokens": params.max_new_tokens, "do_sample": not params.greedy}
    if not params.greedy:
        # top_k = 0: transformers would otherwise keep the 50 most probable tokens only
        options |= {"temperature": params.temperature, "top_p": params.top_p, "top_k": 0}
    if config.mode == "prompt_lookup":
        options |= {
            "prompt_lookup_num_tokens": config.num_draft_tokens,
            "max_matching_ngram_size": config.max_ngram,
        }
    return GenerationConfig(**options)
