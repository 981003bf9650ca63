"""Reads a server's own acceptance counters from its ``/metrics``, under vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

NAMES = {
    "drafts": "spec_decode_num_drafts_total",
    "drafted": "spec_decode_num_draft_tokens_total",
    "accepted": "spec_decode_num_accepted_tokens_total",
}


@dataclass(frozen=True)
class SpeculationCounters:
    """Totals since the server's start, over all its clients."""

    drafts: float
    drafted: float
    accepted: float

    def since(self, before: SpeculationCounters) -> SpeculationCounters:
        """Returns the increase since an earlier reading."""
        return SpeculationCounters(
            self.drafts - before.drafts, self.drafted - before.drafted, self.accepted - before.accepted
        )

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / drafted; ``None`` if nothing was drafted."""
        return self.accepted / self.drafted if self.drafted > 0 else None

    @property
    def mean_acceptance_length(self) -> float | None:
        """1 + accepted / rounds of drafting."""
        return 1 + self.accepted / self.drafts if self.drafts > 0 else None


def read_counters(text: str | None) -> SpeculationCounters | None:
    """Reads the counters in a Prometheus text, summed over engines.

    Returns ``None`` if the server has no counters, or if the text is not in Prometheus format.
    """
    if text is None:
        return None
    totals: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                for field, ending in NAMES.items():
                    # vLLM's prefix is vllm:, and other servers have their own
                    if sample.name.endswith(ending):
                        totals[field] = totals.get(field, 0.0) + sample.value
    except ValueError:
        return None
    return SpeculationCounters(**totals) if len(totals) == len(NAMES) else None


CACHED = ("prefix_cache_hits_total", "gpu_prefix_cache_hits_total", "cached_tokens_total")
"""Prompt tokens read from the cache, by the names after the prefix of vLLM, older vLLMs and SGLang."""


def read_cached_tokens(text: str | None) -> int | None:
    """Returns the prompt tokens that a server has read from its prefix cache since its start, over all its clients.

    Sums over engines and sources, under one name: a vLLM between two versions has the same count under two.

    Returns ``None`` if the server does not count tokens (the first vLLMs counted blocks), or if the text is not in
    Prometheus format.
    """
    if text is None:
        return None
    totals: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families(text):
            if "blocks" in family.documentation:
                continue
            for sample in family.samples:
                name = sample.name.rpartition(":")[2]
                totals[name] = totals.get(name, 0.0) + sample.value
    except ValueError:
        return None
    return next((int(totals[name]) for name in CACHED if name in totals), None)
