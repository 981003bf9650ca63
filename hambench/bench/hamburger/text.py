"""The judgement of HAMburger weights as the command shows it: lines for a terminal, and JSON."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from hambench.methods.hamburger.judging.reliability import markdown_table

if TYPE_CHECKING:
    from hambench.bench.hamburger.weights import WeightsJudgement
    from hambench.records import Estimate


def as_json(judged: WeightsJudgement) -> dict[str, Any]:
    """Returns everything in the form of JSON."""
    return {**dataclasses.asdict(judged), "confidences": [each.confidence for each in judged.free_running]}


def lines_of(judged: WeightsJudgement) -> list[str]:
    """Returns what the command prints."""
    lines = [
        f"{judged.model}, weights {judged.weights} ({judged.weights_sha256[:12]}), {judged.kernels} kernels: "
        f"{judged.answers} answers of {judged.answers_from}, {judged.tokens:,} tokens",
        f"the base chooses {judged.base_again:.1%} of these tokens again; brackets hold 95 % intervals over answers",
        "",
        "along the answers, each mistake corrected",
        _ALONG.format("confidence", "m", "equal to the base's", "micro", "next token after merged", "ECE"),
    ]
    for each in judged.along:
        lines.append(
            _ALONG.format(
                f"{each.confidence:g}",
                spread(each.m, 2),
                spread(each.same),
                number(each.grafted),
                spread(each.next_token),
                "–" if each.reliability is None else number(each.reliability.ece),
            )
        )
    at = "   ".join(f"{spread(share)} at m = {m}" for m, share in judged.next_token_at_m.items())
    places = "   ".join(f"{place}: {spread(share)}" for place, share in judged.token_accuracy.items())
    lines += [
        f"next token after merged slots equals the base's: {at}",
        "",
        f"right tokens of a macro-step by place (teacher forced, unmerged features): {places}",
        "",
        f"free-running answers to the same {judged.answers} prompts",
        _FREE.format("confidence", "m", "regret, nats per token", "agreement", "repetitive"),
    ]
    for free in judged.free_running:
        lines.append(
            _FREE.format(
                f"{free.confidence:g}",
                spread(free.m, 2),
                spread(free.regret),
                number(free.agreement),
                f"{free.repetitive} of {free.answers}",
            )
        )
    if judged.reliability is not None:
        lines += [
            "",
            f"the stop head along the answers at confidence {judged.reliability_confidence:g}",
            *markdown_table(judged.reliability),
        ]
    return lines


_ALONG = "{:>10}  {:>18}  {:>22}  {:>6}  {:>23}  {:>6}"
_FREE = "{:>10}  {:>18}  {:>23}  {:>9}  {:>10}"


def number(value: float | None, digits: int = 3) -> str:
    """Returns a number with so many digits after the point, or a dash for ``None``."""
    return "–" if value is None else f"{value:.{digits}f}"


def spread(value: Estimate | None, digits: int = 3) -> str:
    """Returns an estimate with its interval, if it has one."""
    if value is None or value.low is None or value.high is None:
        return number(None if value is None else value.value, digits)
    return f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"
