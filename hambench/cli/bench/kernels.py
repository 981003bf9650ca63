"""``hambench bench kernels``: checks each decoding kernel's numerics, then measures its bandwidth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hambench.cli._options import UserPath
from hambench.cli._repeats import ListOption
from hambench.errors import HambenchError, UnknownNameError
from hambench.files import write_text

if TYPE_CHECKING:
    pass


@click.command()
@click.option(
    "--shape", "shape_name", default="llama-3.2-1b", show_default=True, metavar="NAME", help="Model shape."
)
@click.option(
    "--device", "device_name", metavar="NAME", help="cpu, cuda or cuda:1; defaults to the GPU, if any."
)
@click.option(
    "--rows",
    cls=ListOption,
    default="1,5",
    show_default=True,
    metavar="LIST",
    help="Rows per call, 1 to 8.",
)
@click.option("--only", default="", metavar="TEXT", help="Only ops whose name contains this.")
@click.option("--compile/--no-compile", "compiled", default=True, help="Also time torch.compile (CUDA).")
@click.option(
    "--tune",
    type=UserPath(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Search for the fastest tiles first, write them to this table, and use it (CUDA).",
)
@click.option(
    "--tiles",
    type=UserPath(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Use this table of tiles (CUDA).",
)
@click.option(
    "--out",
    type=UserPath(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Also write .json and .md files.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the raw repeats as JSON instead of the table.")
def command(
    shape_name: str,
    device_name: str | None,
    rows: str,
    only: str,
    compiled: bool,
    tune: Path | None,
    tiles: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Check fused kernels against their references, then time them.

    Each is timed next to plain torch and, with --compile, torch.compile.
    """
    import torch

    from hambench.bench.kernels import markdown
    from hambench.kernels import tuning
    from hambench.kernels.tools import bench
    from hambench.kernels.tools.shapes import SHAPES
    from hambench.models.target import device_of

    if shape_name not in SHAPES:
        raise UnknownNameError("shape", shape_name, SHAPES)
    device = device_of(device_name)
    counts = _rows(rows)

    def say(text: str) -> None:
        click.echo(text, err=True)

    if device.type == "cpu":
        say("no CUDA device found: timing plain torch on the CPU only, no fused kernels")
    try:
        if tiles is not None:
            tuning.use_table(tiles)
        if tune is not None:
            if device.type == "cpu":
                raise HambenchError("--tune needs a CUDA device to measure tiles on")
            found = bench.tune(SHAPES[shape_name], device, dtype=torch.bfloat16, progress=say)
            write_text(
                tune, tuning.table_text(tune, bench.device_name(device), bench.triton_version(), found)
            )
            tuning.use_table(tune)
        report = bench.run(
            SHAPES[shape_name], device, rows=counts, compiled=compiled, only=only, progress=say
        )
    except (bench.NumericsError, ValueError) as error:
        raise HambenchError(str(error)) from error
    text = json.dumps(report.to_json(), indent=2) + "\n"
    if out is not None:
        write_text(out / f"kernels-{shape_name}.json", text)
        write_text(out / f"kernels-{shape_name}.md", markdown(report))
    click.echo(text if as_json else markdown(report), nl=False)


def _rows(text: str) -> list[int]:
    from hambench.kernels import MAX_ROWS

    counts = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not all(1 <= count <= MAX_ROWS for count in counts):
        raise HambenchError(
            f"--rows must be comma-separated whole numbers from 1 to {MAX_ROWS}, got {text!r}"
        )
    return counts
