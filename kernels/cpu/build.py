"""Compiles the native library once per source, compiler and flags, and stores it in a cache folder.

The library contains every instruction set and picks one at run time, so that machines of several generations can share
the folder.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from filelock import FileLock

SOURCE = Path(__file__).parent / "source"
COMPILERS = ("g++", "clang++", "c++")
"""Tried in this order where ``CXX`` is not set."""
FAILURE_S = 24 * 3600.0
"""Seconds for which a failed compilation is remembered and not tried again."""
INSTALL_HINT = "install g++ 10 or later (Debian: apt-get install g++), or set CXX"

# a fused multiply-add where the source has none would change bits from one compiler to the next
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno")
SANITIZE = ("-O1", "-g", "-fno-omit-frame-pointer", "-DHB_DEBUG")
INSTRUCTION_SETS: Mapping[str, tuple[str, ...]] = {
    "avx512": ("-DHB_ISA_AVX512", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"),
    "avx2": ("-DHB_ISA_AVX2", "-mavx2", "-mfma"),
    "portable": (),
}
COMMON_UNITS = ("abi", "dispatch", "forward", "head", "macro_step", "model", "pool")


class BuildError(RuntimeError):
    """Raised if the library can't be compiled; the message gives the reason and the fix in one line."""


def find_compiler() -> tuple[str, ...] | None:
    """Finds the C++ compiler: the command in ``CXX``, or the first of :data:`COMPILERS` on the path.

    Raises:
        BuildError: If ``CXX`` is not a command line.
    """
    own = os.environ.get("CXX")
    try:
        commands = [shlex.split(own)] if own else [[name] for name in COMPILERS]
    except ValueError as error:
        raise BuildError(
            f"CXX={own!r} is not a command line ({error}): write it as a shell would take it"
        ) from error
    return next(
        ((path, *options) for name, *options in filter(None, commands) if (path := shutil.which(name))), None
    )


def build_library(
    cache: Path,
    *,
    sanitizers: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
    retry: bool = False,
) -> Path:
    """Returns the compiled library's path; compiles it if the cache has none for this source, compiler and flags.

    Args:
        cache: Cache folder. If several processes ask at once, one compiles and the others wait.
        sanitizers: Sanitizers for tests, e.g. ``("address", "undefined")``; also turns on assertions.
        say: Receives the compiler's name before it runs.
        retry: Whether to compile again although it failed less than :data:`FAILURE_S` ago.

    Raises:
        BuildError: If there is no compiler, it fails or failed recently, or the cache can't be written.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BuildError(f"there is no C++ compiler: {INSTALL_HINT}")
    flags = list(FLAGS)
    if sanitizers:
        flags += [*SANITIZE, f"-fsanitize={','.join(sanitizers)}", "-fno-sanitize-recover=all"]
    library = cache / _key(compiler, flags) / "libhambench_cpu.so"
    if library.is_file():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(library.with_suffix(".lock")):
            if not library.is_file():
                if not retry:
                    _refuse_failed(library)
                if say is not None:
                    say(_name(compiler))
                _compile(compiler, flags, library)
    except OSError as error:
        raise BuildError(f"the compiled library can't be stored in {cache}: {error}") from error
    return library


def compiler_version(compiler: Sequence[str]) -> str:
    """Returns the compiler's version line.

    Raises:
        BuildError: If it can't be run.
    """
    try:
        return subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{shlex.join(compiler)} --version fails ({error}): {INSTALL_HINT}") from error


def _name(compiler: Sequence[str]) -> str:
    return shlex.join((Path(compiler[0]).name, *compiler[1:]))


def _failure(library: Path) -> Path:
    """Returns the path of the file with the reason of a failed compilation."""
    return library.with_name("failure.txt")


def _refuse_failed(library: Path) -> None:
    """Raises the reason of a recent failure, because failing again takes as long as succeeding."""
    failure = _failure(library)
    try:
        age = time.time() - failure.stat().st_mtime
        if not 0 <= age < FAILURE_S:
            return
        reason = failure.read_text()
    except FileNotFoundError:
        return
    raise BuildError(f"{reason}; it is tried again a day after it failed, or now by hambench doctor")


def _key(compiler: Sequence[str], flags: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCE.iterdir()):
        if path.suffix in (".cpp", ".h"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(
        repr(
            (
                compiler[1:],
                compiler_version(compiler),
                list(flags),
                INSTRUCTION_SETS,
                _is_x86(),
                platform.system(),
            )
        ).encode()
    )
    return digest.hexdigest()[:24]


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _units(flags: Sequence[str]) -> dict[str, list[str]]:
    """Returns compiler arguments by object name."""
    names = INSTRUCTION_SETS if _is_x86() else ("portable",)
    common = [*flags, *(["-DHB_X86"] if _is_x86() else [])]
    units = {
        f"kernels_{name}": [
            *common,
            *INSTRUCTION_SETS[name],
            f"-DHB_TABLE=kernels_{name}",
            f'-DHB_NAME="{name}"',
            str(SOURCE / "kernels.cpp"),
        ]
        for name in names
    }
    units.update({name: [*common, str(SOURCE / f"{name}.cpp")] for name in COMMON_UNITS})
    return units


def _compile(compiler: Sequence[str], flags: Sequence[str], library: Path) -> None:
    failure = _failure(library)
    failure.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as folder:
        units = _units(flags)
        objects = [str(Path(folder, f"{name}.o")) for name in units]
        with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            jobs = [
                pool.submit(_run, compiler, [*arguments, "-c", "-o", target])
                for arguments, target in zip(units.values(), objects, strict=True)
            ]
            concurrent.futures.wait(jobs, return_when=concurrent.futures.FIRST_EXCEPTION)
            # one unit that can't be compiled is enough
            pool.shutdown(cancel_futures=True)
        whole = Path(folder, library.name)
        sanitize = [flag for flag in flags if flag.startswith("-fsanitize")]
        try:
            for job in jobs:
                if not job.cancelled():
                    job.result()
            _run(compiler, ["-shared", *sanitize, "-o", str(whole), *objects, "-pthread"])
        except BuildError as error:
            failure.write_text(str(error))
            raise
        # a reader sees no file or a whole one
        whole.replace(library)


def _run(compiler: Sequence[str], arguments: Sequence[str]) -> None:
    try:
        done = subprocess.run([*compiler, *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{_name(compiler)} can't be run ({error}): {INSTALL_HINT}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        reason = lines[0].strip() if lines else f"exit status {done.returncode}"
        raise BuildError(f"{_name(compiler)} can't compile the native engine ({reason}): {INSTALL_HINT}")
