"""Method notes: the definition of every number, as ``hambench ls metrics`` prints it."""

from __future__ import annotations

from dataclasses import dataclass

from hambench.analysis.glossary import definitions


@dataclass(frozen=True, slots=True)
class Term:
    """A word of the report and what it means."""

    name: str
    definition: str
    unit: str = ""
    better: str = ""


VERDICTS = (
    Term(
        "▲ better, ▼ worse",
        "The 95 % interval of the paired effect excludes no effect, a permutation test agrees (p ≤ 0.05 after "
        "correcting for all settings, or all settings and tasks, that one could have picked from), the effect is at "
        "least the margin, and there are at least 6 samples. The margin is 3 % of speed on a GPU, 5 % on a CPU, 1 % of "
        "KV memory, 1.5 points of accuracy, 0.05 nats of regret per token.",
    ),
    Term("≈ equivalent", "The whole interval lies within the margin on both sides."),
    Term(
        "? inconclusive",
        "Neither. Real but small: there is an effect, and whether it reaches the margin is open. About N samples would "
        "tell: that many decide 4 times in 5 where there is no effect, or one of at least one and a half margins.",
    ),
    Term(
        "✕ not comparable",
        "Something that must agree differs, there is nothing to compare, or more than a fifth of the samples have an "
        "answer of one side only.",
    ),
    Term(
        "lossless by design",
        "The method is meant to follow the target's own distribution, and its answers bear that out: all are equal to "
        "the baseline's token by token, or the target gives up no more by the others than by the baseline's (regret "
        "equivalent) and at least half are equal. If nobody judged the others, it is only meant to be lossless. "
        "How many are equal stands beside it.",
    ),
    Term(
        "best of n settings",
        "The setting was chosen for being the fastest. Its interval is widened so that it covers whichever of the n is "
        "chosen (Bonferroni).",
    ),
)


def terms() -> list[Term]:
    """Returns every number that is shown, then the words of the verdicts."""
    numbers = [Term(entry.name, entry.text, entry.unit, entry.better or "") for entry in definitions()]
    return [*numbers, *VERDICTS]
