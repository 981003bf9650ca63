"""Prints the sanitizers' runtime for ``LD_PRELOAD``: that of the compiler that builds the native library."""

import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hambench.kernels.cpu.build import INSTALL_HINT, compiler_version, find_compiler


def runtime_of(compiler: Sequence[str]) -> list[str]:
    """Paths of the runtime of AddressSanitizer and UndefinedBehaviorSanitizer.

    Raises:
        FileNotFoundError: If the compiler came without one of them.
    """
    machine = platform.machine()
    if "clang" in compiler_version(compiler):
        # clang's address runtime holds the other one as well
        wanted = [(f"libclang_rt.asan-{machine}.so", "libclang_rt.asan.so")]
    else:
        wanted = [("libasan.so",), ("libubsan.so",)]
    return [_first_of(compiler, names) for names in wanted]


def _first_of(compiler: Sequence[str], names: tuple[str, ...]) -> str:
    for name in names:
        command = [*compiler, f"-print-file-name={name}"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        # a compiler that has no such file repeats the name
        if Path(said).is_absolute() and Path(said).exists():
            return said
    raise FileNotFoundError(
        f"{compiler[0]} has no {names[0]}: install the sanitizers' runtime of this compiler"
    )


def main() -> None:
    """Prints the paths, or ends with a line that says what is missing."""
    compiler = find_compiler()
    if compiler is None:
        sys.exit(f"make sanitize: there is no C++ compiler: {INSTALL_HINT}")
    try:
        print(*runtime_of(compiler))
    except FileNotFoundError as error:
        sys.exit(f"make sanitize: {error}")


if __name__ == "__main__":
    main()
