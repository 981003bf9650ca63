"""The native library for tests: compiled once and kept in the user's cache like any user's.

``HAMBENCH_TEST_SANITIZERS=address,undefined`` tests a build that checks every access instead (``make sanitize``).
"""

import functools
import os
from pathlib import Path

import pytest

from hambench.engine.cpu.native_library import NATIVE_CACHE, native_library
from hambench.kernels.cpu.build import build_library, find_compiler
from hambench.kernels.cpu.library import Library


@functools.cache
def library_under_test():
    """The library under test."""
    sanitizers = os.environ.get("HAMBENCH_TEST_SANITIZERS")
    if sanitizers:
        return Library(build_library(Path(os.environ[NATIVE_CACHE]), sanitizers=sanitizers.split(",")))
    return native_library()


@pytest.fixture(scope="session")
def library():
    if find_compiler() is None:
        pytest.skip("there is no C++ compiler: the native engine is not built here")
    return library_under_test()
