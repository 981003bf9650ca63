"""The compiled native kernels of this process: found in the cache, or compiled once."""

from __future__ import annotations

import functools
import logging
import os
import threading
from pathlib import Path

from hambench.errors import ModelError
from hambench.kernels.cpu.build import BuildError, build_library
from hambench.kernels.cpu.library import ISA_VARIABLE, Library, load_library
from hambench.paths import cache_dir

NATIVE_CACHE = "HAMBENCH_NATIVE_CACHE"
"""Environment variable: the folder of compiled native libraries, by default ``native`` in hambench's cache."""

_log = logging.getLogger(__name__)


class NativeUnavailableError(ModelError):
    """The native kernels can't be had here; the message says why and, behind a colon, what to do about it."""


def native_library(*, retry: bool = False) -> Library:
    """The library; where the cache has none it is compiled, which takes some ten seconds once.

    Args:
        retry: Compile again though that failed lately.

    Raises:
        NativeUnavailableError: If it can't be had here, or ``HAMBENCH_CPU_ISA`` asks for what the machine lacks.
    """
    library = _load(retry)
    try:
        library.instruction_set()
    except ValueError as error:
        raise NativeUnavailableError(str(error)) from error
    return library


def begin_to_build() -> threading.Thread:
    """Compiles the library in the background if the cache has none, while a model is fetched and loaded.

    It raises nothing: whoever needs the library waits for this, and says why there is none.
    """

    def build() -> None:
        try:
            build_library(_cache(), say=_say)
        # at the end of a program that is refused, no more compilers are started: RuntimeError
        except (BuildError, RuntimeError) as error:
            _log.debug("building ahead: %s", error)

    thread = threading.Thread(target=build, name="native build")
    thread.start()
    return thread


def force_instruction_set(name: str) -> None:
    """Makes every forward of this process use the set, if this machine has it."""
    if name in _load(False).instruction_sets():
        os.environ[ISA_VARIABLE] = name


@functools.cache
def _load(retry: bool) -> Library:
    try:
        return load_library(_cache(), say=_say, retry=retry)
    except BuildError as error:
        raise NativeUnavailableError(str(error)) from error


def _cache() -> Path:
    own = os.environ.get(NATIVE_CACHE)
    return Path(own).expanduser() if own else cache_dir() / "native"


def _say(compiler: str) -> None:
    _log.warning("compiling the native CPU engine with %s, once", compiler)
