"""Chooses the kernels of a loaded model: torch's own operations, the native CPU kernels or the fused GPU kernels."""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from hambench.errors import ModelError

if TYPE_CHECKING:
    from hambench.engine.language_model import LanguageModel
    from hambench.models.target import TargetModel

KERNELS = ("auto", "reference", "native", "fused")
"""``reference``: torch's own operations; ``native``: the CPU engine; ``fused``: the GPU kernels; ``auto``: ``native``
on a CPU where it can be had, ``fused`` for the regime ``graph``, else ``reference``."""

INSTRUCTION_SET = "native_instruction_set"
"""Key of a run's facts: the one set that all its native cells run with."""

_log = logging.getLogger(__name__)


class NativeCalls(NamedTuple):
    """Calls of the native engine in this process so far."""

    num: int
    num_alone: int
    """Calls that ran on one thread, although more were asked for, because waiting for the others was dear."""


def choose_kernels(kernels: str, target: TargetModel, regimes: Iterable[str] = ("eager",)) -> str:
    """Resolves ``auto`` for this model on this machine; says once if that is the slower path."""
    if kernels != "auto":
        return kernels
    if "graph" in regimes:
        return "fused"
    if target.device.type != "cpu":
        return "reference"
    reason = native_obstacle(target)
    if reason is None:
        return "native"
    _warn_once(f"torch's own operations run the model, which takes about 2.5 times as long: {reason}")
    return "reference"


def build_ahead(kernels: Iterable[str], device: str | None) -> threading.Thread | None:
    """Begins to build the native engine where a run may need it: the compiler then runs while the model loads.

    Returns the thread that builds, to be joined before anything is timed.
    """
    from hambench.engine.cpu.native_library import begin_to_build
    from hambench.models.target import device_of

    if {"auto", "native"} & {*kernels} and device_of(device).type == "cpu":
        return begin_to_build()
    return None


def run_by(target: TargetModel, *, kernels: str, regime: str = "eager") -> TargetModel:
    """Returns the same target on the requested kernels; models derived from it (drafts) are not shared between kernels.

    Raises:
        ModelError: If this device or this model does not support the kernels.
    """
    kernels = choose_kernels(kernels, target, (regime,))
    if kernels == "native":
        llama = _native(target.llama, regime)
    elif (regime, kernels) == ("eager", "reference"):
        # a target that another engine runs has its reference; the transformers adapter has none and is one itself
        llama = target.llama.reference or target.llama
    else:
        from hambench.engine.cuda.fused_llama import accelerate

        llama = accelerate(target.llama, regime=regime, kernels=kernels)
    return target if llama is target.llama else dataclasses.replace(target, llama=llama, _shared={})


def native_obstacle(target: TargetModel) -> str | None:
    """Returns why the native kernels can't run this model here and how to fix that, or ``None`` if they can."""
    from hambench.engine.cpu.native_library import NativeUnavailableError, native_library
    from hambench.engine.cpu.packing import llama_obstacle

    if target.llama.reference is None:
        return f"{target.name} runs through the transformers adapter"
    try:
        return llama_obstacle(target.llama.reference, native_library())
    except NativeUnavailableError as error:
        return str(error)


def backend_facts(kernels: Iterable[str]) -> dict[str, str]:
    """Returns what a run records about the engines behind its cells' kernels."""
    if "native" not in set(kernels):
        return {}
    from hambench.engine.cpu.native_library import native_library

    library = native_library()
    return {INSTRUCTION_SET: library.instruction_set(), "native_compiler": library.compiler}


def keep_to_instruction_set(facts: Mapping[str, object]) -> None:
    """Makes this process's native engine use the set that a run's facts name, if this machine has it.

    Two sets may give other bits, so a cell keeps to one, whoever makes its records.
    """
    from hambench.engine.cpu.native_library import force_instruction_set

    wanted = facts.get(INSTRUCTION_SET)
    if wanted is not None:
        force_instruction_set(str(wanted))


def forget_native_waits(kernels: str) -> None:
    """Lets the next native call run on all its threads: what made waiting expensive was another cell's work."""
    if kernels == "native":
        from hambench.engine.cpu.native_library import native_library

        native_library().forget_waits()


def native_calls(kernels: str) -> NativeCalls | None:
    """How many calls the native engine has made in this process; ``None`` for cells that other kernels run."""
    if kernels != "native":
        return None
    from hambench.engine.cpu.native_library import native_library

    counts = native_library().pool_counts()
    return NativeCalls(counts.calls, counts.alone)


def _native(model: LanguageModel, regime: str) -> LanguageModel:
    from hambench.engine.cpu.native_library import NativeUnavailableError, native_library
    from hambench.engine.cpu.native_llama import NativeLlama

    if regime != "eager":
        raise ModelError(f"regime {regime!r} needs a CUDA device: native kernels run with --regime eager")
    if model.reference is None:
        raise ModelError("the native kernels run Llama-family models only: use --kernels reference")
    if isinstance(model, NativeLlama):
        return model
    try:
        return NativeLlama(model.reference, native_library())
    except NativeUnavailableError as error:
        raise ModelError(f"{error}; or use --kernels reference") from error


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)
