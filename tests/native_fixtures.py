"""The native library for tests: compiled once and kept in the user's cache like any user's.

``HAMBENCH_TEST_SANITIZERS=address,undefined`` tests a build that checks every access instead (``make sanitize``).
Without a C++ compiler these tests skip; where they are what is asked for, in CI and under sanitizers, they fail.
"""

import functools
import os
from pathlib import Path

import pytest

from hambench.engine.cpu.native_library import NATIVE_CACHE, native_library
from hambench.kernels.cpu.build import INSTALL_HINT, build_library, find_compiler
from hambench.kernels.cpu.library import Library

SANITIZERS = "HAMBENCH_TEST_SANITIZERS"
NO_COMPILER = "none"
"""The value of ``CXX`` that says that a machine without a compiler is what is to be tested."""


@functools.cache
def library_under_test():
    """The library under test."""
    sanitizers = os.environ.get(SANITIZERS)
    if sanitizers:
        return Library(build_library(Path(os.environ[NATIVE_CACHE]), sanitizers=sanitizers.split(",")))
    return native_library()


def need_compiler():
    """Skips the test where there is no C++ compiler; fails it where one must be."""
    if find_compiler() is not None:
        return
    own = os.environ.get("CXX")
    if os.environ.get(SANITIZERS):
        pytest.fail(f"{SANITIZERS} is set, and there is no C++ compiler to sanitize with: {INSTALL_HINT}")
    if os.environ.get("CI") and own != NO_COMPILER:
        pytest.fail(f"CI is set, and there is no C++ compiler: {INSTALL_HINT}")
    pytest.skip("there is no C++ compiler: the native engine is not built here")


@pytest.fixture(scope="session")
def compiler():
    """A C++ compiler is there."""
    need_compiler()


@pytest.fixture(scope="session")
def library(compiler):
    return library_under_test()


@pytest.fixture
def several_threads(library):
    """The library, whose calls get the threads they ask for: on a busy machine all might run on one.

    The test fails if none of its calls ran on several threads.
    """
    before = library.pool_counts()
    library.let_calls_go_alone(False)
    try:
        yield library
    finally:
        library.let_calls_go_alone(True)
    after = library.pool_counts()
    assert after.alone == before.alone, "calls ran alone"
    assert after.together > before.together, "no call ran on several threads"
