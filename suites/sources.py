"""Sources of rows: a folder of plain files, the hub (or its local cache), or the offline edition."""

from __future__ import annotations

import contextlib
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import cache
from typing import Any

from hambench.errors import DataError
from hambench.files import expanded
from hambench.suites.catalogue import TaskEntry
from hambench.suites.columns import check_row
from hambench.suites.rows import adapt

Row = dict[str, Any]


def hub_endpoint() -> str:
    """Returns the address of the hub in use."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def hub_switched_off() -> bool:
    """Returns whether the environment forbids the hub (``HF_HUB_OFFLINE`` or ``HF_DATASETS_OFFLINE``)."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


@cache
def hub_reachable(timeout_s: float = 3.0) -> bool:
    """Returns whether the hub answers within ``timeout_s``; asks once per process."""
    if hub_switched_off():
        return False
    answered: list[bool] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(hub_endpoint(), method="HEAD")
            with urllib.request.urlopen(request, timeout=timeout_s):
                answered.append(True)
        except urllib.error.HTTPError as error:
            # a proxy's refusal is an answer too, so accept only an answer of the hub itself
            if error.code in (401, 404, 405, 429):
                answered.append(True)
        except (OSError, ValueError):
            pass

    # use a thread, because a name lookup has no timeout
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return bool(answered)


def cached_data_set(name: str) -> bool:
    """Returns whether the hub's data set ``name`` is in the local cache of ``datasets``."""
    home = expanded(os.environ.get("HF_HOME") or "~/.cache/huggingface")
    folder = expanded(os.environ.get("HF_DATASETS_CACHE") or home / "datasets")
    return (folder / name.replace("/", "___")).is_dir()


@contextlib.contextmanager
def cache_only() -> Iterator[None]:
    """Keeps ``datasets`` from asking the hub while the context lasts; what is not in its local cache is missing."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def hub_rows(entry: TaskEntry) -> list[Row]:
    """Loads the official rows of ``entry`` through ``datasets`` and its cache.

    Raises:
        DataError: If they can't be loaded, or a row does not have the task's schema.
    """
    import datasets

    if entry.hub is None:
        raise DataError(f"task {entry.name!r} has no data set on the hub")
    path, configuration, split = entry.hub
    try:
        rows = datasets.load_dataset(path, name=configuration, split=split)
    except (
        Exception
    ) as error:  # datasets raises dozens of types, and each means that the rows can't be loaded
        where = f"{path}/{configuration}" if configuration else path
        raise DataError(
            f"can't load {where} (split {split}) for task {entry.name!r}: {type(error).__name__}: {error}"
        ) from error
    asked = [dict(row) for row in rows]
    for number, row in enumerate(asked, start=1):
        check_row(entry, row, f"{path} (split {split}), row {number}")
    return adapt(entry, asked)
