"""The ahead-of-time gate: compiles every fused kernel without a GPU and inspects the machine code.

`python -m hambench.kernels.tools.aot` compiles each launch that the ops make for the named model shapes, with Triton's
own `ptxas`, for sm_80 and sm_90. It fails if one spills registers, uses a stack, or reads its weights in loads narrower
than 16 bytes. It runs no kernel, so it says nothing about results or speed.

It records the launches from the ops themselves, on meta tensors, so that it compiles what the ops launch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from hambench.kernels import _dispatch
from hambench.kernels.tools.machine_code import MachineCode, read_cubins
from hambench.kernels.tools.shapes import SHAPES, op_calls

ARCHITECTURES = (80, 90)
MAX_REGISTERS = 255


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel with the arguments that determine its code."""

    kernel: Any
    """The `triton.JITFunction`."""
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, Any]
    weight_loads: int
    """16-byte weight loads that one thread issues per loop iteration; 0 for kernels that stream no weights."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Facts about the machine code of one launch."""

    call: str
    kernel: str
    arch: int
    registers: int
    stack_bytes: int
    spills: int
    """Loads and stores in local memory."""
    wide_loads: int
    """128-bit global loads."""
    weight_loads: int
    row_in_one_warp: bool
    """True if a single warp's lanes share each weight row, as M-invariance requires (also true if none is read)."""

    @property
    def faults(self) -> tuple[str, ...]:
        """Reasons for which the gate refuses this launch."""
        checks = {
            f"{self.registers} registers": self.registers > MAX_REGISTERS,
            f"a stack of {self.stack_bytes} bytes": self.stack_bytes > 0,
            f"{self.spills} local-memory accesses": self.spills > 0,
            f"{self.wide_loads} loads of 16 bytes, fewer than {self.weight_loads}": self.wide_loads
            < self.weight_loads,
            "a row's reduction across warps": not self.row_in_one_warp,
        }
        return tuple(what for what, found in checks.items() if found)


def compile_all(archs: tuple[int, ...] = ARCHITECTURES, only: str = "") -> list[Compiled]:
    """Compiles each launch of every op whose name matches `only` (a regular expression) once.

    Raises:
        RuntimeError: Under `TRITON_INTERPRET=1`, which leaves nothing to compile.
    """
    calls = (
        (f"{shape.name}: {op}", call)
        for shape in SHAPES.values()
        for op, call in op_calls(shape, device=torch.device("meta"))
    )
    return compile_calls(((name, call) for name, call in calls if re.search(only, name)), archs)


def compile_calls(
    calls: Iterable[tuple[str, Callable[[], object]]], archs: tuple[int, ...] = ARCHITECTURES
) -> list[Compiled]:
    """Compiles each launch that the named calls make on meta tensors once.

    Raises:
        RuntimeError: Under `TRITON_INTERPRET=1`, which leaves nothing to compile.
    """
    if _dispatch.interpreting():
        raise RuntimeError("TRITON_INTERPRET must be unset: interpreted kernels have no machine code")
    unique: dict[tuple[Any, ...], tuple[str, Launch]] = {}
    for name, call in calls:
        for launch in record(call):
            identity = (launch.kernel.fn.__name__, str(launch.signature), str(launch.constants))
            unique.setdefault(identity, (name, launch))
    return [compiled for arch in archs for compiled in compile_launches(list(unique.values()), arch)]


def record(call: Callable[[], object]) -> list[Launch]:
    """Records the launches that a call of an op makes, without running them."""
    launches: list[Launch] = []
    with _recording(launches):
        call()
    return launches


@contextmanager
def _recording(launches: list[Launch]) -> Iterator[None]:
    from triton.runtime import JITFunction

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(_launch(kernel, args, kwargs))

    obstacle, original = _dispatch._obstacle, JITFunction.run
    _dispatch._obstacle = lambda device: None
    JITFunction.run = run
    try:
        yield
    finally:
        _dispatch._obstacle, JITFunction.run = obstacle, original


POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def _launch(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
    arguments = dict(zip(kernel.arg_names, args, strict=False))
    arguments |= {name: kwargs.pop(name) for name in kernel.arg_names if name in kwargs}
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    for parameter in kernel.params:
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    weight_loads = 0
    if "UNROLL" in constants:
        # one program is one warp, and each lane reads 16 bytes of every row of a tile
        weight_loads = constants["BN"] * constants["UNROLL"] * (2 if "p_gate" in signature else 1)
    return Launch(kernel, signature, constants, kwargs, weight_loads)


def compile_launches(launches: Sequence[tuple[str, Launch]], arch: int) -> list[Compiled]:
    """Compiles named launches for `sm_<arch>` and reads their machine code."""
    kernels = [_compile(launch, arch) for _, launch in launches]
    code = read_cubins([kernel.asm["cubin"] for kernel in kernels], arch)
    return [
        _judged(call, launch, arch, kernel, read)
        for (call, launch), kernel, read in zip(launches, kernels, code, strict=True)
    ]


def _compile(launch: Launch, arch: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    # torch aligns allocations to at least 16 bytes, so Triton's launcher sees the same
    aligned = [(index,) for index, kind in enumerate(launch.signature.values()) if kind.startswith("*")]
    source = ASTSource(
        launch.kernel,
        dict(launch.signature),
        dict(launch.constants),
        {path: [["tt.divisibility", 16]] for path in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(launch.options))


def _judged(call: str, launch: Launch, arch: int, kernel: Any, code: MachineCode) -> Compiled:
    return Compiled(
        call=call,
        kernel=launch.kernel.fn.__name__,
        arch=arch,
        registers=code.registers,
        stack_bytes=code.stack_bytes,
        spills=code.count(r"LDL\b|STL\b") + code.local_bytes,
        wide_loads=code.count(r"LDG\.\S*128"),
        weight_loads=launch.weight_loads,
        row_in_one_warp=launch.weight_loads == 0 or _row_in_one_warp(kernel.asm["ttgir"]),
    )


def _row_in_one_warp(ttgir: str) -> bool:
    """Returns True if the weight tile's layout keeps each row within one warp's lanes."""
    layouts = re.findall(r"threadsPerWarp = \[(\d+), (\d+)\], warpsPerCTA = \[\d+, (\d+)\]", ttgir)
    return bool(layouts) and all(layout == ("1", "32", "1") for layout in layouts)


def main(arguments: list[str] | None = None) -> int:
    """Compiles the kernels, prints one JSON object per launch, and returns 1 if the gate refuses one."""
    parser = argparse.ArgumentParser(
        prog="python -m hambench.kernels.tools.aot", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument(
        "--arch", type=int, action="append", help="compute capability, e.g. 90; default 80 and 90"
    )
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="matching calls only, e.g. 'llama.*lm_head'"
    )
    options = parser.parse_args(arguments)
    compiled = compile_all(tuple(options.arch or ARCHITECTURES), options.only)
    for one in compiled:
        print(json.dumps({**dataclasses.asdict(one), "faults": one.faults}))
    refused = [one for one in compiled if one.faults]
    for one in refused:
        print(f"{one.kernel} for sm_{one.arch} ({one.call}): {', '.join(one.faults)}", file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
