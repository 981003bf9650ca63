"""hambench: benchmarks decoding strategies for a model, on your hardware, with your workload."""

from __future__ import annotations

import os
from typing import Any

from hambench._version import __version__

# Threads of torch's OpenMP spin for some 20 ms after each parallel part, on cores that the native engine's own threads
# want for the next call; 1 ms is enough for the next torch operation. It counts if torch is imported later, as usual.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"

__all__ = ["__version__", "open_run", "run"]


def __getattr__(name: str) -> Any:
    # import on first use, because `hambench --help` must not wait for pandas
    if name in ("run", "open_run"):
        from hambench import api

        return getattr(api, name)
    raise AttributeError(f"module 'hambench' has no attribute {name!r}")
