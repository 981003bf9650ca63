"""Prompts that a server had cached of earlier answers: a time to first token that leaves reading them out."""

from __future__ import annotations

from collections.abc import Iterable

from hambench.records import SampleRecord
from hambench.store import Run

MOST_CACHED = 0.05
"""Share of the prompt tokens that may come out of a cache before a time to first token is said to leave them out."""


def cached_share(records: Iterable[SampleRecord]) -> float | None:
    """Share of the prompt tokens that a server read out of its cache; ``None`` where no answer says it."""
    cached = prompts = 0
    for record in records:
        totals = record.trace.totals if record.trace is not None else None
        if record.trace is not None and totals is not None and totals.cached_prompt_tokens is not None:
            # a counter of the whole server may have risen for others too
            cached += min(totals.cached_prompt_tokens, record.trace.prompt_tokens)
            prompts += record.trace.prompt_tokens
    return cached / prompts if prompts else None


def cache_caution(run: Run) -> str | None:
    """One sentence where servers took prompts out of a cache; ``None`` if none did, or none says so."""
    shares = {cell.label: cached_share(run.of_cell(cell.label)) for cell in run.header.cells}
    told = {label: share for label, share in shares.items() if share is not None}
    warm = {label: share for label, share in told.items() if share > MOST_CACHED}
    if not warm:
        return None
    listed = ", ".join(f"{label} {share:.0%}" for label, share in warm.items())
    # cells of this process read every prompt whole
    uneven = max(warm.values()) - min(share or 0.0 for share in shares.values()) > MOST_CACHED
    words = "unevenly, so that times to first token don't compare" if uneven else "in every cell alike"
    return (
        f"a server read prompt tokens out of its prefix cache, {words} ({listed}); a knob guard=nonce, or a server "
        "without prefix caching, measures whole prefills."
    )
