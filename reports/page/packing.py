"""Samples past the first ones: rendered like the others, deflated, and unpacked by the page's script when looked at.

A browser lays out ten thousand answers for many seconds, but reads over text in a data block in a fraction of one.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hambench.reports.html_text import printable
from hambench.reports.page.drilldown import SampleView

PACK_BYTES = 250_000
"""Markup that shares a pack: enough to deflate well, little enough to be there at once."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Data blocks of a page, each base64 of deflated JSON."""

    index: str
    """A row per sample: element id, sample id, flags, tokens, acceptance, text to search, number of its pack."""
    packs: tuple[str, ...]
    """Lists of the samples' markup, in the order of the index."""


def pack_samples(samples: Sequence[SampleView], prefix: str, render: Callable[[SampleView], str]) -> Packed:
    """Packs samples.

    Args:
        samples: What to pack, in order.
        prefix: Prefix of ids in the page.
        render: Gives a sample's markup: what would stand in the page were it not packed.
    """
    packs: list[list[str]] = []
    rows: list[list[str | int | float | None]] = []
    size = PACK_BYTES
    for sample in samples:
        markup = str(render(sample))
        if size + len(markup) > PACK_BYTES:
            packs.append([])
            size = 0
        packs[-1].append(markup)
        size += len(markup)
        rows.append(
            [
                f"{prefix}s{sample.number}",
                printable(sample.sample_id),
                " ".join(sample.flags),
                sample.tokens,
                sample.acceptance,
                sample.search,
                len(packs) - 1,
            ]
        )
    return Packed(_deflated(rows), tuple(map(_deflated, packs)))


def _deflated(value: object) -> str:
    # base64 has no character that could end the element around it, whatever a model said
    raw = json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()
    return base64.b64encode(zlib.compress(raw, 9)).decode()
