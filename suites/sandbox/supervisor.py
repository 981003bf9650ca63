"""Runs programs that a model wrote, each in its own process group and isolated as far as this machine permits.

The first isolation level that works here is used and named in the run header:
``namespaces`` (own processes, network and root; read-only system folders; unprivileged user),
``bwrap`` (the same through bubblewrap, where namespaces are reserved for it),
``limits`` (only resource limits and checks within Python, against accidents but not attacks).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

Level = Literal["namespaces", "bwrap", "limits"]
LEVELS: tuple[Level, ...] = ("namespaces", "bwrap", "limits")

_CHILD = Path(__file__).with_name("child.py")
_START_S = 15.0
"""Time limit of the interpreter's start, which does not count as the program's time."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a program."""

    passed: bool
    """Whether it ran to its last line without an error."""
    reason: str
    """``passed``, ``failed: …``, ``timed out`` or ``died …``."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Runs Python programs under one isolation level; limits are per program."""

    level: Level
    memory_bytes: int = 1 << 30
    """Limit of each process's address space."""
    disk_bytes: int = 64 << 20
    """Limit of a file's size; with namespaces, also of all files together."""
    num_processes: int = 24

    def run(self, program: str, *, timeout_s: float = 3.0) -> Outcome:
        """Runs ``program`` for at most ``timeout_s`` seconds of wall time, and always returns.

        A program passes only if it reaches its last line; exiting early with any exit code does not count.
        """
        folder = Path(tempfile.mkdtemp(prefix="hambench-program-"))
        folder.chmod(0o777 if os.getuid() == 0 else 0o700)
        verdict_read, verdict_write = os.pipe()
        try:
            command = self._command(folder, verdict_write, timeout_s)
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=_environment(folder),
                pass_fds=(verdict_write,),
                start_new_session=True,
            )
            os.close(verdict_write)
            verdict_write = -1
            try:
                return self._watch(process, program, verdict_read, timeout_s)
            finally:
                _kill_group(process)
        finally:
            for each in (verdict_read, verdict_write):
                if each >= 0:
                    os.close(each)
            shutil.rmtree(folder, ignore_errors=True)

    def _command(self, folder: Path, verdict: int, timeout_s: float) -> list[str]:
        settings: dict[str, Any] = {
            "level": self.level,
            "folder": str(folder),
            "visible": _visible(),
            "drop_root": _open_to_all(_visible()),
            "disk_bytes": self.disk_bytes,
            "verdict_fd": verdict,
            "limits": {
                "RLIMIT_CPU": int(timeout_s) + 2,
                "RLIMIT_AS": self.memory_bytes,
                "RLIMIT_FSIZE": self.disk_bytes,
                "RLIMIT_NOFILE": 128,
                "RLIMIT_CORE": 0,
                "RLIMIT_NPROC": self.num_processes + (_processes_of_user() if self.level == "limits" else 0),
            },
        }
        inner = [sys.executable, "-I", "-B", str(_CHILD), json.dumps(settings)]
        return [*_bubblewrap(folder), *inner] if self.level == "bwrap" else inner

    def _watch(
        self, process: subprocess.Popen[bytes], program: str, verdict: int, timeout_s: float
    ) -> Outcome:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(program.encode("utf-8", "replace"))
            process.stdin.close()
        lines = _Lines(verdict)
        started = lines.next(_START_S)
        begin = time.monotonic()
        if started != b"ready":
            return Outcome(False, f"died before the program began ({self.level})", 0.0)
        answer = lines.next(timeout_s)
        seconds = time.monotonic() - begin
        if answer is None:
            ended = lines.ended
            return Outcome(False, "died without a verdict" if ended else "timed out", seconds)
        try:
            result = str(json.loads(answer)["result"])
        except (ValueError, KeyError, TypeError):
            return Outcome(False, "died with a broken verdict", seconds)
        return Outcome(result == "passed", result, seconds)


class _Lines:
    """Reads lines from a pipe with a timeout; buffers at most a few kilobytes."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.ended, self._buffer = descriptor, False, b""

    def next(self, timeout_s: float) -> bytes | None:
        """Returns the next line; ``None`` at the timeout or the end."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.descriptor], [], [], left)[0]:
                return None
            piece = os.read(self.descriptor, 4096)
            if not piece or len(self._buffer) > 16384:
                self.ended = True
                return None
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


@cache
def default_sandbox() -> Sandbox:
    """Returns the sandbox with the strongest isolation that works here, tested once with a trivial program."""
    for level in LEVELS:
        sandbox = Sandbox(level)
        if level == "bwrap" and shutil.which("bwrap") is None:
            continue
        if sandbox.run("import collections, heapq, math, random, re, typing", timeout_s=10.0).passed:
            return sandbox
    raise OSError("can't run programs here, not even with only resource limits")


def isolation() -> str:
    """Describes the isolation in use, for the run header."""
    level = default_sandbox().level
    # the user nobody can't read this Python, so the program stays root, to which process limits don't apply
    as_root = level == "limits" and os.getuid() == 0 and not _open_to_all(_visible())
    return {
        "namespaces": "namespaces (own processes, network and root folder; unprivileged user; limits)",
        "bwrap": "bubblewrap (own processes, network and root folder; limits)",
        "limits": "limits only (no namespaces on this machine; protects against accidents, not attacks"
        + ("; programs run as root, without a process limit)" if as_root else ")"),
    }[level]


def _environment(folder: Path) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _visible() -> list[str]:
    """Returns the folders, besides the system's, that the interpreter needs."""
    paths = (sys.base_prefix, sys.prefix, str(Path(sys.executable).resolve().parent), str(_CHILD.parent))
    outermost: list[str] = []
    for path in sorted(dict.fromkeys(paths), key=len):
        if not any(Path(path).is_relative_to(each) for each in (*outermost, "/usr")):
            outermost.append(path)
    return outermost


def _open_to_all(paths: list[str]) -> bool:
    """Returns whether an unprivileged user could read Python from ``paths``."""
    folders = {folder for path in paths for folder in (Path(path), *Path(path).parents)}
    return all(folder.stat().st_mode & 0o001 for folder in folders)


def _bubblewrap(folder: Path) -> list[str]:
    command = [
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--uid",
        "65534",
        "--gid",
        "65534",
    ]
    for path in ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache"):
        command += ["--ro-bind-try", path, path]
    for path in _visible():
        command += ["--ro-bind", path, path]
    command += [
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--bind",
        str(folder),
        str(folder),
        "--chdir",
        str(folder),
    ]
    return command


def _processes_of_user() -> int:
    """Counts this user's threads, which all count towards the process limit."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
            if int(lines["Uid"].split()[0]) == os.getuid():
                total += int(lines["Threads"])
    return total


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # ask first, so that the child also kills processes that have left the group
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
