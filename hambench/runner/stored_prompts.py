"""Prompt ids of a stored run, from its own text and the tokenizer of its model: no weights are loaded."""

from __future__ import annotations

import dataclasses

from hambench.engine.text import encode_prompt
from hambench.errors import StoreError
from hambench.models.folder import load_tokenizer
from hambench.models.target import locate
from hambench.records import Cell
from hambench.store import Run


def prompt_ids_of(run: Run, cell: Cell) -> dict[tuple[str, int], list[int]]:
    """Encodes the prompt of each answer of a cell, as it was asked, by sample id and repeat.

    Raises:
        StoreError: If the model has no tokenizer, or another one than when the run was made.
    """
    tokenizer = load_tokenizer(locate(cell.model)[0])
    if tokenizer is None:
        raise StoreError(
            f"{run.path} can't be read again: {cell.model} has no tokenizer to read its prompts with"
        )
    positions = cell.positions(int(run.header.model.get("context_length") or 0) or 2**31)
    prompts: dict[tuple[str, int], list[int]] = {}
    for record in run.answered(cell.label):
        assert record.trace is not None
        sample = cell.asks(run.samples[record.sample_id])
        if record.prompt is not None:
            # a later turn of a conversation contains the cell's own answers
            sample = dataclasses.replace(sample, prompt=record.prompt)
        ids = encode_prompt(sample, tokenizer, context_length=positions).ids
        if len(ids) != record.trace.prompt_tokens:
            raise StoreError(
                f"{run.path}: {record.sample_id} was a prompt of {record.trace.prompt_tokens} tokens and is one of "
                f"{len(ids)} with the tokenizer that {cell.model} has now"
            )
        prompts[record.sample_id, record.repeat] = ids
    return prompts
