"""Reads the machine code of compiled kernels with NVIDIA's tools, which Triton ships."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_INSTRUCTION_BYTES = 16
"""Size of one instruction, on every architecture since sm_70."""


@dataclass(frozen=True)
class MachineCode:
    """Content of one cubin."""

    registers: int
    """Registers per thread."""
    stack_bytes: int
    local_bytes: int
    instructions: tuple[str, ...]
    """Instructions in the order of their addresses, without the addresses."""

    def count(self, opcode: str) -> int:
        """Counts the instructions that match `opcode` (a regular expression), e.g. `LDG.*128`."""
        return sum(bool(re.search(rf"\b(?:{opcode})", line)) for line in self.instructions)


def read_cubins(cubins: Sequence[bytes], arch: int) -> list[MachineCode]:
    """Reads cubins of one architecture.

    The disassembler takes longer to start than to read a kernel, so one process reads all of them.

    Args:
        cubins: ELF files as `ptxas` wrote them.
        arch: Compute capability of all of them, e.g. 90.
    """
    code = [b"".join(_code_sections(cubin)) for cubin in cubins]
    lines = iter(_disassemble(b"".join(code), arch))
    return [
        MachineCode(*_resources(cubin), tuple(next(lines) for _ in range(len(part) // _INSTRUCTION_BYTES)))
        for cubin, part in zip(cubins, code, strict=True)
    ]


def _code_sections(cubin: bytes) -> Iterator[bytes]:
    """Yields the executable sections of a 64-bit little-endian ELF file (`man 5 elf`), one per function."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    entry_size, num_entries, names_at = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + i * entry_size) for i in range(num_entries)]
    names = headers[names_at][4]
    for name, _, _, _, offset, size in headers:
        if cubin.startswith(b".text.", names + name):
            yield cubin[offset : offset + size]


def _disassemble(code: bytes, arch: int) -> list[str]:
    # Triton compiles for the architecture's own features from sm_90 on
    name = f"SM{arch}a" if arch >= 90 else f"SM{arch}"
    # needs no branch targets, and code of several kernels has no flow from one to the next
    listing = _run("nvdisasm", code, "--no-dataflow", "--binary", name)
    lines = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s*(.*?)\s*;", listing, re.MULTILINE)
    if len(lines) != len(code) // _INSTRUCTION_BYTES:
        raise RuntimeError(f"nvdisasm listed {len(lines)} instructions of {len(code)} bytes of {name} code")
    return lines


def _resources(cubin: bytes) -> tuple[int, int, int]:
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", _run("cuobjdump", cubin, "-res-usage")))
    return int(usage["REG"]), int(usage["STACK"]), int(usage["LOCAL"])


def _run(tool: str, content: bytes, *options: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return subprocess.run([path, *options, file.name], check=True, capture_output=True, text=True).stdout
