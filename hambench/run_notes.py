"""Notes of a run: facts that a reader needs before its numbers, each with a kind that reports act on."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

NoteKind = Literal[
    "simulated",
    "random_weights",
    "forced",
    "offline",
    "dequantised",
    "model",
    "partial",
    "cpu",
    "limits",
    "unscored",
    "missing",
    "left_out",
    "order",
    "other",
]
KINDS: tuple[NoteKind, ...] = get_args(NoteKind)
TITLES: dict[NoteKind, str] = {
    "simulated": "Simulated",
    "random_weights": "Random weights",
    "forced": "Forced",
    "offline": "Offline edition",
    "dequantised": "De-quantised model",
    "model": "Model",
    "partial": "Partial run",
    "cpu": "CPU",
    "limits": "Changed limits",
    "unscored": "Scoring",
    "missing": "Missing task",
    "left_out": "Left out",
    "order": "Order",
    "other": "Note",
}
"""Title of each kind above its text in a report."""
NOT_MEASURED: frozenset[NoteKind] = frozenset({"simulated", "random_weights", "forced"})
"""Kinds that make every number of a run unfit for a decision."""
WATERMARKED: frozenset[NoteKind] = NOT_MEASURED | {"offline", "dequantised", "partial", "cpu"}
"""Kinds that every figure names, so that a copied picture still says them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Note:
    """One note of a run."""

    kind: NoteKind
    text: str

    def __str__(self) -> str:
        """The text, for a terminal."""
        return self.text


def note_of_text(text: str) -> Note:
    """Returns the note that an earlier version of hambench stored as text alone; its kind is read off its words."""
    lowered = text.lower()
    signs: tuple[tuple[NoteKind, tuple[str, ...]], ...] = (
        ("simulated", ("simulat",)),
        ("random_weights", ("random weight", "toy weight")),
        ("forced", ("forced", "--force")),
        ("offline", ("offline",)),
        ("dequantised", ("quantis", "quantiz")),
        ("partial", ("partial run",)),
        ("cpu", ("measured on a cpu",)),
    )
    for kind, words in signs:
        if any(word in lowered for word in words):
            return Note(kind, text)
    return Note("other", text)
