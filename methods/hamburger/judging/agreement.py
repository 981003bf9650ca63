"""Held-out figures of HAMburger weights along answers that the base gave greedily.

:func:`measure` decodes along them, macro-step by macro-step. After each, the base's own tokens replace the emitted
ones, so that one early mistake does not affect every later comparison. :func:`token_accuracy` asks the micro-step
decoder at every token, from the features of the base that reads nothing merged.

Letters in shapes: F feature vectors, T response tokens, S most tokens per macro-step, D hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from hambench.decoding import Asking, SamplingParams
from hambench.methods.hamburger.grafts import Grafts
from hambench.methods.hamburger.judging.lockstep import most_at_once, run_side_by_side
from hambench.methods.hamburger.method import Hamburger

if TYPE_CHECKING:
    from hambench.engine.language_model import LanguageModel
    from hambench.methods.hamburger.checkpoint import Checkpoint

Answer = tuple[Sequence[int], int]
"""Ids of prompt and response, and the prompt's length."""

_COUNTS = ("macro_steps", "tokens", "same", "firsts", "same_firsts", "same_of_base")

_PAST_THE_END = 4
"""Slots to spare: the last macro-step may reach past the answer's end."""
_HEAD_ROWS = 256
"""Rows of the head at a time: 50 MiB of logits for a vocabulary of 50,000."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """Counts over all macro-steps along one answer or several.

    They include each response's first macro-step, which the unmerged prompt decides.
    """

    confidence: float
    macro_steps: int
    tokens: int
    """Emitted tokens, without those past the response's end."""
    same: int
    """Emitted tokens that equal the base's own token at their place."""
    firsts: int
    """Macro-steps after at least one merged slot."""
    same_firsts: int
    """Macro-steps among ``firsts`` whose first token is the base's own; it comes from the base that reads merged
    slots."""
    same_of_base: int
    """First tokens of all macro-steps that equal the base's own."""
    decisions: tuple[tuple[float, bool], ...] = ()
    """P(continue) wherever the stop head is asked and everything before is right, and whether the next token is."""

    @property
    def counts(self) -> dict[str, int]:
        """Every count by its name."""
        return {name: getattr(self, name) for name in _COUNTS}

    @property
    def m(self) -> float:
        """Tokens per macro-step."""
        return self.tokens / self.macro_steps

    @property
    def share_same(self) -> float:
        """Share of tokens that equal the base's own continuation."""
        return self.same / self.tokens

    @property
    def next_token_agreement(self) -> float | None:
        """Share of macro-steps after a merged slot whose first token is the base's; ``None`` if nothing was merged."""
        return self.same_firsts / self.firsts if self.firsts else None

    @property
    def grafted_agreement(self) -> float | None:
        """Share of the micro-step decoder's tokens that are the base's; ``None`` if it emitted none."""
        grafted = self.tokens - self.macro_steps
        return (self.same - self.same_of_base) / grafted if grafted else None


def joined(parts: Sequence[Agreement]) -> Agreement:
    """Adds up the counts of several answers at one confidence."""
    (confidence,) = {part.confidence for part in parts}
    return Agreement(
        confidence=confidence,
        decisions=tuple(decision for part in parts for decision in part.decisions),
        **{name: sum(getattr(part, name) for part in parts) for name in _COUNTS},
    )


def measure(
    method: Hamburger, answers: Sequence[Answer], confidences: Sequence[float]
) -> list[list[Agreement]]:
    """Decodes along each answer at each confidence; returns one list per confidence, with one entry per answer.

    The micro-step decoder always goes on to the last possible token, and the stop head is always asked, so that
    ``decisions`` also has those where continuing was refused. What the confidence refuses counts nowhere else and gets
    no slot.

    Args:
        method: The weights; its own confidence has no effect.
        answers: The base's own greedy answers.
        confidences: Least P(continue) to continue; above 1 every macro-step has one token.
    """
    # a method that always continues: the confidence is applied here
    always = dataclasses.replace(method, confidence=0.0)
    never = dataclasses.replace(method, confidence=2.0)
    begin = [
        lambda ids=ids, prompt=prompt, confidence=confidence: _along(
            never if confidence > 1 else always, ids, prompt, confidence
        )
        for ids, prompt in answers
        for confidence in confidences
    ]
    longest = max((len(ids) for ids, _ in answers), default=0) + _PAST_THE_END
    counts = run_side_by_side(begin, most=most_at_once(method.model.base, longest))
    return [counts[place :: len(confidences)] for place in range(len(confidences))]


def _along(method: Hamburger, ids: Sequence[int], prompt: int, confidence: float) -> Asking[Agreement]:
    response = list(ids[prompt:])
    session = method.start(list(ids[:prompt]), SamplingParams(max_new_tokens=len(response) + _PAST_THE_END))
    macro_steps = same = firsts = same_firsts = same_of_base = 0
    decisions: list[tuple[float, bool]] = []
    done, has_merged = 0, False
    while done < len(response):
        step = yield from (session.step() if done else session.prefill())
        hits = [mine == own for mine, own in zip(step.tokens, response[done:], strict=False)]
        length = 1
        while length < len(hits) and step.continue_probs[length - 1] >= confidence:
            length += 1
        for place in range(1, min(length + 1, len(hits))):
            if step.continue_probs and all(hits[:place]):
                decisions.append((step.continue_probs[place - 1], hits[place]))
        macro_steps, same, same_of_base = macro_steps + 1, same + sum(hits[:length]), same_of_base + hits[0]
        if has_merged:
            firsts, same_firsts = firsts + 1, same_firsts + hits[0]
        session.replace_last(response[done : done + length])
        done += length
        has_merged |= length > 1
    return Agreement(
        confidence=confidence,
        macro_steps=macro_steps,
        tokens=done,
        same=same,
        firsts=firsts,
        same_firsts=same_firsts,
        same_of_base=same_of_base,
        decisions=tuple(decisions),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenAccuracy:
    """How often the tokens of a macro-step that starts at each token of one answer are right, teacher forced."""

    right: tuple[int, ...]
    """Of the second, third, … token: how many equal the answer's, with those before them given."""
    asked: tuple[int, ...]
    """How many there are."""
    same_of_base: int
    """Tokens of the answer that the base itself, without the weights' changes, chooses again: what it does not is
    rounding, or an answer that is not the base's."""
    tokens: int
    """Tokens of the answer."""


@torch.inference_mode()
def token_accuracy(
    method: Hamburger, checkpoint: Checkpoint, answers: Sequence[Answer]
) -> list[TokenAccuracy]:
    """Asks the micro-step decoder at every token of each answer, from features of the base's unmerged forward.

    Args:
        method: The base, with these weights.
        checkpoint: The same weights.
        answers: The base's own greedy answers.
    """
    model, own_base = method.model, method.target.llama
    grafts = Grafts(model.base.shape, model.architecture)
    grafts.load_state_dict(
        {n: t for n, t in checkpoint.tensors.items() if not n.startswith(("lora.", "base."))}
    )
    grafts = grafts.to(model.base.device, model.base.dtype).eval()
    results = []
    for ids, prompt in answers:
        response = torch.tensor(list(ids[prompt:]), device=model.base.device)
        features, chosen = _read(model.base, ids, prompt, model.architecture.feature_layers)
        if own_base is not model.base:
            # changes that apply to every pass change the base's own choice too
            _, chosen = _read(own_base, ids, prompt, ())
        right, asked = _micro_hits(method, grafts, features.transpose(0, 1), response)
        results.append(
            TokenAccuracy(
                right=right, asked=asked, same_of_base=int((chosen == response).sum()), tokens=len(response)
            )
        )
    return results


def _read(
    base: LanguageModel, ids: Sequence[int], prompt: int, layers: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Returns the features ``[F, T, D]`` that precede each response token, and the base's own choices ``[T]``."""
    tokens, cache = torch.tensor(list(ids), device=base.device), base.new_cache(len(ids))
    out = base.prefill(tokens[:prompt], cache, feature_layers=layers)
    features, chosen = [out.features[:, -1:]], [out.logits[-1:].argmax(-1)]
    # the last token is never read, and the logits of a long answer would not fit next to each other
    for part in torch.split(tokens[prompt:-1], _HEAD_ROWS):
        if len(part):
            out = base.forward(part, cache, num_logits=None, feature_layers=layers)
            features.append(out.features)
            chosen.append(out.logits.argmax(-1))
    return torch.cat(features, dim=1), torch.cat(chosen)


def _micro_hits(
    method: Hamburger, grafts: Grafts, features: Tensor, response: Tensor
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns hits and trials of each further token; features are ``[T, F, D]``."""
    base, steps = method.model.base, method.model.architecture.max_micro_steps
    # padding repeats the last token and is never counted
    padded = F.pad(response[None], (0, steps), value=int(response[-1]))[0]
    tokens = padded.unfold(0, steps, 1)[: len(response)]
    given = tokens[:, :-1]
    hidden = grafts.micro(features, base.embed(given.reshape(-1)).reshape(*given.shape, -1))
    right, asked = [], []
    for place in range(1, steps):
        rows = slice(0, max(0, len(response) - place))
        chosen = [base.lm_head(part).argmax(-1) for part in torch.split(hidden[rows, place], _HEAD_ROWS)]
        wanted = tokens[rows, place]
        right.append(int((torch.cat(chosen) == wanted).sum()) if len(wanted) else 0)
        asked.append(len(wanted))
    return tuple(right), tuple(asked)
