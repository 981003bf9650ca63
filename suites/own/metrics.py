"""Metrics that a row may name for its reference: LongBench's three through lm-eval, and three plain ones."""

from __future__ import annotations

from hambench.suites.own.patterns import is_found

METRICS = {
    "exact": "the answer is the reference; blanks around both don't count",
    "contains": "the reference stands in the answer",
    "regex": "the pattern is found in the answer",
    "rougeL": "ROUGE-L, as LongBench counts it",
    "qa_f1": "F1 of the words, as LongBench counts it",
    "code_sim": "edit similarity of the first line of code, as LongBench counts it",
}
"""Name → what it tells; 0 to 1 each, the best over several references."""


def value_of(metric: str, answer: str, references: tuple[str, ...]) -> float:
    """The metric of one answer, 0..1: the best over its references, at least one.

    Raises:
        PatternError: If a pattern is none, or takes too long on the answer.
        KeyError: For a metric that is none of :data:`METRICS`.
    """
    score = {
        "exact": _exact,
        "contains": _contains,
        "regex": _regex,
        "rougeL": _rouge_l,
        "qa_f1": _qa_f1,
        "code_sim": _code_sim,
    }[metric]
    return max(score(answer, reference) for reference in references)


def _exact(answer: str, reference: str) -> float:
    return float(answer.strip() == reference.strip())


def _contains(answer: str, reference: str) -> float:
    return float(reference in answer)


def _regex(answer: str, pattern: str) -> float:
    return float(is_found(pattern, answer))


def _rouge_l(answer: str, reference: str) -> float:
    from hambench.suites.harness.shims import longbench_metrics

    return float(longbench_metrics().rouge_score(answer.strip(), reference))


def _qa_f1(answer: str, reference: str) -> float:
    from hambench.suites.harness.shims import longbench_metrics

    return float(longbench_metrics().qa_f1_score(answer.strip(), reference))


def _code_sim(answer: str, reference: str) -> float:
    from hambench.suites.harness.longbench import code_similarity

    return code_similarity(answer, reference)
