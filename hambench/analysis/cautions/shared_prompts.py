"""Times to first token of cells that share prompts: given only over prompts that all cells timed.

A cell that copies a prompt from another has no time for it, and cells take turns at being first. So apart from the
first few, which all read, each one times other prompts than its neighbours, and those take other times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from hambench.records import SampleRecord
from hambench.store import Run

Key = tuple[str, int]
"""Sample id and repeat of an answer."""


class Counted(Protocol):
    """What the caution reads of a cell's measurements."""

    @property
    def cell(self) -> str:
        """Label."""

    @property
    def num_answers(self) -> int:
        """Answers given."""

    @property
    def num_ttfts(self) -> int:
        """Answers behind the time to first token."""


def compared_prefills(run: Run) -> dict[str, frozenset[Key]]:
    """Returns, by cell label, the answers whose prefill times may stand next to other cells' times."""
    return common_prefills({cell.label: run.answered(cell.label) for cell in run.header.cells})


def common_prefills(answers: Mapping[str, Iterable[SampleRecord]]) -> dict[str, frozenset[Key]]:
    """Chooses answers so that no two cells are compared by different prompts.

    If every cell timed all its answers, these are all. Otherwise they are the answers that every cell timed; if there
    is none, all answers of the cells that timed all of theirs, and no answer of the others.

    Args:
        answers: Answered records by cell label.
    """
    given: dict[str, set[Key]] = {}
    timed: dict[str, set[Key]] = {}
    for cell, records in answers.items():
        given[cell], timed[cell] = set(), set()
        for record in records:
            if record.trace is None or not record.trace.steps:
                continue
            given[cell].add((record.sample_id, record.repeat))
            if record.trace.ttft_s is not None:
                timed[cell].add((record.sample_id, record.repeat))
    answering = [cell for cell in answers if given[cell]]
    whole = {cell for cell in answers if timed[cell] == given[cell]}
    common: set[Key] = set.intersection(*(timed[cell] for cell in answering)) if answering else set()
    if common and len(whole) < len(answers):
        return {cell: frozenset(common) for cell in answers}
    return {cell: frozenset(timed[cell] if cell in whole else ()) for cell in answers}


def timed_prefills(measured: Iterable[Counted]) -> str:
    """Describes which answers the times to first token rest on; empty if all were timed.

    Args:
        measured: Measurements of the cells, over the same group.
    """
    cells = [m for m in measured if m.num_answers]
    if all(m.num_ttfts >= m.num_answers for m in cells):
        return ""
    reason = "cells with the same weights read a prompt once and copy it"
    absent = [m.cell for m in cells if not m.num_ttfts]
    if not absent:
        fewest, most = min(m.num_ttfts for m in cells), max(m.num_answers for m in cells)
        return (
            f"TTFT is over the {fewest} of {most} answers that every cell timed: {reason} "
            "(`--prefill each` times every answer)."
        )
    listed = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
    return (
        f"No TTFT of {listed}: {reason}, so each timed other prompts (`--prefill each` times every answer)."
    )
