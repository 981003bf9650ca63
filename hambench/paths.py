"""Default folders that hambench writes to: its cache and the runs."""

from __future__ import annotations

import os
from pathlib import Path

from hambench.files import expanded


def cache_dir() -> Path:
    """Returns the cache folder: ``HAMBENCH_CACHE``, else ``hambench`` in the user's cache folder."""
    if own := os.environ.get("HAMBENCH_CACHE"):
        return expanded(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (expanded(base) if base else Path.home() / ".cache") / "hambench"


def runs_root() -> Path:
    """Returns the default folder of runs: ``$HAMBENCH_RUNS`` or ``runs`` in the current folder."""
    return expanded(os.environ.get("HAMBENCH_RUNS") or "runs")
