"""The server's Prometheus metrics, with names like those of vLLM's counters."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hambench.analysis.metrics import machine_s
from hambench.records import StepRecord

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Exposition:
    """The counters of one server, in their own registry.

    Args:
        num_waiting: Returns the length of the queue.
    """

    def __init__(self, num_waiting: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("hambench:requests", "Requests by outcome", ["outcome"])
        self._prompt_tokens = self._counter("hambench:prompt_tokens", "Prompt tokens processed")
        self._tokens = self._counter("hambench:generation_tokens", "Tokens emitted")
        self._forwards = self._counter(
            "hambench:target_forwards",
            "Target forwards, if known; one that a batch shares counts for each prompt",
        )
        self._busy = self._counter(
            "hambench:busy_seconds", "Seconds of all steps, each round of a batch counted once"
        )
        self._drafts = self._counter("hambench:spec_decode_num_drafts", "Rounds of drafting")
        self._drafted = self._counter("hambench:spec_decode_num_draft_tokens", "Tokens drafted")
        self._accepted = self._counter("hambench:spec_decode_num_accepted_tokens", "Accepted draft tokens")
        self._first = Histogram(
            "hambench:time_to_first_token_seconds",
            "Prefill seconds, without queue time; in a batch, of the rounds until the first token",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._burst = Histogram(
            "hambench:step_seconds",
            "Seconds of a decode step; in a batch, of the round",
            buckets=SECONDS,
            registry=self._registry,
        )
        waiting = Gauge("hambench:requests_waiting", "Requests in the queue", registry=self._registry)
        waiting.set_function(num_waiting)

    def count_request(self, outcome: str) -> None:
        """Counts one request as ``ok``, ``refused``, ``failed`` or ``cancelled``."""
        self._requests.labels(outcome).inc()

    def count_step(self, step: StepRecord, *, num_prompt_tokens: int | None) -> None:
        """Counts one step; ``num_prompt_tokens`` is only given for the prefill."""
        if num_prompt_tokens is not None:
            self._prompt_tokens.inc(num_prompt_tokens)
            self._first.observe(step.timed_s)
        else:
            self._burst.observe(step.timed_s)
        # a client waits for a whole round, but the machine's time of a round is to be counted once
        self._busy.inc(machine_s(step) or 0.0)
        self._tokens.inc(len(step.tokens))
        self._forwards.inc(step.target_forwards or 0)
        if step.drafted:
            self._drafts.inc()
            self._drafted.inc(step.drafted)
            self._accepted.inc(step.accepted or 0)

    def render(self) -> bytes:
        """Returns the text for ``GET /metrics``."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(name, text, labels or [], registry=self._registry)
