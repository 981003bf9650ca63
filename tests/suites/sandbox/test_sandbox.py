"""Hostile programs end, are no pass, and touch nothing; at every isolation level that this machine has."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from hambench.suites.harness.code_eval import CodeEval, CodeExecutionOffError, pass_at_k
from hambench.suites.sandbox import supervisor
from hambench.suites.sandbox.supervisor import LEVELS, Sandbox, default_sandbox, isolation

PROBE = "import collections, math, re"
CHILD = f"{Path('sandbox') / 'child.py'}".encode()


def _works(level):
    try:
        return Sandbox(level).run(PROBE, timeout_s=10.0).passed
    except OSError:
        return False


@pytest.fixture(params=LEVELS, scope="module")
def sandbox(request):
    if not _works(request.param):
        pytest.skip(f"this machine does not permit the isolation level {request.param!r}")
    return Sandbox(request.param, memory_bytes=512 << 20)


def test_a_program_that_reaches_its_end_passes(sandbox):
    assert sandbox.run("assert 1 + 1 == 2").passed


def test_a_failed_assert_says_so(sandbox):
    outcome = sandbox.run("assert 1 + 1 == 3, 'sum'")
    assert not outcome.passed
    assert "AssertionError: sum" in outcome.reason


LEAVING_EARLY = {
    "os._exit": "import os\nos._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "raise SystemExit": "raise SystemExit",
    "kill itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "write verdicts": (
        'import os\nfor each in range(3, 64):\n  try: os.write(each, b\'{"result": "passed", "proof": ""}\\n\')\n'
        "  except OSError: pass\nos._exit(0)"
    ),
    "close the verdict": "import os\nos.closerange(3, 64)",
}


@pytest.mark.parametrize("how", LEAVING_EARLY)
def test_leaving_before_the_asserts_is_no_pass(sandbox, how):
    outcome = sandbox.run(f"{LEAVING_EARLY[how]}\nassert False", timeout_s=2.0)
    assert not outcome.passed, outcome


FORGING = {
    "open files": (
        "import os, json\nfor fd in range(3, 256):\n"
        "  try: text = os.read(fd, 64).decode()\n  except OSError: text = ''\n"
        "  for each in range(3, 256):\n    for proof in (text, ''):\n"
        "      try: os.write(each, json.dumps({'result': 'passed', 'proof': proof}).encode() + b'\\n')\n"
        "      except OSError: pass"
    ),
    "the parent's open files": (
        "import os\nfor pid in (os.getppid(), 1):\n  for fd in range(64):\n"
        "    try: os.write(os.open(f'/proc/{pid}/fd/{fd}', os.O_WRONLY), b'{\"result\": \"passed\"}\\n')\n"
        "    except OSError: pass"
    ),
    "the parent's memory": (
        "import os\nopened = 0\ntry: os.open(f'/proc/{os.getppid()}/mem', os.O_RDWR); opened = 1\n"
        "except OSError: pass\nif opened: os._exit(0)"
    ),
    "its exit status": "import atexit, os\natexit.register(os._exit, 0)\nimport sys\nsys.exit(0)",
    "a child": "import os\nif os.fork() == 0: os._exit(0)\nos.wait()",
}


@pytest.mark.parametrize("how", FORGING)
def test_a_verdict_can_not_be_forged_from_outside_the_interpreter(sandbox, how):
    outcome = sandbox.run(f"{FORGING[how]}\nassert False, 'reached'", timeout_s=3.0)
    assert not outcome.passed, outcome
    assert "reached" in outcome.reason or how == "its exit status", outcome


def test_the_program_has_no_open_file_but_the_three_streams(sandbox):
    text = (
        "import os\nopen_files = []\nfor fd in range(3, 1024):\n  try: os.fstat(fd)\n"
        "  except OSError: continue\n  open_files.append(fd)\nassert not open_files, open_files"
    )
    assert sandbox.run(text).passed


def test_the_processes_of_a_running_program_are_found_by_these_tests(sandbox):
    import threading

    thread = threading.Thread(target=lambda: sandbox.run("import time\ntime.sleep(60)", timeout_s=3.0))
    thread.start()
    try:
        _wait_until(lambda: _programs() > 0)
    finally:
        thread.join()


def test_programs_that_end_early_are_told_apart(sandbox):
    assert "exit status 0 before its last line" in sandbox.run("import os\nos._exit(0)").reason
    assert "exit status 7 before its last line" in sandbox.run("import os\nos._exit(7)").reason


ENDLESS = {
    "loop": "while True: pass",
    "sleep": "import time\ntime.sleep(60)",
    "printing gigabytes": "while True: print('x' * 1_000_000)",
    "catching everything": "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
    "threads": "import threading\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()\nwhile True: pass",
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless_programs_are_stopped_at_the_time_out(sandbox, kind):
    begin = time.monotonic()
    outcome = sandbox.run(ENDLESS[kind], timeout_s=0.5)
    assert (outcome.passed, outcome.reason) == (False, "timed out")
    assert time.monotonic() - begin < 10


def test_a_memory_bomb_fails_without_taking_the_machine(sandbox):
    outcome = sandbox.run("x = bytearray(4 << 30)", timeout_s=2.0)
    assert "MemoryError" in outcome.reason


def test_a_fork_bomb_leaves_no_process_behind(sandbox):
    before = _programs()
    outcome = sandbox.run(
        "import os\nfor _ in range(200):\n  try: os.fork()\n  except OSError: pass\nwhile True: pass",
        timeout_s=0.5,
    )
    assert not outcome.passed
    _wait_until(lambda: _programs() <= before)


def test_a_process_that_leaves_the_group_is_ended_too(sandbox):
    before = _programs()
    sandbox.run(
        "import os, time\nif os.fork() == 0:\n  os.setsid()\n  time.sleep(60)\nwhile True: pass",
        timeout_s=0.5,
    )
    _wait_until(lambda: _programs() <= before)


def test_the_home_folder_can_not_be_read(sandbox, tmp_path):
    secret = Path.home() / f".hambench-test-{os.getpid()}"
    secret.write_text("secret")
    try:
        outcome = sandbox.run(f"assert open({str(secret)!r}).read() == 'secret'", timeout_s=2.0)
    finally:
        secret.unlink()
    assert not outcome.passed


@pytest.mark.parametrize(
    "where", ["/usr/hambench-test", "/hambench-test", str(Path(os.__file__).with_name("hambench_test"))]
)
def test_nothing_outside_its_own_folder_can_be_written(sandbox, where):
    outcome = sandbox.run(f"open({where!r}, 'w').write('x')", timeout_s=2.0)
    assert not Path(where).exists()
    # a private root may take the write, out of reach of the machine's own
    assert not outcome.passed or sandbox.level != "limits"


SHELL = "['sh', '-c', 'echo x > {target}']"
REACHING_OUT = {
    "exec": f"import os\nos.execv('/bin/sh', {SHELL})",
    "posix_spawn": f"import os\nos.waitpid(os.posix_spawn('/bin/sh', {SHELL}, os.environ), 0)",
    "spawn": f"import os\nos.spawnv(os.P_WAIT, '/bin/sh', {SHELL})",
    "a terminal": f"import os, pty\npty.spawn({SHELL})",
    "rename": "import os\nopen('a', 'w').close()\nos.rename('a', {target!r})",
    "a link": "import os\nopen('a', 'w').close()\nos.link('a', {target!r})",
    "a symbolic link": "import os\nopen('a', 'w').close()\nos.symlink(os.path.abspath('a'), {target!r})",
    "a folder next to its own": "import os\nos.mkdir(os.getcwd() + '-x')\nos.mkdir({target!r})",
    "an open folder": (
        "import os\nopen('a', 'w').close()\nfd = os.open({folder!r}, os.O_RDONLY)\n"
        "os.rename('a', 'target', dst_dir_fd=fd)"
    ),
    "a database": "import sqlite3\nsqlite3.connect({target!r}).execute('create table a (b)')",
}


@pytest.fixture
def open_folder():
    """A folder that every user of this machine may write to, next to the programs' own."""
    folder = Path(tempfile.mkdtemp(prefix="hambench-test-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("how", REACHING_OUT)
def test_no_way_leads_out_of_its_own_folder(sandbox, how, open_folder, tmp_path):
    target = open_folder / "target"
    program = REACHING_OUT[how].format(target=str(target), folder=str(open_folder))
    own = open_folder / "own"
    own.mkdir()
    # without the sandbox it works: the attack is a real one
    subprocess.run([sys.executable, "-c", program], cwd=own, stdin=subprocess.DEVNULL, capture_output=True)
    assert os.path.lexists(target)
    target.rmdir() if target.is_dir() else target.unlink()
    outcome = sandbox.run(program, timeout_s=5.0)
    assert not os.path.lexists(target)
    if sandbox.level == "limits" and how not in ("spawn", "a terminal"):
        assert "is not allowed here" in outcome.reason


def test_its_own_files_can_be_moved_linked_and_removed(sandbox):
    text = (
        "import os, shutil, sqlite3, tempfile\nwith tempfile.TemporaryDirectory() as name:\n"
        "  os.makedirs(name + '/a/b')\n  open(name + '/a/c', 'w').close()\n  shutil.move(name + '/a/c', name + '/d')\n"
        "  os.link(name + '/d', name + '/e')\n  os.symlink('d', name + '/f')\n"
        "assert not os.path.exists(name)\nsqlite3.connect(':memory:').execute('create table a (b)')"
    )
    assert sandbox.run(text).passed, sandbox.run(text).reason


def test_its_own_folder_can_be_written_up_to_the_limit(sandbox):
    assert sandbox.run("open('a', 'w').write('x')\nassert open('a').read() == 'x'").passed
    big = "with open('b', 'wb') as f:\n  for _ in range(200): f.write(bytes(1 << 20))"
    assert not sandbox.run(big, timeout_s=5.0).passed


def test_there_is_no_network(sandbox):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = sandbox.run(
            f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)", timeout_s=2.0
        )
    assert not outcome.passed


def test_killing_its_parent_or_everyone_harms_nobody_outside(sandbox):
    for target in ("os.getppid()", "-1"):
        sandbox.run(f"import os, signal\nos.kill({target}, signal.SIGKILL)", timeout_s=2.0)
    assert sandbox.run("pass").passed


def test_main_blocks_are_not_run_as_in_code_eval(sandbox):
    assert sandbox.run("if __name__ == '__main__':\n  raise ValueError").passed


def test_the_isolation_in_force_is_named():
    assert isolation().split()[0].rstrip(",") in ("namespaces", "bubblewrap", "limits")
    assert default_sandbox() is default_sandbox()


def test_a_program_that_stays_root_is_said(monkeypatch):
    monkeypatch.setattr(supervisor, "default_sandbox", lambda: Sandbox("limits"))
    monkeypatch.setattr(os, "getuid", lambda: 0)
    for is_open in (True, False):
        monkeypatch.setattr(supervisor, "_open_to_all", lambda _, answer=is_open: answer)
        assert ("programs run as root" in isolation()) is not is_open


def test_nothing_runs_unless_allowed():
    with pytest.raises(CodeExecutionOffError, match="--allow-code-execution"):
        CodeEval().compute(references=["assert True"], predictions=[["x = 1"]], k=[1])


def test_pass_at_k_of_programs_that_ran():
    metric = CodeEval()
    with metric.allow(True):
        values, outcomes = metric.compute(
            references=["assert add(2, 3) == 5", "assert add(2, 3) == 5"],
            predictions=[["def add(a, b): return a + b"], ["def add(a, b): return a * b"]],
            k=[1],
        )
    assert values == {"pass@1": 0.5}
    assert [outcome["passed"] for ((_, outcome),) in outcomes.values()] == [True, False]


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"), [(1, 1, 1, 1.0), (1, 0, 1, 0.0), (4, 2, 2, 1 - 1 / 6), (3, 3, 2, 1.0)]
)
def test_pass_at_k_is_the_chance_that_one_of_k_passes(n, c, k, expected):
    assert pass_at_k(n, c, k) == pytest.approx(expected)


def _programs():
    """Processes of sandboxed programs now alive."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += CHILD in path.read_bytes()
        except OSError:
            continue
    return found


def _wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
