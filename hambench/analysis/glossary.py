"""Definitions of numbers in addition to a cell's metrics: counts, ratios, limits, identity, proxies, energy.

Metrics define themselves in :mod:`hambench.analysis.metrics`. ``hambench ls metrics`` prints both, and a test requires
a definition of every number in ``hambench run --json`` and ``hambench proxies --json``.
"""

from __future__ import annotations

from typing import NamedTuple

from hambench.analysis.metrics import METRICS, Better


class Definition(NamedTuple):
    """One row of ``hambench ls metrics``."""

    name: str
    unit: str
    better: Better | None
    """``None`` where neither direction is."""
    kind: str
    """The metric's class, or what a number is that is no metric: ``count``, ``paired``, ``limit``, ``proxy``, …"""
    text: str


DERIVED = (
    Definition("num_samples", "samples", None, "count", "Samples answered at least once."),
    Definition(
        "num_answers", "answers", None, "count", "Answers given, every repeat of a sample.",
    ),
    Definition(
        "num_ttfts", "answers", None, "count",
        "Answers that ttft_s and end_to_end_tps rest on. A prompt copied from another cell has no time, so where cells "
        "share prompts they are the few that every cell timed (`--prefill each` times all); 0 if there are none.",
    ),
    Definition(
        "num_thinking_tokens", "tokens", None, "count",
        "Tokens of the answers up to the end of the model's thinking; absent where its end is not known.",
    ),
    Definition(
        "machine_tps", "tokens/s", "higher", "speed",
        "Output tokens per second that the machine was busy, prefills included: Σ tokens / Σ seconds of all steps. A "
        "prompt that was copied from another cell counts at the seconds per token of the prompts that this cell timed; "
        "absent if it timed none. In a batch a step counts its part of the rounds.",
    ),
    Definition(
        "price_per_hour", "dollars/hour", None, "count", "The machine's price, as the run was told; absent otherwise."
    ),
    Definition(
        "dollars_per_million_tokens", "dollars", "lower", "limit",
        "Price per hour / 3600 / machine_tps × 10^6; absent without a price.",
    ),
    Definition("num_errors", "samples", "lower", "count", "Samples with a failed record: prompt too long, no memory."),
    Definition("num_score_errors", "samples", "lower", "count", "Samples that were answered but whose scorer failed."),
    Definition("num_truncated", "samples", None, "count", "Samples whose prompt was cut by the suite's own rule."),
    Definition(
        "tokens_per_step_histogram", "steps", None, "count", "How many decode steps kept 1, 2, 3, … tokens."
    ),
    Definition(
        "acceptance_conditional", "share", "higher", "count",
        "By place i of a draft: rounds with at least i accepted tokens / rounds that drafted i and accepted i − 1. "
        "Where an answer ended inside the accepted tokens, the later places of that round are not counted.",
    ),
    Definition(
        "acceptance_joint", "share", "higher", "count",
        "By place i of a draft: rounds with at least i accepted tokens / rounds that drafted i.",
    ),
    Definition(
        "drafted_histogram", "steps", None, "count", "How many decode steps drafted 0, 1, 2, … tokens."
    ),
    Definition(
        "draft_cost", "vanilla steps", "lower", "limit",
        "δ: seconds of a draft forward over those of a vanilla step of the same sample; 0 without a draft model. Where "
        "a run's steps don't tell drafting apart, it is what the verification of so many rows leaves of them.",
    ),
    Definition(
        "verify_cost", "vanilla steps", "lower", "limit",
        "v(r): seconds of one verification over r rows over those of a vanilla step of the same sample, by r, where "
        "at least five steps had so many rows. From the cell's own steps; where they don't tell it, from one other "
        "lossless cell's under the same conditions.",
    ),
    Definition(
        "draft_best_speedup", "× vanilla", "higher", "limit",
        "Greatest S(k) = E / (v(k + 1) + k δ) over k from 1 to draft_most_k, E = 1 + a1 + a1 a2 + … from the "
        "acceptance by place; rounds that find nothing to draft count as vanilla steps. An estimate, not a bound.",
    ),
    Definition("draft_best_k", "tokens", None, "limit", "The k of draft_best_speedup."),
    Definition(
        "draft_most_k", "tokens", None, "limit",
        "Longest draft that is asked about: ten rounds tried each of its places, and so many rows were verified.",
    ),
    Definition(
        "draft_limit", "words", None, "limit",
        "Which of the two limits a setting, acceptance or the cost of drafts: what would gain more if it were ideal.",
    ),
    Definition(
        "other_load", "share", "lower", "machine",
        "Share of the machine's CPU time that other processes took while answers were made; mean over answers. Above "
        "0.1 a timing is taken again, at most twice.",
    ),
    Definition(
        "cold_start_s", "s", "lower", "start",
        "A method's own warm-up (compiling, capturing graphs) and its first pass; in no other number.",
    ),
    Definition(
        "warmup_settled", "yes or no", None, "start",
        "Whether three passes in a row agreed within 2 % before the first sample; six passes at most.",
    ),
    Definition(
        "extra_weight_bytes", "bytes", "lower", "start",
        "Weights that a method adds to the target's: a draft, grafted layers.",
    ),
    Definition(
        "pays_from_tokens", "tokens", "lower", "start",
        "Length of an answer from which the method's smaller cache has saved its extra weights; absent where it "
        "never does.",
    ),
    Definition(
        "tps_ratio", "× baseline", "higher", "paired",
        "Decode tokens/s over that of vanilla under the same conditions: a ratio of sums over the answers that both "
        "gave and that have a token after their first step, wherever it is printed, stored or tracked.",
    ),
    Definition(
        "tps_ratio_low", "× baseline", "higher", "paired",
        "Lower end of the 95 % interval of tps_ratio: paired by sample, from the jackknife of its logarithm, made "
        "wider where few answers outweigh the others or where they are skewed.",
    ),
    Definition("tps_ratio_high", "× baseline", "higher", "paired", "Upper end of the same interval."),
    Definition(
        "accuracy_delta", "points", "higher", "paired",
        "Accuracy less the baseline's over the same samples, mean over tasks, with the interval of the paired "
        "difference. What only one side failed to answer counts as 0 points for it; what both failed, or a scorer "
        "failed on, is left out.",
    ),
    Definition(
        "regret_delta", "nats/token", "lower", "paired",
        "Regret per token less the baseline's over the same samples, a difference of ratios of sums with its interval "
        "and verdict: the jackknife's, one unseen token of 3 nats added; sign flips must agree.",
    ),
    Definition(
        "num_repetitive", "answers", "lower", "count",
        "Answers of which fewer than half of the 4-grams are distinct.",
    ),
    Definition(
        "minimum_detectable_effect", "as its metric", "lower", "paired",
        "Smallest true effect that these samples would show, 80 times in 100.",
    ),
    Definition(
        "predicted_tps", "tokens/s", None, "limit",
        "Tokens/s if reading the weights and cache of the counted forwards took all the time, at the best read "
        "bandwidth that the run's probes measured.",
    ),
    Definition(
        "mbu", "ratio", "higher", "limit",
        "Model bandwidth utilisation: measured tps / predicted tps. Outside 0.5 to 1.02 mbu_flag names the likely "
        "reason.",
    ),
    Definition(
        "identity.num_samples", "answers", None, "identity", "Answers that the cell and its baseline both have."
    ),
    Definition(
        "identity.num_identical", "answers", "higher", "identity",
        "Answers equal to the baseline's token by token (`same` in the table).",
    ),
    Definition(
        "identity.first_difference", "token index", "higher", "identity",
        "Smallest index, counted from 0, at which an answer leaves the baseline's.",
    ),
    Definition(
        "identity.share_before", "share", "higher", "identity",
        "Tokens before the first difference, over all tokens of the baseline's answers.",
    ),
    Definition("num_judged", "answers", None, "count", "Answers that the target has judged (`--no-fidelity`: none)."),
    Definition(
        "median_top_two_gap", "logits", "lower", "proxy",
        "Gap between the target's two best logits where an answer first leaves the baseline's; near 0, rounding "
        "decided. Median over answers.",
    ),
    Definition(
        "joules_per_token", "J/token", "lower", "energy",
        "The GPU's own energy counter over a window of at least 10 s of repeated answers (`hambench bench energy`); "
        "not available without a counter, never modelled.",
    ),
    Definition(
        "net_joules_per_token", "J/token", "lower", "energy", "The same less what the GPU draws when idle."
    ),
)  # fmt: skip
"""Every number that is shown and is no metric."""


def definitions() -> tuple[Definition, ...]:
    """Returns metrics in order, then derived and separately measured numbers."""
    metrics = (
        Definition(info.name, info.unit, info.better, info.metric_class, info.definition)
        for info in METRICS.values()
    )
    return (*metrics, *DERIVED)
