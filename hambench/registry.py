"""The registry of decoding methods: lines here and entry points in the group ``hambench.methods``.

Looking up a method imports only its config, never torch.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points

from hambench.decoding import MethodConfig
from hambench.errors import HambenchError, UnknownNameError
from hambench.records import Cell

ENTRY_POINT_GROUP = "hambench.methods"
BASELINE = "vanilla"
"""The method that all others are divided by."""

BUILTIN = {
    "vanilla": "hambench.methods.vanilla:VanillaConfig",
    "speculative": "hambench.methods.speculative:SpeculativeConfig",
    "prompt_lookup": "hambench.methods.prompt_lookup:PromptLookupConfig",
    "suffix": "hambench.methods.suffix:SuffixConfig",
    "hamburger": "hambench.methods.hamburger:HamburgerConfig",
    "kv_press": "hambench.methods.kv_press:KVPressConfig",
    "transformers": "hambench.methods.peers.transformers_generate:TransformersConfig",
    "llama_cpp": "hambench.methods.peers.llama_cpp:LlamaCppConfig",
    "llama_server": "hambench.methods.peers.llama_server:LlamaServerConfig",
    "endpoint": "hambench.methods.peers.endpoint:EndpointConfig",
}
"""Methods in report order; vanilla is the baseline."""


@cache
def _locations() -> dict[str, str]:
    found = dict(BUILTIN)
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in BUILTIN:
            raise HambenchError(
                f"the distribution {point.dist.name if point.dist else '?'} registers a method named {point.name!r}, "
                "which hambench has already: rename its entry point"
            )
        found[point.name] = point.value
    return found


def method_names() -> list[str]:
    """Returns all registered names, built-in ones first."""
    return list(_locations())


def method_config(name: str) -> type[MethodConfig]:
    """Returns the config class registered under a name.

    Raises:
        UnknownNameError: If no method has that name.
        HambenchError: If a third party's entry point can't be loaded.
    """
    location = _locations().get(name)
    if location is None:
        raise UnknownNameError("method", name, _locations())
    module, _, attribute = location.partition(":")
    try:
        loaded = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise HambenchError(f"method {name!r} can't be loaded from {location}: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, MethodConfig)):
        raise HambenchError(
            f"method {name!r}: {location} is not a subclass of hambench.decoding.MethodConfig"
        )
    return loaded


def facts_of(name: str) -> type[MethodConfig]:
    """Returns a method's facts for readers of runs; the defaults if it is not installed here or broken.

    A stored run of a method that this installation lacks can still be read.
    """
    try:
        return method_config(name)
    except HambenchError:
        return MethodConfig


def is_lossless(cell: Cell) -> bool:
    """Returns whether a cell's setting is lossless; false for a method that is not installed here."""
    try:
        return method_config(cell.method).from_knobs(cell.knobs).is_lossless
    except HambenchError:
        return False


def variant_of(cell: Cell) -> str:
    """Returns the word of a cell's curve among those of its method; empty for a method that is not installed here."""
    try:
        return method_config(cell.method).from_knobs(cell.knobs).variant
    except HambenchError:
        return ""
