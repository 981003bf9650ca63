"""Checks that a draft has the target's tokens, and adapts drafts with more or fewer rows.

The tokens must agree, i.e. id 5 must be the same piece of text in both. The number of rows is no evidence of that.
Models of one family are often padded differently, and two different tokenizers can have equally many tokens.
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
    """Checks that a draft's ids mean the same tokens as the target's.

    Added tokens (markers of a chat template, reserved names) may differ, because text never encodes to them.

    Args:
        name: The draft's name for the message.
        tokenizer: The draft's tokenizer; without it or the target's, the numbers of rows must be equal.
        num_rows: Rows of the draft's head.
        target: The target.

    Raises:
        ModelError: If they differ; the message names the first different id.
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
    """Returns the model with ``num_rows`` rows in embedding and head; shares the rest with the original.

    Rows beyond the target's are cut, because such tokens can't be accepted. Missing rows, which are padding, become
    copies of row 0, which never win against it.
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
