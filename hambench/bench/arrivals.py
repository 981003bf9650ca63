"""When requests of a load test are sent, and what an answer must hold to count as good."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hambench.errors import HambenchError
from hambench.files import reason_of

KINDS = ("closed", "poisson", "constant", "trace")
_UNITS = {"s": 1.0, "ms": 1e-3}
_BOUNDS = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, slots=True)
class Slo:
    """Bounds on one answer, in seconds; ``None`` bounds nothing."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    def holds(self, ttft_s: float | None, tpot_s: float | None, seconds: float, *, num_tokens: int) -> bool:
        """Whether an answer was measured and keeps every bound.

        An answer without a piece has no times. One of a single token has no time per token to keep; several tokens that
        came in one piece have a time that nobody measured, which is no reason to count it as short.
        """
        if ttft_s is None:
            return False
        first = self.ttft is None or ttft_s <= self.ttft
        each = self.tpot is None or num_tokens == 1 or (tpot_s is not None and tpot_s <= self.tpot)
        return first and each and (self.e2e is None or seconds <= self.e2e)


def parse_slo(text: str) -> Slo:
    """Parses bounds such as ``ttft=1s,tpot=50ms``.

    Raises:
        HambenchError: For an unknown bound, a bound given twice, or a time without a unit.
    """
    bounds: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (each.strip() for each in part.partition("="))
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", value)
        if name not in _BOUNDS or match is None or name in bounds:
            raise HambenchError(
                f"--slo is a list of bounds on {', '.join(_BOUNDS)}, each once, like ttft=1s,tpot=50ms, "
                f"got {part.strip()!r}"
            )
        bounds[name] = float(match[1]) * _UNITS[match[2]]
        if not bounds[name] > 0:
            raise HambenchError(f"--slo: {name} must be > 0, got {value}")
    return Slo(**bounds)


def arrival_times(kind: str, rate: float, num_requests: int, *, seed: int = 0) -> list[float]:
    """Seconds from the start at which requests arrive, whatever has become of those before.

    Args:
        kind: ``poisson`` (independent users) or ``constant`` (evenly spaced).
        rate: Requests per second.
        num_requests: Number of times.
        seed: Of the Poisson process.

    Raises:
        HambenchError: If the rate is not above zero.
    """
    if not rate > 0 or not math.isfinite(rate):
        raise HambenchError(f"--rate must be > 0 requests per second, got {rate:g}")
    if kind == "constant":
        return [number / rate for number in range(num_requests)]
    draw = random.Random(seed)
    times, now = [], 0.0
    for _ in range(num_requests):
        times.append(now)
        now += draw.expovariate(rate)
    return times


def read_trace(path: Path) -> list[float]:
    """Reads arrival times: a line per request, either seconds or an object with ``timestamp`` in milliseconds.

    They are shifted to begin at zero.

    Raises:
        HambenchError: If the file can't be read, or a line holds no time or one before the last; it names the line.
    """
    times: list[float] = []
    for number, line in text_lines(path):
        time = _time(line)
        if time is None:
            raise HambenchError(
                f'{path}, line {number}: must be seconds, or an object like {{"timestamp": 1500}} in milliseconds, '
                f"got {line.strip()[:40]!r}"
            )
        if times and time < times[-1]:
            raise HambenchError(
                f"{path}, line {number}: arrives before the line above it; sort the file by time"
            )
        times.append(time)
    if not times:
        raise HambenchError(f"{path} holds no arrival times")
    return [time - times[0] for time in times]


def text_lines(path: Path) -> list[tuple[int, str]]:
    """Returns the lines of a text file that are not blank, with their numbers from 1.

    Raises:
        HambenchError: If the file can't be read, or is not UTF-8.
    """
    try:
        # not splitlines(): a text may hold U+2028 and other marks that it would cut at
        lines = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except OSError as error:
        raise HambenchError(f"can't read {path}: {reason_of(error)}") from error
    except UnicodeDecodeError as error:
        raise HambenchError(
            f"{path} is not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8"
        ) from error
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _time(line: str) -> float | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    scale = 1.0
    if isinstance(value, dict):
        value, scale = value.get("timestamp"), 1e-3
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        time = float(value) * scale
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return time if math.isfinite(time) else None


def peak_in_flight(spans: Sequence[tuple[float, float]]) -> int:
    """Most requests that were under way at once, from the begin and end of each."""
    changes = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most
