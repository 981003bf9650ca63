"""Folders that hambench writes to by default: its cache and the runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Where hambench keeps what it made once: ``HAMBENCH_CACHE``, else ``hambench`` in the user's cache folder."""
    if own := os.environ.get("HAMBENCH_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "hambench"


def runs_root() -> Path:
    """Where runs go by default: ``$HAMBENCH_RUNS`` or ``runs`` in the current folder."""
    return Path(os.environ.get("HAMBENCH_RUNS", "runs"))
