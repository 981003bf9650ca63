"""Packs the samples after the first ones: rendered, deflated, and unpacked on demand by the page's script.

A browser needs many seconds to lay out ten thousand answers, but a fraction of a second to skip a data block.
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
"""Size of the markup in one pack: large enough to deflate well, small enough to unpack at once."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A page's data blocks, each base64 of deflated JSON."""

    index: str
    """One row per sample: element id, sample id, flags, tokens, acceptance, search text, number of its pack."""
    packs: tuple[str, ...]
    """Lists of the samples' markup, in the order of the index."""


def pack_samples(samples: Sequence[SampleView], prefix: str, render: Callable[[SampleView], str]) -> Packed:
    """Packs samples.

    Args:
        samples: Samples to pack, in order.
        prefix: Prefix of ids in the page.
        render: Returns a sample's markup, the same as for a sample in plain HTML.
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
    # base64 has no character that could end the enclosing element, whatever a model wrote
    raw = json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()
    return base64.b64encode(zlib.compress(raw, 9)).decode()
