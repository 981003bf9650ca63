"""Load test: sends the same questions from 1, 2, 4, … users at once, and times them at the client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hambench.analysis.metrics import percentile
from hambench.errors import HambenchError
from hambench.serving.client import EndpointClient
from hambench.serving.counters import SpeculationCounters, read_counters
from hambench.serving.dialect import Dialect

QUESTIONS = (
    "Explain in a few sentences why the sky is blue.",
    "Write a Python function that merges two sorted lists, with a docstring.",
    "Translate to French: The train to the coast leaves at a quarter past nine every morning.",
    "A shop sells pens at 3 for 2 euros. What do 21 pens cost? Think step by step.",
    "List ten animals that live in rivers, one per line.",
    "Rewrite this sentence three times in other words: The meeting was moved to Friday.",
)
"""Prose, code, translation, arithmetic, lists and repetition, because acceptance depends on the kind of text."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One request as its user experienced it."""

    ttft_s: float | None = None
    gaps_s: tuple[float, ...] = ()
    """Seconds between pieces after the first."""
    num_tokens: int = 0
    counted_by_server: bool = False
    """True if the token count is the server's own; otherwise every piece counts as one."""
    seconds: float = 0.0
    error: str | None = None

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first, from the first piece on."""
        return sum(self.gaps_s) / (self.num_tokens - 1) if self.num_tokens > 1 and self.gaps_s else None


@dataclass(frozen=True, kw_only=True)
class Level:
    """Figures of one level of load: so many users at once."""

    concurrency: int
    num_requests: int
    num_errors: int
    first_error: str | None
    ttft_p50_s: float | None
    ttft_p90_s: float | None
    tpot_p50_s: float | None
    tpot_p90_s: float | None
    burst_p50_s: float | None
    burst_p99_s: float | None
    user_tps_p50: float | None
    """Tokens per second that the median user sees: 1 / TPOT."""
    total_tps: float | None
    """Tokens of all users per wall second."""
    acceptance_rate: float | None
    """Rate from the server's own counters over this level; it includes everyone the server served meanwhile."""
    mean_acceptance_length: float | None
    approximate: bool
    """True if some answers had no count, so that pieces were counted as tokens."""
    num_retried: int


def measure_level(
    make_client: Callable[[], EndpointClient],
    *,
    model: str,
    concurrency: int,
    num_requests: int,
    max_tokens: int,
    chat: bool,
    questions: Sequence[str] = QUESTIONS,
    dialect: Dialect | None = None,
) -> Level:
    """Sends ``num_requests`` requests from ``concurrency`` users, each of whom asks again as soon as it has its answer.

    Args:
        make_client: Returns a new client for a user.
        model: Name of the model on the server.
        concurrency: Number of users.
        num_requests: Number of requests of all users together.
        max_tokens: Maximum tokens per answer.
        chat: Send the questions as chat messages.
        questions: Questions to ask in turn.
        dialect: Dialect of the server, if already known.
    """
    dialect = dialect or Dialect()
    if concurrency < 1 or num_requests < 1:
        raise HambenchError(f"concurrency and requests must be >= 1, got {concurrency} and {num_requests}")
    clients = [make_client() for _ in range(concurrency)]
    request_numbers = iter(range(num_requests))
    lock = threading.Lock()
    answers: list[Answer] = []

    def user(client: EndpointClient) -> None:
        while True:
            with lock:
                index = next(request_numbers, None)
            if index is None:
                return
            body = _body(model, questions[index % len(questions)], max_tokens, chat=chat)
            path = "/v1/chat/completions" if chat else "/v1/completions"
            answer = ask(client, path, body, dialect)
            with lock:
                answers.append(answer)

    before = read_counters(clients[0].metrics_text())
    threads = [threading.Thread(target=user, args=(client,)) for client in clients]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    after = read_counters(clients[0].metrics_text())
    num_retried = sum(client.num_retried for client in clients)
    for client in clients:
        client.close()
    counters = after.since(before) if before is not None and after is not None else None
    return _summary(answers, concurrency, seconds, counters, num_retried)


def ask(client: EndpointClient, path: str, body: Mapping[str, Any], dialect: Dialect | None = None) -> Answer:
    """Sends one request and times its pieces from the last attempt on; stores a failure as the answer's error."""
    began = last = time.perf_counter()

    def restart() -> None:
        nonlocal began, last
        began = last = time.perf_counter()

    first: float | None = None
    gaps: list[float] = []
    num_pieces, counted = 0, None
    try:
        for chunk in (dialect or Dialect()).ask(client, path, body, before_sending=restart):
            now = chunk.arrived
            if chunk.usage:
                counted = chunk.usage["completion_tokens"]
            if not (chunk.text or chunk.reasoning):
                continue
            num_pieces += 1
            if first is None:
                first = now - began
            else:
                gaps.append(now - last)
            last = now
    except HambenchError as error:
        return Answer(error=str(error))
    return Answer(
        ttft_s=first,
        gaps_s=tuple(gaps),
        num_tokens=num_pieces if counted is None else counted,
        counted_by_server=counted is not None,
        seconds=last - began,
    )


def _summary(
    answers: Sequence[Answer],
    concurrency: int,
    seconds: float,
    counters: SpeculationCounters | None,
    num_retried: int,
) -> Level:
    good = [answer for answer in answers if answer.error is None]
    ttfts = [answer.ttft_s for answer in good if answer.ttft_s is not None]
    tpots = [answer.tpot_s for answer in good if answer.tpot_s is not None]
    gaps = [gap for answer in good for gap in answer.gaps_s]
    num_tokens = sum(answer.num_tokens for answer in good)
    return Level(
        concurrency=concurrency,
        num_requests=len(answers),
        num_errors=len(answers) - len(good),
        first_error=next((answer.error for answer in answers if answer.error is not None), None),
        ttft_p50_s=percentile(ttfts, 50),
        ttft_p90_s=percentile(ttfts, 90),
        tpot_p50_s=percentile(tpots, 50),
        tpot_p90_s=percentile(tpots, 90),
        burst_p50_s=percentile(gaps, 50),
        burst_p99_s=percentile(gaps, 99),
        user_tps_p50=percentile([1 / tpot for tpot in tpots if tpot > 0], 50),
        total_tps=num_tokens / seconds if good and seconds > 0 else None,
        acceptance_rate=counters.acceptance_rate if counters else None,
        mean_acceptance_length=counters.mean_acceptance_length if counters else None,
        approximate=any(not answer.counted_by_server for answer in good),
        num_retried=num_retried,
    )


def _body(model: str, question: str, max_tokens: int, *, chat: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream_options": {"include_usage": True},
    }
    return body | ({"messages": [{"role": "user", "content": question}]} if chat else {"prompt": question})
