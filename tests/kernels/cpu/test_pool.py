"""The pool of threads driven without Python, so that ThreadSanitizer sees every access (``make sanitize-threads``)."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from native_fixtures import SANITIZERS

from hambench.kernels.cpu.build import SOURCE, find_compiler

DRIVER = Path(__file__).with_name("pool_driver.cpp")


def test_threads_see_what_the_others_wrote_before_a_barrier(compiler, tmp_path):
    """Sums that only barriers order, on one to five threads, asleep and awake, together and alone, after a fork."""
    command, program = find_compiler(), tmp_path / "driver"
    sanitize = ["-g", "-fsanitize=thread"] if os.environ.get(SANITIZERS) == "thread" else []
    flags = ["-std=c++17", "-O1", *sanitize, f"-I{SOURCE}", "-pthread"]
    sources = [str(DRIVER), str(SOURCE / "pool.cpp")]
    subprocess.run([*command, *flags, "-o", str(program), *sources], check=True)
    # a child of a process with threads is what a fork is driven for
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1 die_after_fork=0"}
    done = subprocess.run([str(program)], capture_output=True, text=True, env=environment, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    wrong, together, alone, forbidden, is_forgotten = map(int, re.findall(r"\d+", done.stdout))
    assert (wrong, forbidden, is_forgotten) == (0, 0, 1)
    # both ways of running were driven
    assert together > 100
    assert alone > 0


@pytest.mark.skipif(
    os.environ.get(SANITIZERS) != "thread", reason="asks ThreadSanitizer: make sanitize-threads"
)
def test_a_race_is_noticed(compiler, tmp_path):
    """A barrier that orders nothing must fail the driver, or its silence says nothing."""
    source = tmp_path / "source"
    source.mkdir()
    text = (SOURCE / "pool.cpp").read_text()
    loose = text.replace("std::memory_order_acq_rel", "std::memory_order_relaxed")
    assert loose != text
    (source / "pool.cpp").write_text(loose)
    (source / "pool.h").write_text((SOURCE / "pool.h").read_text())
    program = tmp_path / "driver"
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", f"-I{source}", "-pthread"]
    subprocess.run(
        [*find_compiler(), *flags, "-o", str(program), str(DRIVER), str(source / "pool.cpp")], check=True
    )
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1 die_after_fork=0"}
    done = subprocess.run([str(program)], capture_output=True, text=True, env=environment, timeout=300)
    assert "ThreadSanitizer: data race" in done.stderr
