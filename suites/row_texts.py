"""The words of every suite's rows, so that training data can be held against them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hambench.suites.catalogue import ENTRIES
from hambench.suites.offline import OFFLINE
from hambench.suites.resolve import FOLDER, HUB, OFFLINE_EDITION, rows_of
from hambench.suites.sources import cache_only, cached_data_set


class RowText(NamedTuple):
    """All strings of one row: question, context, answers and whatever else its columns hold."""

    name: str
    """Suite, task and number of the row, like ``offline-long/stdlib_qa/3``."""
    texts: tuple[str, ...]


def row_texts(*, data: Path | None = None, seed: int = 0) -> Iterator[RowText]:
    """Yields every row that this machine has: of all offline suites, and official ones where they are at hand.

    Official rows come from ``data``, or else from the hub's data sets in the local cache; nothing is downloaded.

    Args:
        data: Folder of plain files in the public schemas.
        seed: Seed of the offline rows.

    Raises:
        DataError: If a file of the data folder is broken.
    """
    wanted = [(each.entry, OFFLINE_EDITION) for each in OFFLINE.values()]
    for entry in ENTRIES.values():
        if data is not None:
            wanted.append((entry, FOLDER))
        elif entry.hub is not None and cached_data_set(entry.hub[0]):
            wanted.append((entry, HUB))
    for entry, source in wanted:
        # one cached configuration of a data set must not have the others downloaded
        with cache_only() if source == HUB else contextlib.nullcontext():
            rows = rows_of(entry, source=source, data=data, seed=seed).rows or ()
        for number, row in enumerate(rows):
            yield RowText(f"{entry.suite}/{entry.name}/{number}", tuple(_strings(row)))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _strings(each)
