"""What the tests' own server of forked programs promises."""

import fcntl
import os
import signal

import pytest
from forked_python import ForkedPython


@pytest.fixture
def python():
    """A server that imports nothing, which starts at once."""
    server = ForkedPython(prepare="")
    yield server
    server.close()


class Interrupted(BaseException):
    """As a test's time limit raises it."""


@pytest.fixture
def interrupt():
    """A signal that interrupts the test."""

    def stop(*_):
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, stop)
    yield signal.SIGUSR1
    signal.signal(signal.SIGUSR1, before)


INTERRUPTING = """
import fcntl, os, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
os.kill(int(sys.argv[2]), int(sys.argv[3]))
time.sleep(2)
print("went on", file=file, flush=True)
sys.exit(7)
"""


def test_an_interrupted_program_is_ended_and_the_next_one_gets_its_own_answer(python, interrupt, tmp_path):
    path = tmp_path / "held by the program"
    with pytest.raises(Interrupted):
        python.run(INTERRUPTING, path, os.getpid(), int(interrupt))
    assert python.run("").returncode == 0
    with path.open() as file:
        # the program's end gives it free
        fcntl.flock(file, fcntl.LOCK_EX)
        assert file.read() == ""


def test_a_server_that_does_not_start_says_so_each_time():
    server = ForkedPython(prepare="raise SystemExit(3)")
    for _ in range(2):
        with pytest.raises(AssertionError, match="the server ended with 3 before it answered"):
            server.run("")
    server.close()


def killed_server(python):
    server = int(python.run("import os; print(os.getppid())").stdout)
    os.kill(server, signal.SIGKILL)
    # waits and leaves it to be collected
    os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)
    return server


def test_a_server_that_ended_between_programs_is_named_and_replaced(python):
    killed_server(python)
    with pytest.raises(AssertionError, match="the server ended with -9 before it answered"):
        python.run("")
    assert python.run("print('again')").stdout == "again\n"


def test_closing_leaves_no_process_whatever_became_of_the_server(python):
    killed = killed_server(python)
    python.close()
    python.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(killed, os.WNOHANG)
    living = int(python.run("import os; print(os.getppid())").stdout)
    python.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(living, os.WNOHANG)


@pytest.mark.parametrize(
    ("program", "code", "error"),
    [
        ("", 0, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit('no such thing')", 1, "no such thing\n"),
        ("raise SystemExit(-1)", 255, ""),
        ("import sys; sys.stdout.close()", 0, ""),
        ("import sys; sys.stdout = None", 0, ""),
    ],
)
def test_a_program_ends_as_python_ends_it(python, program, code, error):
    done = python.run(program)
    assert (done.returncode, done.stderr) == (code, error)


def test_a_program_is_the_main_module(python):
    done = python.run("import __main__; answer = 5; print(__main__.answer, __name__)")
    assert done.stdout == "5 __main__\n"


def test_an_error_of_a_program_is_shown_and_ends_that_program_only(python):
    done = python.run("print('so far'); 1 / 0")
    assert (done.returncode, done.stdout) == (1, "so far\n")
    assert "ZeroDivisionError" in done.stderr
    assert python.run("print('next')").stdout == "next\n"
