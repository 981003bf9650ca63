"""Whether a draft speaks the target's tokens, and how one with more or fewer rows than the target comes to fit.

The tokens must agree: id 5 must be the same piece of text in both. How many rows the matrices have says nothing
about that. Models of one family are often padded differently, and two tokenizers can have as many tokens.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from hambench.engine.linear import make_linear
from hambench.errors import ModelError

if TYPE_CHECKING:
    from hambench.decoding import Target
    from hambench.engine.llama import Llama


def check_tokens(name: str, tokenizer: Any | None, num_rows: int, target: Target) -> None:
    """Refuses a draft whose ids stand for other tokens than the target's.

    Tokens that were added (markers of a chat template, reserved names) may differ: no text is made of them.

    Args:
        name: The draft's name, for the message.
        tokenizer: The draft's tokenizer; without one (or without the target's) the rows must be as many.
        num_rows: Rows of the draft's head.
        target: The target.

    Raises:
        ModelError: Naming the first id that differs.
    """
    rows = target.llama.shape.vocab_size
    if tokenizer is None or target.tokenizer is None:
        if num_rows != rows:
            raise ModelError(
                f"draft {name} has a vocabulary of {num_rows} tokens, {target.name} has {rows}, and without both "
                "tokenizers their tokens can't be compared: a draft must share the target's tokenizer"
            )
        return
    theirs, ours = _ordinary(tokenizer), _ordinary(target.tokenizer)
    for token_id in sorted(theirs.keys() | ours.keys()):
        if theirs.get(token_id) != ours.get(token_id):
            raise ModelError(
                f"draft {name} has another tokenizer than {target.name}: token {token_id} is "
                f"{theirs.get(token_id)!r} there and {ours.get(token_id)!r} here; a draft must share the target's "
                "tokenizer"
            )
    if ours and max(ours) >= num_rows:
        raise ModelError(
            f"draft {name} has {num_rows} rows for the {max(ours) + 1} tokens of its tokenizer: it is damaged"
        )


def with_rows(model: Llama, num_rows: int) -> Llama:
    """The model with so many rows in embedding and head; the rest is shared with the original.

    Rows beyond the target's are cut, since no such token can be accepted. Missing ones are copies of row 0, which never
    win against it: they stand for padding that no text holds.
    """
    have = model.shape.vocab_size
    if have == num_rows:
        return model
    kept = min(have, num_rows)
    rows = torch.tensor([*range(kept), *[0] * (num_rows - kept)], device=model.device)
    fitted = copy.copy(model)
    fitted.shape = dataclasses.replace(model.shape, vocab_size=num_rows)
    fitted.embedding = model.embedding[rows]
    is_tied = model.head.weight is model.embedding
    fitted.head = make_linear(fitted.embedding if is_tied else model.head.weight[rows])
    return fitted


def _ordinary(tokenizer: Any) -> dict[int, str]:
    added: dict[str, int] = getattr(tokenizer, "get_added_vocab", dict)()
    return {index: token for token, index in tokenizer.get_vocab().items() if token not in added}
