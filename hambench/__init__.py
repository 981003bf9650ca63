"""hambench: which decoding strategy should I ship for this model, on this hardware, for this work?"""

from __future__ import annotations

from typing import Any

from hambench._version import __version__

__all__ = ["__version__", "run"]


def __getattr__(name: str) -> Any:
    # imported on first use: `hambench --help` must not wait for pandas
    if name == "run":
        from hambench.api import run

        return run
    raise AttributeError(f"module 'hambench' has no attribute {name!r}")
