"""Money per token, from the price of an hour of the machine."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from hambench.analysis.metrics import machine_s
from hambench.errors import HambenchError
from hambench.records import GenerationTrace


def parse_price(text: str) -> float:
    """Dollars per hour from ``2.50/h``, ``$2.50/h`` or ``0.04/min``.

    Raises:
        HambenchError: For anything else.
    """
    match = re.fullmatch(r"\$?(\d+(?:\.\d+)?)\s*/\s*(h|hour|min|s)", text.strip())
    price = float(match[1]) * {"h": 1, "hour": 1, "min": 60, "s": 3600}[match[2]] if match else 0.0
    if not price > 0 or not math.isfinite(price):
        raise HambenchError(f"--price is what the machine costs per hour, like 2.50/h, got {text!r}")
    return price


def dollars_per_million(tokens_per_second: float | None, price_per_hour: float | None) -> float | None:
    """Dollars per million output tokens at a rate; ``None`` without a rate or a price.

    price per hour / 3600 / tokens per second * 10^6. The rate must be that of all the machine does, prefills included.
    """
    if tokens_per_second is None or price_per_hour is None or not tokens_per_second > 0:
        return None
    return price_per_hour / 3600 / tokens_per_second * 1e6


def machine_tps(traces: Sequence[GenerationTrace]) -> float | None:
    """Output tokens per second that the machine was busy, prefills included: Σ tokens / Σ seconds of all steps.

    In a batch a step counts its part of the rounds. A prefill that was not timed, because another cell read the prompt,
    counts at the speed of those that were; ``None`` if none was.
    """
    first = [(trace.prompt_tokens, machine_s(trace.steps[0])) for trace in traces if trace.steps]
    timed = [(tokens, seconds) for tokens, seconds in first if seconds is not None]
    if not timed or sum(tokens for tokens, _ in timed) == 0:
        return None
    per_token = sum(seconds for _, seconds in timed) / sum(tokens for tokens, _ in timed)
    prefills = sum(tokens * per_token if seconds is None else seconds for tokens, seconds in first)
    decoding = sum(machine_s(step) or 0.0 for trace in traces for step in trace.steps[1:])
    seconds = prefills + decoding
    return sum(len(trace.token_ids) for trace in traces) / seconds if seconds > 0 else None
