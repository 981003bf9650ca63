"""Chooses which engine runs HAMburger's greedy macro-steps, or the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hambench.engine.cpu.native_llama import NativeLlama
from hambench.engine.cuda.early_exit import Loop
from hambench.engine.cuda.fused_llama import FusedLlama
from hambench.engine.kvcache import KVCache
from hambench.methods.hamburger.device.macro_step import MacroStep
from hambench.methods.hamburger.device.native_step import NativeStep, native_step_obstacle
from hambench.methods.hamburger.device.step import device_step, fused_step_obstacle
from hambench.methods.hamburger.model import HamburgerModel


class Leader(NamedTuple):
    """The engine that runs a model's greedy macro-steps."""

    engine: str
    """``fused``, ``native``, or ``reference``: torch's operations, which the host leads."""
    make: Callable[..., MacroStep] | None
    """Makes the macro-steps over a cache of the base, ``(cache, asks=..., loop=...)``; ``None``: the host leads."""
    obstacle: str | None = None
    """Why the engine can't lead them."""


def leader_of(model: HamburgerModel) -> Leader:
    """Finds the engine that runs this model's greedy macro-steps, from the engine of its base."""
    if isinstance(model.base, FusedLlama):
        obstacle = fused_step_obstacle(model)
        make = _fused(model) if obstacle is None else None
        return Leader("fused", make, obstacle)
    if isinstance(model.base, NativeLlama):
        obstacle = native_step_obstacle(model)
        return Leader("native", _native(model) if obstacle is None else None, obstacle)
    return Leader("reference", None)


def _fused(model: HamburgerModel) -> Callable[..., MacroStep]:
    def make(cache: KVCache, *, asks: bool, loop: Loop) -> MacroStep:
        return device_step(model, cache, asks=asks, loop=loop)

    return make


def _native(model: HamburgerModel) -> Callable[..., MacroStep]:
    def make(cache: KVCache, *, asks: bool, loop: Loop) -> MacroStep:
        return NativeStep(model, cache, asks=asks)

    return make
