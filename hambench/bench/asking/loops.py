"""The same greedy decode in two ways: through a session's requests, and in bare loops over the model's calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from hambench.decoding import DecodingMethod, SamplingParams
from hambench.engine.greedy import most_probable
from hambench.engine.loop import stream
from hambench.methods.speculative import Speculative
from hambench.methods.vanilla import Vanilla
from hambench.records import StepRecord


class Loop(Protocol):
    """One answer that is decoded in turns."""

    def prefill(self) -> None:
        """Reads the prompt and decodes the first token."""

    def advance(self, num_steps: int) -> None:
        """Decodes so many steps, or fewer if the answer ends before."""

    @property
    def tokens(self) -> list[int]:
        """Ids so far, without the prompt."""


class EngineLoop:
    """The engine's loop: a session that asks for its forwards, with a record of each step."""

    def __init__(self, method: DecodingMethod, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        self._run = stream(method, prompt_ids, params)
        self._steps: list[StepRecord] = []

    def prefill(self) -> None:
        """See :class:`Loop`."""
        self._steps.append(next(self._run))

    def advance(self, num_steps: int) -> None:
        """See :class:`Loop`; takes steps as :func:`hambench.engine.loop.generate` does."""
        run, steps = self._run, self._steps
        for _ in range(num_steps):
            try:
                steps.append(next(run))
            except StopIteration:
                return

    @property
    def tokens(self) -> list[int]:
        """See :class:`Loop`."""
        return [token for step in self._steps for token in step.tokens]

    @property
    def num_steps(self) -> int:
        """Steps after the prefill."""
        return len(self._steps) - 1


class BareVanilla:
    """Vanilla decoding without session, requests and records."""

    def __init__(self, method: Vanilla, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        self._model, self._limit = method.target.llama, params.max_new_tokens
        self._prompt_ids = list(prompt_ids)
        self._cache = self._model.new_cache(len(self._prompt_ids) + self._limit)
        self._model.prepare_greedy(self._cache, rows=[1])
        self._tokens: list[int] = []

    def prefill(self) -> None:
        """See :class:`Loop`."""
        with torch.inference_mode():
            out = self._model.prefill(_ids(self._prompt_ids, self._model.device), self._cache)
            self._tokens += most_probable(out.logits[-1:])

    def advance(self, num_steps: int) -> None:
        """See :class:`Loop`."""
        model, cache, tokens = self._model, self._cache, self._tokens
        with torch.inference_mode():
            for _ in range(min(num_steps, self._limit - len(tokens))):
                tokens += model.greedy([tokens[-1]], cache, num_tokens=1)

    @property
    def tokens(self) -> list[int]:
        """See :class:`Loop`."""
        return self._tokens


class BareSpeculative:
    """Greedy speculative decoding with a draft cache of its own, without session, requests and records."""

    def __init__(self, method: Speculative, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        self._model, self._draft = method.target.llama, method.draft
        self._num_draft_tokens = method.config.num_draft_tokens
        self._num_prompt_tokens = len(prompt_ids)
        # prompt included, because the draft's first input is what its cache has not seen
        self._all_tokens = list(prompt_ids)
        self._capacity = len(prompt_ids) + params.max_new_tokens
        self._cache = self._model.new_cache(self._capacity)
        self._draft_cache = self._draft.new_cache(self._capacity)
        most_drafted = min(self._num_draft_tokens, params.max_new_tokens - 1)
        self._model.prepare_greedy(self._cache, rows=range(1, most_drafted + 2))
        self._draft.prepare_greedy(self._draft_cache, chain=most_drafted)

    def prefill(self) -> None:
        """See :class:`Loop`."""
        with torch.inference_mode():
            ids = _ids(self._all_tokens, self._model.device)
            self._draft.prefill(ids, self._draft_cache)
            self._all_tokens += most_probable(self._model.prefill(ids, self._cache).logits[-1:])

    def advance(self, num_steps: int) -> None:
        """See :class:`Loop`."""
        model, draft, tokens, capacity = self._model, self._draft, self._all_tokens, self._capacity
        cache, draft_cache, most = self._cache, self._draft_cache, self._num_draft_tokens
        with torch.inference_mode():
            for _ in range(num_steps):
                num_left = capacity - len(tokens)
                if num_left == 0:
                    return
                base = cache.slots
                # the last token comes from the target, so it is never drafted
                unseen, num_drafted = tokens[draft_cache.slots :], min(most, num_left - 1)
                drafted = draft.decode_greedily(unseen, draft_cache, num_drafted)
                wanted = model.greedy([tokens[-1], *drafted], cache, num_tokens=num_drafted + 1)
                num_accepted = 0
                while num_accepted < num_drafted and drafted[num_accepted] == wanted[num_accepted]:
                    num_accepted += 1
                cache.truncate(base + 1 + num_accepted)
                tokens += wanted[: num_accepted + 1]
                draft_cache.truncate(min(draft_cache.slots, len(tokens) - 1))

    @property
    def tokens(self) -> list[int]:
        """See :class:`Loop`."""
        return self._all_tokens[self._num_prompt_tokens :]


def _ids(tokens: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(tokens, dtype=torch.int64, device=device)
