"""The native library's C interface: the structures of ``source/abi.h`` and the types of its functions."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import NamedTuple

from hambench.kernels.cpu.build import BuildError, build_library

ABI = 7
OK, NOT_FINITE, NO_MEMORY, BAD_ARGUMENT, STOP_NOT_FINITE = range(5)
NOT_DECODED = -2
"""Stands for the tokens behind the end of a chain that was stopped."""
ISA_VARIABLE = "HAMBENCH_CPU_ISA"
"""Environment variable that forces an instruction set: ``avx512``, ``avx2`` or ``portable``."""


class Shape(ctypes.Structure):
    """``hb_shape``."""

    _fields_ = (
        *((name, c_int32) for name in ("hidden", "intermediate", "num_layers", "num_heads", "num_kv_heads")),
        *((name, c_int32) for name in ("head_dim", "vocab", "cache_type", "embedding_type")),
        ("eps", c_float),
        ("frequencies", c_void_p),
    )


class Dense(ctypes.Structure):
    """``hb_dense``."""

    _fields_ = (
        *((name, c_void_p) for name in ("values", "scales", "bias")),
        *((name, c_int32) for name in ("type", "scale_type", "bias_type", "reserved")),
        *((name, c_int64) for name in ("outputs", "inputs", "row_stride")),
    )


class Vector(ctypes.Structure):
    """``hb_vector``."""

    _fields_ = (("values", c_void_p), ("type", c_int32), ("size", c_int32))


class Layer(ctypes.Structure):
    """``hb_layer``."""

    _fields_ = (
        *((name, Dense) for name in ("qkv", "out", "gate_up", "down")),
        *((name, Vector) for name in ("input_norm", "mlp_norm", "q_norm", "k_norm")),
    )


class Part(ctypes.Structure):
    """``hb_part``."""

    _fields_ = (
        *((name, c_void_p) for name in ("keys", "values")),
        *((name, c_int64) for name in ("capacity", "past")),
        *((name, c_int32) for name in ("first_row", "num_rows", "cache_type", "reserved")),
    )


class Stop(ctypes.Structure):
    """``hb_stop``."""

    _fields_ = (("least", c_double), ("is_product", c_int32), ("reserved", c_int32))


class Forward(ctypes.Structure):
    """``hb_forward``."""

    _fields_ = (
        *(
            (name, c_void_p)
            for name in ("ids", "embeddings", "positions", "parts", "feature_layers", "features")
        ),
        *((name, c_void_p) for name in ("hidden", "head_rows", "logits", "tokens", "chains", "stops")),
        *((name, c_int32) for name in ("num_rows", "num_parts", "num_features", "num_head_rows", "threads")),
        ("reserved", c_int32),
    )


class Grafts(ctypes.Structure):
    """``hb_grafts``."""

    _fields_ = (
        ("micro", c_void_p),
        *((name, Dense) for name in ("query", "keyed", "out")),
        ("stop", Dense * 3),
        *((name, c_void_p) for name in ("position_share", "feature_layers")),
        *((name, c_int32) for name in ("num_features", "max_steps", "merge_heads", "residual_is_last")),
    )


class Macro(ctypes.Structure):
    """``hb_macro``."""

    _fields_ = (
        *(
            (name, c_void_p)
            for name in ("part", "merged", "features", "thresholds", "tokens", "probabilities")
        ),
        *((name, c_int64) for name in ("position", "first_token")),
        *((name, c_int32) for name in ("num_merged", "num_tokens", "num_asked", "status")),
    )


class Counts(ctypes.Structure):
    """``hb_counts``."""

    _fields_ = (
        *((name, c_int64) for name in ("calls", "alone", "together")),
        *((name, c_int32) for name in ("last_size", "reserved")),
    )


class PoolCounts(NamedTuple):
    """Counts of this process's calls so far."""

    calls: int
    alone: int
    """Calls that ran on one thread, although more were asked for, because waiting for the others was dear."""
    together: int
    """Calls that ran on several threads."""
    last_size: int
    """Threads of the last call."""


class Limits(NamedTuple):
    """Upper limits of the kernels."""

    rows: int
    """Of one forward."""
    head_dim: int


FUNCTIONS = {
    "hb_abi": (c_int32, []),
    "hb_compiler": (c_char_p, []),
    "hb_instruction_set": (c_char_p, [c_char_p]),
    "hb_limits": (c_int32, [POINTER(c_int32)] * 2),
    "hb_model_new": (c_void_p, [POINTER(Shape)]),
    "hb_model_layer": (c_int32, [c_void_p, POINTER(Layer)]),
    "hb_model_head": (c_int32, [c_void_p, POINTER(Dense), POINTER(Vector), c_void_p]),
    "hb_model_bytes": (c_int64, [c_void_p]),
    "hb_model_free": (None, [c_void_p]),
    "hb_run": (c_int32, [c_void_p, c_char_p, POINTER(Forward)]),
    "hb_grafts_new": (c_void_p, [POINTER(Grafts)]),
    "hb_grafts_free": (None, [c_void_p]),
    "hb_macro_steps": (
        c_int32,
        [c_void_p, c_char_p, c_void_p, c_void_p, POINTER(Macro), c_int32, c_int32],
    ),
    "hb_pool_counts": (None, [POINTER(Counts)]),
    "hb_pool_may_go_alone": (None, [c_int32]),
    "hb_pool_forget_waits": (None, []),
}


class Library:
    """The loaded library.

    Args:
        path: The compiled file.

    Raises:
        BuildError: If it can't be loaded or belongs to another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.functions = ctypes.CDLL(str(path))
        except OSError as error:
            raise BuildError(f"the compiled native engine can't be loaded: {error}") from error
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(self.functions, name)
            function.restype, function.argtypes = result, arguments
        if self.functions.hb_abi() != ABI:
            raise BuildError(f"{path} belongs to another version of hambench: delete it")
        numbers = [c_int32() for _ in range(2)]
        self.functions.hb_limits(*numbers)
        self.limits = Limits(*(number.value for number in numbers))

    @property
    def compiler(self) -> str:
        """Compiler and version that built the library."""
        version: bytes = self.functions.hb_compiler()
        return version.decode()

    def instruction_set(self, name: str | None = None) -> str:
        """Returns the instruction set to use: ``name``, else that in ``HAMBENCH_CPU_ISA``, else the best one here.

        Raises:
            ValueError: If this machine lacks the requested set.
        """
        wanted = name or os.environ.get(ISA_VARIABLE) or None
        chosen: bytes | None = self.functions.hb_instruction_set(wanted.encode() if wanted else None)
        if chosen is None:
            here = ", ".join(self.instruction_sets())
            source = "instruction_set" if name else ISA_VARIABLE
            raise ValueError(f"{source} must be one that this machine runs ({here}), got {wanted!r}")
        return chosen.decode()

    def instruction_sets(self) -> Sequence[str]:
        """Instruction sets that run on this machine, best first."""
        known = ("avx512", "avx2", "portable")
        return [name for name in known if self.functions.hb_instruction_set(name.encode()) is not None]

    def pool_counts(self) -> PoolCounts:
        """Counts of this process's calls so far."""
        counts = Counts()
        self.functions.hb_pool_counts(counts)
        return PoolCounts(counts.calls, counts.alone, counts.together, counts.last_size)

    def let_calls_go_alone(self, allowed: bool) -> None:
        """Sets whether a call may run on one thread if waiting is expensive; tests turn this off."""
        self.functions.hb_pool_may_go_alone(allowed)

    def forget_waits(self) -> None:
        """Lets the next call run on several threads again, however expensive waiting was in earlier ones."""
        self.functions.hb_pool_forget_waits()


def load_library(cache: Path, *, say: Callable[[str], None] | None = None, retry: bool = False) -> Library:
    """Loads the library, after compiling it if needed.

    Args:
        cache: Folder of compiled libraries.
        say: Receives the compiler's name before it runs.
        retry: Whether to compile again although it failed recently.

    Raises:
        BuildError: If it is not available here; the message gives the reason in one line.
    """
    return Library(build_library(cache, say=say, retry=retry))


def free_with(owner: object, free: Callable[[int], None], handle: int) -> None:
    """Frees memory of the library together with its owner, but not at the end of the program.

    At the program's end, daemon threads may still be in a call that reads the memory, and the system frees it anyway.

    Args:
        owner: Object whose end frees the memory.
        free: The library's function.
        handle: What the function frees.
    """
    weakref.finalize(owner, free, handle).atexit = False
