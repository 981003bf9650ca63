"""What a server tells Prometheus, under names that readers of vLLM's counters know."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hambench.records import StepRecord

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Exposition:
    """Counters of one server, in a registry of its own.

    Args:
        num_waiting: Reads the length of the line.
    """

    def __init__(self, num_waiting: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("hambench:requests", "Requests by outcome", ["outcome"])
        self._prompt_tokens = self._counter("hambench:prompt_tokens", "Prompt tokens processed")
        self._tokens = self._counter("hambench:generation_tokens", "Tokens emitted")
        self._forwards = self._counter("hambench:target_forwards", "Forwards of the target, where known")
        self._drafts = self._counter("hambench:spec_decode_num_drafts", "Rounds of drafting")
        self._drafted = self._counter("hambench:spec_decode_num_draft_tokens", "Tokens drafted")
        self._accepted = self._counter("hambench:spec_decode_num_accepted_tokens", "Drafted tokens kept")
        self._first = Histogram(
            "hambench:time_to_first_token_seconds",
            "Prefill seconds, time in the line left out",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._burst = Histogram(
            "hambench:step_seconds", "Seconds of a decode step", buckets=SECONDS, registry=self._registry
        )
        waiting = Gauge("hambench:requests_waiting", "Requests in the line", registry=self._registry)
        waiting.set_function(num_waiting)

    def count_request(self, outcome: str) -> None:
        """One request, ``ok``, ``refused``, ``failed`` or ``cancelled``."""
        self._requests.labels(outcome).inc()

    def count_step(self, step: StepRecord, *, num_prompt_tokens: int | None) -> None:
        """One step; ``num_prompt_tokens`` is given with the prefill only."""
        if num_prompt_tokens is not None:
            self._prompt_tokens.inc(num_prompt_tokens)
            self._first.observe(step.seconds)
        else:
            self._burst.observe(step.seconds)
        self._tokens.inc(len(step.tokens))
        self._forwards.inc(step.target_forwards or 0)
        if step.drafted:
            self._drafts.inc()
            self._drafted.inc(step.drafted)
            self._accepted.inc(step.accepted or 0)

    def render(self) -> bytes:
        """The text that ``GET /metrics`` answers."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(name, text, labels or [], registry=self._registry)
