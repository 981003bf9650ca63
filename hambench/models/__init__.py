"""Models: resolves names and loads weights onto a device."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # `hambench gate --base-ref` calls other commits by this name; a top-level import would import torch
    if name == "load":
        from hambench.models.target import load

        return load
    raise AttributeError(f"module 'hambench.models' has no attribute {name!r}")
