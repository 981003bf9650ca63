"""Judges a setting: whether it is faster, and whether its answers can replace the baseline's."""

from __future__ import annotations

from typing import Literal, assert_never

from hambench.records import Comparison
from hambench.registry import is_lossless
from hambench.reports.view import CellView, View

Standing = Literal["held", "by design", "open", "unscored", "left", "lost"]
"""What a run says about the answers of a setting: their accuracy held; the method is lossless by design and its answers
bear that out; it is open; nothing can be said, because there is no score or no fair comparison; they were shown to
leave the target (regret is *worse*); accuracy was lost."""

SAFE: tuple[Standing, ...] = ("held", "by design")
"""Standings with which a setting may be shipped."""

TIERS: dict[Standing, int] = {"held": 0, "by design": 0, "open": 1, "unscored": 2, "left": 3, "lost": 4}
"""Best first."""

EQUAL_BY_DESIGN = 0.5
"""Minimum share of a lossless method's answers that must equal the baseline's to trust its design."""


def accuracy_standing(view: View, cell: CellView) -> Standing:
    """What the run says about a setting's answers; *lost* and *left* for the verdict *worse* and for no other word."""
    accuracy, fidelity = view.compared(cell, "accuracy"), view.compared(cell, "regret")
    left: Standing | None = "left" if fidelity is not None and fidelity.verdict == "worse" else None
    if accuracy is None:
        return left or "unscored"
    match accuracy.verdict:
        case "worse":
            return "lost"
        case "better" | "equivalent":
            return left or "held"
        case "inconclusive":
            return left or ("by design" if is_by_design(view, cell, accuracy) else "open")
        case "not comparable":
            return left or ("by design" if is_by_design(view, cell, accuracy) else "unscored")
        case _:
            assert_never(accuracy.verdict)


def is_faster(view: View, cell: CellView) -> bool | None:
    """Returns whether a setting was shown to be faster than its baseline; ``None`` if that is open."""
    comparison = view.compared(cell, "tps")
    if comparison is None:
        return None
    match comparison.verdict:
        case "better":
            return True
        case "worse" | "equivalent":
            return False
        case "inconclusive" | "not comparable":
            return None
        case _:
            assert_never(comparison.verdict)


def is_by_design(view: View, cell: CellView, accuracy: Comparison) -> bool:
    """Returns whether a lossless method's answers confirm its design.

    If tokens differ, the target must have judged them, and they must not have cost regret.

    Args:
        view: The view.
        cell: The setting.
        accuracy: Comparison of its accuracy with its baseline's.
    """
    if not is_lossless(cell.cell) or not accuracy.num_answers or accuracy.num_equal is None:
        return False
    fidelity = view.compared(cell, "regret")
    all_equal = accuracy.num_equal == accuracy.num_answers
    if not all_equal and (fidelity is None or fidelity.verdict != "equivalent"):
        return False
    return accuracy.num_equal >= EQUAL_BY_DESIGN * accuracy.num_answers
