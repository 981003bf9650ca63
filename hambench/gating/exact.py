"""Compares deterministic counts with ==: token ids, forwards, accepted tokens, KV slots and bytes.

Counts have no noise, so one measurement on any machine decides. They are the hard gate of a runner without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hambench.analysis import metrics
from hambench.analysis.metrics import METRICS, Better
from hambench.errors import count
from hambench.gating.checks import Check, Verdict
from hambench.records import Estimate, GenerationTrace

TOKEN_IDS = "token_ids"
KV_BYTE_STEPS = "kv_byte_steps"
"""Σ over steps of the bytes in use, which changes if any step uses one byte more."""

_FROM_REGISTRY = (
    "num_tokens",
    "num_decode_steps",
    "num_target_forwards",
    "num_draft_forwards",
    "num_micro_forwards",
    "num_drafted",
    "num_accepted",
    "num_kv_slots",
    "kv_bytes",
)
COUNTS = (*_FROM_REGISTRY, KV_BYTE_STEPS)

Key = tuple[str, int]
"""Sample id and repeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The counts of one cell's answer to one sample."""

    sample_id: str
    prompt_hash: str
    token_ids: tuple[int, ...]
    counts: dict[str, int]
    repeat: int = 0

    @property
    def key(self) -> Key:
        """Returns the key that pairs this answer with the other side's."""
        return (self.sample_id, self.repeat)


def answer_of(trace: GenerationTrace, *, sample_id: str, prompt_hash: str, repeat: int = 0) -> Answer:
    """Returns the counts of a trace."""
    counts: dict[str, int] = {}
    for name in _FROM_REGISTRY:
        metric: Callable[[Sequence[GenerationTrace]], float | None] = getattr(metrics, name)
        value = metric([trace])
        # a method that doesn't report KV usage has no count, which differs from a count of zero
        if value is not None:
            counts[name] = int(value)
    kv_bytes = [step.kv_bytes for step in trace.steps if step.kv_bytes is not None]
    if len(kv_bytes) == len(trace.steps):
        counts[KV_BYTE_STEPS] = sum(kv_bytes)
    return Answer(
        sample_id=sample_id,
        prompt_hash=prompt_hash,
        token_ids=trace.token_ids,
        counts=counts,
        repeat=repeat,
    )


def compare_answers(
    cell: str,
    base: Sequence[Answer],
    head: Sequence[Answer],
    *,
    same_numerics: bool = True,
    regenerate: str = "",
) -> list[Check]:
    """Compares every count of one cell, base and head.

    Args:
        cell: Label of the cell.
        base: Answers of the base.
        head: Answers of the head.
        same_numerics: Whether equal code must give equal token ids. If not, different ids prove nothing, and only
            answers with identical tokens are compared.
        regenerate: The way to accept the head as the new baseline, for the check's reason.
    """
    theirs, ours = {a.key: a for a in base}, {a.key: a for a in head}
    refused = _unpaired(theirs, ours)
    if refused:
        return [_refused(cell, metric, refused) for metric in (TOKEN_IDS, *COUNTS)]
    keys = list(theirs)
    differing = [key for key in keys if theirs[key].token_ids != ours[key].token_ids]
    checks = [_compare_ids(cell, theirs, ours, differing, same_numerics, regenerate)]
    compared = keys if same_numerics else [key for key in keys if key not in set(differing)]
    if not compared:
        reason = "no answer is equal token by token, and the ids need not agree between these two"
        return checks + [_refused(cell, metric, reason) for metric in COUNTS]
    for metric in COUNTS:
        known = [{key for key in compared if metric in side[key].counts} for side in (theirs, ours)]
        if not known[0] and not known[1]:
            continue
        if known[0] != known[1]:
            lacks = "base" if len(known[0]) < len(known[1]) else "head"
            checks.append(_refused(cell, metric, f"the {lacks} lacks this count"))
            continue
        compared_here = [key for key in compared if key in known[0]]
        pairs = [(key, theirs[key].counts[metric], ours[key].counts[metric]) for key in compared_here]
        checks.append(_compare_counts(cell, metric, pairs))
    return checks


def _unpaired(base: Mapping[Key, Answer], head: Mapping[Key, Answer]) -> str:
    if not base or not head:
        sides = [name for name, answers in (("base", base), ("head", head)) if not answers]
        return f"no answer in the {' and the '.join(sides)}"
    missing = [key for key in base if key not in head]
    if missing:
        return f"{count(len(missing), 'answer')} of the base missing in the head, e.g. {missing[0][0]}"
    added = [key for key in head if key not in base]
    if added:
        return f"{count(len(added), 'answer')} of the head missing in the base, e.g. {added[0][0]}"
    asked = [key for key in base if base[key].prompt_hash != head[key].prompt_hash]
    if asked:
        return f"{count(len(asked), 'prompt')} differ, e.g. {asked[0][0]}"
    return ""


def _compare_ids(
    cell: str,
    base: Mapping[Key, Answer],
    head: Mapping[Key, Answer],
    differing: Sequence[Key],
    same_numerics: bool,
    regenerate: str,
) -> Check:
    verdict: Verdict = "equivalent"
    reason = f"{count(len(base), 'answer')} equal token by token"
    if differing:
        key = differing[0]
        ours, theirs = head[key].token_ids, base[key].token_ids
        first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
        where = min(len(ours), len(theirs)) if first is None else first
        reason = f"{len(differing)} of {count(len(base), 'answer')} differ, {key[0]} from token {where} on"
        verdict = "regressed" if same_numerics else "inconclusive"
        if same_numerics and regenerate:
            reason += f"; if this is meant: {regenerate}"
        if not same_numerics:
            reason += "; ids need not agree between these two"
    same = len(base) - len(differing)
    return Check(
        cell=cell,
        metric=TOKEN_IDS,
        metric_class="exact",
        unit="equal answers",
        base=float(len(base)),
        head=float(same),
        effect=Estimate(value=same / len(base), n=len(base)),
        threshold=0.0,
        verdict=verdict,
        reason=reason,
    )


def _compare_counts(cell: str, metric: str, pairs: Sequence[tuple[Key, int, int]]) -> Check:
    better = _better(metric)
    base, head = sum(b for _, b, _ in pairs), sum(h for _, _, h in pairs)
    changed = [(key, b, h) for key, b, h in pairs if b != h]
    verdict: Verdict = "equivalent"
    reason = ""
    if changed:
        worse = [1 for _, b, h in changed if (h < b) == (better == "higher")]
        # an answer that improved must not hide one that got worse
        verdict = "regressed" if worse else "improved"
        key, b, h = changed[0]
        reason = f"{len(changed)} of {count(len(pairs), 'answer')} changed, e.g. {key[0]}: {b} → {h}"
    return Check(
        cell=cell,
        metric=metric,
        metric_class="exact",
        better=better,
        unit=METRICS[metric].unit if metric in METRICS else "bytes · steps",
        base=float(base),
        head=float(head),
        # a base of zero has no ratio, but the verdict doesn't need one
        effect=Estimate(value=head / base, n=len(pairs)) if base else None,
        threshold=0.0,
        verdict=verdict,
        reason=reason,
    )


def _refused(cell: str, metric: str, reason: str) -> Check:
    return Check(
        cell=cell,
        metric=metric,
        metric_class="exact",
        better=_better(metric),
        verdict="not comparable",
        reason=reason,
    )


def _better(metric: str) -> Better:
    if metric in METRICS:
        return METRICS[metric].better
    return "higher" if metric == TOKEN_IDS else "lower"
