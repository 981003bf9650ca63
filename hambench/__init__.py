"""hambench: benchmarks decoding strategies for a model, on your hardware, with your workload."""

from __future__ import annotations

from typing import Any

from hambench._version import __version__

__all__ = ["__version__", "open_run", "run"]


def __getattr__(name: str) -> Any:
    # import on first use, because `hambench --help` must not wait for pandas
    if name in ("run", "open_run"):
        from hambench import api

        return getattr(api, name)
    raise AttributeError(f"module 'hambench' has no attribute {name!r}")
