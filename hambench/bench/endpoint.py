"""Load test of a server, timed at the client.

Closed loop: 1, 2, 4, … users, each of whom asks again as soon as it has its answer. Open loop: requests arrive at times
of their own, whatever has become of those before; a time to first token counts from the arrival, so that a request
that had to wait is not taken for a fast one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hambench.analysis.metrics import percentile
from hambench.bench.arrivals import Slo, peak_in_flight
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
    retried_s: float = 0.0
    """Seconds from its first attempt until the last one was sent, from which its other times count."""
    late_s: float = 0.0
    """Seconds from its arrival until the client sent it: a client that is late does not offer the load it names."""

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first, from the first piece on."""
        return sum(self.gaps_s) / (self.num_tokens - 1) if self.num_tokens > 1 and self.gaps_s else None


@dataclass(frozen=True, kw_only=True)
class Level:
    """Figures of one level of load: so many users at once, or so many requests per second."""

    concurrency: int
    """Users at once; in an open loop, the most requests that were under way."""
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
    arrivals: str = "closed"
    """``closed``, ``poisson``, ``constant`` or ``trace``."""
    offered_rps: float | None = None
    """Requests that arrived per second; ``None`` in a closed loop, which offers what the server takes."""
    requests_per_s: float | None = None
    """Answers per second."""
    goodput_rps: float | None = None
    """Answers per second that keep every bound of ``--slo``."""
    good_share: float | None = None
    """Share of all requests that keep every bound; one that failed or was not measured keeps none."""
    late_p99_s: float | None = None
    """99th percentile of the client's own delay in an open loop, from 299 requests on."""
    late_max_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The requests of a load test, and what its answers are held to."""

    model: str
    """Name of the model on the server."""
    max_tokens: int
    """Maximum tokens per answer."""
    chat: bool
    """Send the questions as chat messages."""
    questions: Sequence[str] = QUESTIONS
    """Questions to ask in turn."""
    dialect: Dialect = field(default_factory=Dialect)
    """Dialect of the server."""
    slo: Slo | None = None
    """Bounds that a good answer keeps."""
    cold: bool = True
    """Ask the server not to use prompts that it has cached: the questions come again and again."""

    @property
    def path(self) -> str:
        """Where the requests go."""
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def body(self, index: int) -> dict[str, Any]:
        """Returns the request of an index."""
        question = self.questions[index % len(self.questions)]
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream_options": {"include_usage": True},
        }
        if self.cold:
            body |= {"cache_salt": uuid.uuid4().hex, "cache_prompt": False}
        return body | (
            {"messages": [{"role": "user", "content": question}]} if self.chat else {"prompt": question}
        )


def measure_level(
    make_client: Callable[[], EndpointClient], asked: Asked, *, concurrency: int, num_requests: int
) -> Level:
    """Sends ``num_requests`` requests from ``concurrency`` users, each of whom asks again as soon as it has its answer.

    Args:
        make_client: Returns a new client for a user.
        asked: The requests.
        concurrency: Number of users.
        num_requests: Number of requests of all users together.
    """
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
            answer = ask(client, asked.path, asked.body(index), asked.dialect)
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
    return _summary(answers, concurrency, seconds, counters, num_retried, slo=asked.slo)


def measure_open_loop(
    make_client: Callable[[], EndpointClient], asked: Asked, times: Sequence[float], *, arrivals: str
) -> Level:
    """Sends a request at each of ``times``, whether or not earlier ones have been answered.

    Args:
        make_client: Returns a new client; one per request under way.
        asked: The requests.
        times: Seconds from the start, ascending.
        arrivals: What the times are, for the figures.
    """
    idle: queue.SimpleQueue[EndpointClient] = queue.SimpleQueue()
    clients: list[EndpointClient] = []
    lock = threading.Lock()
    answers: list[Answer] = []
    spans: list[tuple[float, float]] = []

    def send(index: int, due: float) -> None:
        try:
            client = idle.get_nowait()
        except queue.Empty:
            client = make_client()
            with lock:
                clients.append(client)
        body = asked.body(index)
        late = time.perf_counter() - due
        answer = _since(ask(client, asked.path, body, asked.dialect), late)
        with lock:
            answers.append(answer)
            spans.append((due, time.perf_counter()))
        idle.put(client)

    with contextlib.closing(make_client()) as reader:
        before = read_counters(reader.metrics_text())
        threads = []
        began = time.perf_counter()
        for index, offset in enumerate(times):
            time.sleep(max(0.0, began + offset - time.perf_counter()))
            thread = threading.Thread(target=send, args=(index, began + offset))
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        after = read_counters(reader.metrics_text())
    num_retried = sum(client.num_retried for client in clients)
    for client in clients:
        client.close()
    counters = after.since(before) if before is not None and after is not None else None
    level = _summary(answers, peak_in_flight(spans), seconds, counters, num_retried, slo=asked.slo)
    late = [answer.late_s for answer in answers]
    span = times[-1] - times[0]
    return dataclasses.replace(
        level,
        arrivals=arrivals,
        offered_rps=(len(times) - 1) / span if span > 0 else None,
        late_p99_s=percentile(late, 99),
        late_max_s=max(late),
    )


def _since(answer: Answer, late: float) -> Answer:
    """The answer with its times counted from its arrival: waits for the client and for retries are its user's too."""
    if answer.error is not None:
        return dataclasses.replace(answer, late_s=late)
    waited = late + answer.retried_s
    first = None if answer.ttft_s is None else answer.ttft_s + waited
    return dataclasses.replace(answer, ttft_s=first, seconds=answer.seconds + waited, late_s=late)


def ask(client: EndpointClient, path: str, body: Mapping[str, Any], dialect: Dialect | None = None) -> Answer:
    """Sends one request and times its pieces from the last attempt on; stores a failure as the answer's error."""
    entered = began = last = time.perf_counter()

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
        retried_s=began - entered,
    )


def _summary(
    answers: Sequence[Answer],
    concurrency: int,
    seconds: float,
    counters: SpeculationCounters | None,
    num_retried: int,
    *,
    slo: Slo | None,
) -> Level:
    good = [answer for answer in answers if answer.error is None]
    ttfts = [answer.ttft_s for answer in good if answer.ttft_s is not None]
    tpots = [answer.tpot_s for answer in good if answer.tpot_s is not None]
    gaps = [gap for answer in good for gap in answer.gaps_s]
    num_tokens = sum(answer.num_tokens for answer in good)
    kept = (
        None
        if slo is None
        else sum(slo.holds(a.ttft_s, a.tpot_s, a.seconds, num_tokens=a.num_tokens) for a in good)
    )
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
        requests_per_s=len(good) / seconds if seconds > 0 else None,
        goodput_rps=None if kept is None or seconds <= 0 else kept / seconds,
        good_share=None if kept is None or not answers else kept / len(answers),
    )
