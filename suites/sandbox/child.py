"""The inside of the sandbox: a script that the supervisor runs in a fresh interpreter.

It isolates itself as its settings say, reads the program from stdin, runs it in a child process, and answers on a
pipe that the child does not have. It imports nothing of hambench, so that the program sees only this file and the
standard library.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

NOBODY = 65534

# <linux/sched.h>, <linux/mount.h>, <linux/prctl.h>
_NEW_NS, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE, _DETACH = 1, 2, 4, 32, 4096, 16384, 1 << 18, 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = (
    1,
    4,
    24,
    36,
    38,
)
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

# event → indices of its path arguments, each with the index of the folder that the path may be relative to
_FILE_EVENTS: dict[str, tuple[tuple[int, int | None], ...]] = {
    "open": ((0, None),),
    "os.listdir": ((0, None),),
    "os.scandir": ((0, None),),
    "os.truncate": ((0, None),),
    "sqlite3.connect": ((0, None),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "shutil.rmtree": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((0, 2), (1, 2)),
}
# a subprocess would run without the audit hook
_REFUSED = frozenset(
    {
        *("os.kill", "os.killpg", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile"),
        *("pty.spawn", "subprocess.Popen"),
    }
)

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Reads the settings (JSON, first argument), isolates this process as they say, and runs the program."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    program = sys.stdin.buffer.read().decode()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    level = settings["level"]
    if level == "namespaces":
        _enter_namespaces(settings)
    elif level == "limits" and settings["drop_root"]:
        _drop_root()
    _limit(settings)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # adopt the program's orphans, so that they can't escape to process 1
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # the program runs as the same user, so keep it out of our memory and our open files under /proc
    _prctl(_PR_SET_DUMPABLE, 0)
    verdict = settings["verdict_fd"]
    board = mmap.mmap(-1, mmap.PAGESIZE)
    marker = os.urandom(16).hex().encode()
    os.write(verdict, b"ready\n")
    worker = os.fork()
    if worker == 0:
        _run(program, settings, board, marker)
    # the program's parent is this process, not hambench; if process 1 of a namespace dies, all others in it die
    signal.signal(signal.SIGTERM, lambda *_: _end())
    _, status = os.waitpid(worker, 0)
    result = _judged(os.waitstatus_to_exitcode(status), board[:].rstrip(b"\0"), marker)
    os.write(verdict, json.dumps({"result": result}).encode() + b"\n")
    _end()


def _judged(exit_status: int, said: bytes, marker: bytes) -> str:
    """Returns how the program ended; a pass needs exit status 0 and the marker that follows its last line."""
    if exit_status == 0 and said == marker:
        return "passed"
    if said.startswith(b"failed: "):
        return said.decode(errors="replace")
    if exit_status < 0:
        return f"failed: ended by signal {-exit_status}"
    return f"failed: it ended with exit status {exit_status} before its last line"


def _end() -> None:
    """Kills every process that the program started, even hidden ones, and exits."""
    for _ in range(1000):
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        left = children.read_text().split() if children.exists() else []
        if not left:
            break
        for child in left:
            os.kill(int(child), signal.SIGKILL)
            os.waitpid(int(child), 0)
    os._exit(0)


def _run(program: str, settings: dict[str, Any], board: mmap.mmap, marker: bytes) -> None:
    """Runs the program without open files, and writes the marker or the error to ``board``.

    A program can read everything in its own process. One that searches the interpreter's frames finds the marker, just
    as one that returns an object equal to everything passes any assert. But a program can't pass by exiting early,
    writing to open files or attacking the parent process.
    """
    _prctl(_PR_SET_DUMPABLE, 1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0] + 64)
    if settings["level"] == "limits":
        _forbid(settings["folder"])
    try:
        # an empty namespace, as in code_eval, so that `if __name__ == "__main__":` blocks don't run
        exec(compile(program, "<program>", "exec"), {})
    except BaseException as error:  # SystemExit and KeyboardInterrupt end a program before its tests, too
        text = f"failed: {type(error).__name__}: {error}"[:300].encode(errors="replace")
        board[: len(text)] = text
        os._exit(1)
    board[: len(marker)] = marker
    os._exit(0)


def _enter_namespaces(settings: dict[str, Any]) -> None:
    """Enters new process, network, IPC and mount namespaces, with read-only system folders and an unprivileged user."""
    root_user = os.getuid() == 0
    uid, gid = os.getuid(), os.getgid()
    _check(
        "unshare",
        _libc.unshare(_NEW_NS | _NEW_UTS | _NEW_IPC | _NEW_PID | _NEW_NET | (0 if root_user else _NEW_USER)),
    )
    if not root_user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{NOBODY} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{NOBODY} {gid} 1")
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _new_root(settings)
    if root_user:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    else:
        _drop_capabilities()
    # changing the user resets the parent-death signal
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _new_root(settings: dict[str, Any]) -> None:
    """Mounts a root with read-only system folders and Python, a private working folder, and no user files."""
    root = Path(settings["folder"])
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, f"size={settings['disk_bytes']},mode=755")
    for path in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/ld.so.conf"):
        if Path(path).is_symlink():
            (root / path[1:]).symlink_to(Path(path).readlink())
        elif Path(path).exists():
            _show(root, path)
    for path in settings["visible"]:
        if not (root / path[1:]).exists():
            _show(root, path)
    for name in ("null", "zero", "urandom"):
        _show(root, f"/dev/{name}", read_only=False)
    (root / "proc").mkdir(exist_ok=True)
    # a container may forbid a new /proc, which the program can do without
    _libc.mount(b"proc", bytes(root / "proc"), b"proc", _NOSUID | _NODEV | _RDONLY, None)
    (root / "tmp").mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    os.chdir(root)
    number = _SYS_PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise OSError(f"no pivot_root number known for {os.uname().machine}")
    _check("pivot_root", _libc.syscall(number, b".", b"."))
    _check("umount2", _libc.umount2(b".", _DETACH))
    os.chdir("/tmp")
    # only /tmp and the devices stay writable
    os.environ["HOME"] = os.environ["TMPDIR"] = "/tmp"


def _show(root: Path, path: str, *, read_only: bool = True) -> None:
    """Bind-mounts ``path`` of the old root at the same path of the new one."""
    target = root / path[1:]
    if Path(path).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(path, target, None, _BIND | _REC)
    if read_only:
        # a user namespace can't drop flags of the old mount, so repeat them
        kept = os.statvfs(path).f_flag & (_NOSUID | _NODEV | 8 | 1024 | 2048 | 4096)
        flags = (kept & 0xF) | (2097152 if kept & 4096 else 0)
        flags |= (1024 if kept & 1024 else 0) | (2048 if kept & 2048 else 0)
        _mount(None, target, None, _BIND | _REMOUNT | _RDONLY | flags)


def _drop_root() -> None:
    """Changes to the user nobody, because process limits don't apply to root."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _drop_capabilities() -> None:
    for capability in range(64):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    none = (ctypes.c_uint32 * 6)()
    _check("capset", _libc.capset(header, none))


def _limit(settings: dict[str, Any]) -> None:
    for name, value in settings["limits"].items():
        limit = getattr(resource, name)
        # CPU time: the soft limit ends the program, the hard limit one that catches the signal
        resource.setrlimit(limit, (value, value + 1 if name == "RLIMIT_CPU" else value))


def _forbid(folder: str) -> None:
    """Forbids network, signals, other programs, and files outside ``folder`` and Python.

    This protects against accidents, not attacks, because it can't see system calls without Python audit events.
    """
    writable = (os.path.realpath(folder), os.devnull)
    pythons = (sys.prefix, sys.base_prefix, *map(os.path.realpath, (sys.prefix, sys.base_prefix)))
    readable = (*writable, *pythons, "/usr", "/lib", "/dev/urandom", "/etc/localtime")
    changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith("socket.") or event in _REFUSED:
            raise PermissionError(f"{event} is not allowed here")
        reads = event in ("os.listdir", "os.scandir") or (event == "open" and not arguments[2] & changing)
        for place, folder_place in _FILE_EVENTS.get(event, ()):
            # in another Python version the event may lack the folder
            base = arguments[folder_place] if folder_place and folder_place < len(arguments) else None
            path = _whole_path(arguments[place], base)
            if path is not None and not _is_below(path, readable if reads else writable):
                raise PermissionError(f"{event} of {path} is not allowed here")

    sys.addaudithook(hook)


def _whole_path(path: object, base: object) -> str | None:
    """Returns an event's real path, resolved against the open folder ``base``; ``None`` for open files."""
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    text = os.fsdecode(path)
    if isinstance(base, int) and base >= 0:
        text = str(Path(f"/proc/self/fd/{base}").readlink() / text)
    return os.path.realpath(text)


def _is_below(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _mount(
    source: str | None, target: str | Path, kind: str | None, flags: int, data: str | None = None
) -> None:
    encoded = [None if each is None else os.fsencode(each) for each in (source, target, kind, data)]
    result = _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    _check(f"mount {target}", result)


def _prctl(option: int, value: int) -> None:
    _check("prctl", _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))


def _check(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
