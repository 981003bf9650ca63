"""Fidelity of two arms compared: regret per token, paired by sample; and speeds that only fidelity makes comparable."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from hambench.analysis.arms import Arm, Overlap, count, paired_traces
from hambench.analysis.statistics.intervals import CONFIDENCE, largest_unseen_rate
from hambench.analysis.statistics.ratio_difference import MIN_DIFFERING, ratio_difference
from hambench.analysis.verdicts import Margins, Sampled, join_reasons, verdict_of
from hambench.records import Comparison, Estimate, Sample

UNSEEN_REGRET = 3.0
"""Nats of the one token that is added to what was seen: what a token costs that the target would not have taken. In a
run of the README's command those of more than half a nat cost 3.6 in the mean."""

Cluster = Callable[[Sample], tuple[str, ...]]


def compare_regret(
    a: Arm, b: Arm, overlap: Overlap, group: str, margins: Margins, cluster_of: Cluster
) -> Comparison | None:
    """Regret per token of one arm less that of the other; ``None`` where no answer of both was judged.

    Args:
        a: The arm that is judged.
        b: The arm that it is judged against.
        overlap: What they have in common over a group.
        group: The group's name.
        margins: Smallest effects worth a word.
        cluster_of: What a sample belongs together with.
    """
    keys = [key for key in a.judged if key in b.judged and key[0] in overlap.asked]
    if not keys:
        return None
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
    pairs = paired_traces(a, b, {sample_id for sample_id, _ in keys})
    num_equal = sum(mine.token_ids == other.token_ids for _, mine, other in pairs)
    equal = f"{num_equal} of {count(pairs, 'answer')} equal token by token"
    if by_design and num_equal == len(pairs):
        verdict, reason = "equivalent", ""
    if by_design:
        reason = join_reasons(f"lossless by design, {equal}", reason)
    elif num_equal == len(pairs):
        share = largest_unseen_rate(result.num_blocks)
        reason = f"{equal}: at most {share:.0%} of answers differ"
        if verdict == "inconclusive":
            needed = math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-margins.regret))
            reason += f"; {needed} equal ones would show that fidelity holds"
    elif result.low is None and 0 < result.num_informative < MIN_DIFFERING:
        reason = f"{result.num_informative} of {result.num_blocks} samples differ: too few to say by how much"
    return Comparison(
        candidate=a.cell,
        baseline=b.cell,
        group=group,
        metric="regret",
        effect=Estimate(value=result.effect, low=result.low, high=result.high, n=result.num_blocks),
        verdict="not comparable" if overlap.refused else verdict,
        p_value=result.p_value,
        minimum_detectable_effect=result.minimum_detectable_effect(margins.regret),
        standard_error=result.standard_error,
        degrees_of_freedom=result.degrees_of_freedom or None,
        num_equal=num_equal,
        num_answers=len(pairs),
        reason=overlap.refused or reason,
    )


def unread_text(a: Arm, b: Arm, fidelity: Comparison | None) -> str:
    """Why rates of two arms are not comparable in a speed-only run; empty if they are.

    Where nothing is scored, a method that chooses its own text could be as fast as it likes: it is compared only where
    its text was shown to be as good as the baseline's to the target.
    """
    lossy = [arm for arm in (a, b) if not arm.lossless]
    if not (a.is_speed_only or b.is_speed_only) or not lossy:
        return ""
    if fidelity is not None and fidelity.num_equal == fidelity.num_answers:
        return ""
    if fidelity is not None and fidelity.verdict in ("equivalent", "better"):
        return ""
    names = " and ".join(arm.cell for arm in lossy)
    shown = "and the target was not asked about it"
    if fidelity is not None and fidelity.effect is not None:
        value = fidelity.effect.value
        shown = f"and the target gives up {value:.2f} nats more per token by it than by {b.cell}'s"
    return f"{names} chose text of its own, which nothing scored, {shown}"
