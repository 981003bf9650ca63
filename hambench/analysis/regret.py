"""Compares the fidelity of two arms (regret per token, paired by sample), on which speed-only runs depend."""

from __future__ import annotations

import numpy as np

from hambench.analysis.arms import Arm, Overlap, cluster_of, paired_traces
from hambench.analysis.statistics.forecast import MOST_NAMED
from hambench.analysis.statistics.intervals import largest_unseen_rate
from hambench.analysis.statistics.ratio_difference import (
    MIN_DIFFERING,
    equal_blocks_needed,
    ratio_difference,
)
from hambench.analysis.verdicts import Margins, Sampled, join_reasons, verdict_of
from hambench.errors import count
from hambench.records import Comparison, Estimate

UNSEEN_REGRET = 3.0
"""Nats of the one token that is added to what was seen: what a token costs that the target would not have taken. In a
run of the README's command those of more than half a nat cost 3.6 in the mean."""


def compare_regret(a: Arm, b: Arm, overlap: Overlap, group: str, margins: Margins) -> Comparison | None:
    """Returns the difference of two arms' regret per token; ``None`` if no common answer was judged.

    Args:
        a: The arm to judge.
        b: The arm to compare it with.
        overlap: Their common answers over a group.
        group: The group's name.
        margins: Smallest effects to report.
    """
    pairs = paired_traces(a, b, overlap.asked)
    if not any(key in a.judged or key in b.judged for key, *_ in pairs):
        return None
    keys = [key for key, *_ in pairs if key in a.judged and key in b.judged]
    unread = [
        key
        for key, mine, other in pairs
        if (key not in a.judged or key not in b.judged) and (mine.token_ids or other.token_ids)
    ]
    num_equal = sum(mine.token_ids == other.token_ids for _, mine, other in pairs)
    left_out = f"{len(unread)} of {count(len(pairs), 'answer')} not judged on both sides" if unread else ""
    refused = overlap.refused
    # who writes what the target can't read must not be judged by the rest
    if len({sample_id for sample_id, _ in unread}) > overlap.most_one_sided * len(overlap.asked):
        refused = refused or left_out
    if not keys:
        return Comparison(
            candidate=a.cell,
            baseline=b.cell,
            group=group,
            metric="regret",
            effect=None,
            verdict="not comparable",
            num_left_out=len(unread),
            num_equal=num_equal,
            num_answers=len(pairs),
            reason=overlap.refused or f"no answer has the target's judgement in both: {left_out}",
        )
    names = dict.fromkeys(cluster_of(overlap.asked[sample_id]) for sample_id, _ in keys)
    blocks = {name: number for number, name in enumerate(names)}
    terms = np.zeros((4, len(blocks)))
    for key in keys:
        terms[:, blocks[cluster_of(overlap.asked[key[0]])]] += (*a.judged[key], *b.judged[key])
    by_design = a.lossless and b.lossless
    result = ratio_difference(
        (terms[0], terms[1]), (terms[2], terms[3]), unseen=UNSEEN_REGRET, few_may_differ=by_design
    )
    num_tasks = len({(overlap.asked[sid].suite, overlap.asked[sid].task) for sid, _ in keys})
    verdict, reason = verdict_of(
        result, margin=margins.regret, better="lower", sampled=Sampled(groups=num_tasks)
    )
    equal = f"{num_equal} of {count(len(pairs), 'answer')} equal token by token"
    if by_design and num_equal == len(pairs):
        verdict, reason = "equivalent", ""
    if by_design:
        reason = join_reasons(design_words(equal, verdict == "equivalent"), reason)
    elif num_equal == len(pairs):
        share = largest_unseen_rate(result.num_blocks)
        reason = f"{equal}: at most {share:.0%} of answers differ"
        if verdict == "inconclusive":
            needed = equal_blocks_needed(
                (terms[1], terms[3]), unseen=UNSEEN_REGRET, margin=margins.regret, most=MOST_NAMED
            )
            reason += f"; {needed:,} equal ones would show that fidelity holds" if needed else ""
    elif not by_design and 0 < result.num_informative < MIN_DIFFERING and verdict == "inconclusive":
        differ = f"{result.num_informative} of {result.num_blocks} samples differ in regret"
        reason = f"{differ}: too few to know their spread, so the interval is a bound"
    return Comparison(
        candidate=a.cell,
        baseline=b.cell,
        group=group,
        metric="regret",
        effect=Estimate(value=result.effect, low=result.low, high=result.high, n=result.num_blocks),
        verdict="not comparable" if refused else verdict,
        p_value=result.p_value,
        minimum_detectable_effect=result.minimum_detectable_effect(margins.regret),
        standard_error=result.standard_error,
        degrees_of_freedom=result.degrees_of_freedom or None,
        num_left_out=len(unread),
        num_equal=num_equal,
        num_answers=len(pairs),
        reason=refused or join_reasons(reason, f"{left_out}: left out" if left_out else ""),
    )


def design_words(equal: str, borne_out: bool) -> str:
    """Describes how many answers of a lossless method equal its baseline's, and whether they confirm its design.

    Args:
        equal: Description of the equal answers.
        borne_out: Whether all are equal, or the others were shown to cost no regret.
    """
    return f"lossless by design, {equal}" if borne_out else f"meant to be lossless, {equal}"


def unread_text(a: Arm, b: Arm, fidelity: Comparison | None) -> str:
    """Returns why rates of two arms are not comparable in a speed-only run; empty if they are.

    Without scores, a method that chooses its own text could be arbitrarily fast, so it is compared only if the target
    was shown to rate its text as high as the baseline's. A lossless method is compared unless its text was shown to be
    worse or can't be read.
    """
    if not (a.is_speed_only or b.is_speed_only):
        return ""
    lossy = [arm.cell for arm in (a, b) if not arm.lossless]
    if not lossy and (fidelity is None or fidelity.verdict not in ("worse", "not comparable")):
        return ""
    if fidelity is not None:
        if fidelity.num_equal == fidelity.num_answers:
            return ""
        if fidelity.verdict in ("equivalent", "better") and not fidelity.num_left_out:
            return ""
    shown = "and the target was not asked about it"
    if fidelity is not None and fidelity.num_left_out:
        left_out = f"{fidelity.num_left_out} of {fidelity.num_answers} answers"
        shown = f"and the target did not judge {left_out} on both sides"
    elif fidelity is not None and fidelity.effect is not None:
        value = fidelity.effect.value
        shown = f"and the target gives up {value:.2f} nats more per token by it than by {b.cell}'s"
    return f"{' and '.join(lossy or [a.cell])} chose text of its own, which nothing scored, {shown}"
