"""Ends of programs that use the native kernels: in the middle of calls, with sleeping threads, as a fork's child."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hambench.kernels.cpu.library import free_with

PROGRAM = """
import atexit, json, os, sys, threading, time
from test_native_model import greedy, make, part
from hambench.engine.cpu.native_library import native_library

library = native_library()
library.let_calls_go_alone(False)
model = make(library)


def call(threads=3, cache=None):
    return greedy(model, tuple(range(12)), cache or part(num_rows=12), num_tokens=12, threads=threads)


def call_on(cache):
    while True:
        call(cache=cache)
        began.set()


def check(threads=3):
    assert call(threads) == call(1)
    call(threads)
    assert library.pool_counts().last_size == threads


def begin_calls():
    threading.Thread(target=call_on, args=[part(num_rows=12)], daemon=True).start()
    assert began.wait(20)
    for _ in range(20):
        call()


def child(*work):
    pid = os.fork()
    if not pid:
        for each in work:
            each()
        sys.exit(5)
    assert code_of(pid) == 5
    call()


def code_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


began, codes = threading.Event(), {}
for statement in json.loads(sys.argv[1]):
    # each end is that of a process of its own, which need not import everything again
    pid = os.fork()
    if not pid:
        exec(statement)
        sys.exit()
    codes[statement] = code_of(pid)
print(json.dumps(codes))
"""
ENDS = {
    # with threads that sleep, and with threads that have just worked
    "check(); time.sleep(0.05)": 0,
    "check(); sys.exit(3)": 3,
    "check(); os._exit(3)": 3,
    # after pools of several sizes
    "for threads in (1, 5, 2, 8, 3): check(threads)": 0,
    # during another thread's calls
    "begin_calls()": 0,
    "begin_calls(); sys.exit(3)": 3,
    "begin_calls(); os._exit(3)": 3,
    # before another thread's calls
    "threading.Thread(target=lambda: [call() for _ in range(300)]).start()": 0,
    "atexit.register(check)": 0,
    # children with and without a pool of their own, forked from one that works or sleeps, that end during calls
    "check(); child(check, lambda: check(5))": 0,
    "begin_calls(); child(check)": 0,
    "child(check, begin_calls)": 0,
}


@pytest.mark.slow
def test_programs_end_in_order(library):
    """Weights were once freed at the end, while threads still read them."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, json.dumps([*ENDS])],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])},
    )
    assert done.stderr == ""
    assert json.loads(done.stdout) == ENDS


def test_memory_of_the_library_goes_with_its_owner():
    class Owner:
        pass

    handles, owner = [], Owner()
    free_with(owner, handles.append, 7)
    assert handles == []
    del owner
    assert handles == [7]
