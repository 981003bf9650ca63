"""``hambench bench regimes``: decode steps with and without fused kernels and CUDA graphs."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.option("--shape", "shape_name", default="llama-3.2-1b", show_default=True, metavar="NAME")
@click.option("--device", "device_name", default="cuda", show_default=True, metavar="NAME")
@click.option("--context", default=1000, show_default=True, type=click.IntRange(min=1, max=4000))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Also write .json and .md.",
)
@click.option("--json", "as_json", is_flag=True, help="Raw repeats instead of the table.")
def command(shape_name: str, device_name: str, context: int, out: Path | None, as_json: bool) -> None:
    """Time steps, INT8 drafts, verifications and micro-steps of a shape in each regime (CUDA only)."""
    from hambench.bench_regimes import markdown, run

    report = run(shape_name, device_name, context=context, progress=lambda text: click.echo(text, err=True))
    text = json.dumps(report.to_json(), indent=2) + "\n"
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"regimes-{shape_name}.json").write_text(text, encoding="utf-8")
        (out / f"regimes-{shape_name}.md").write_text(markdown(report), encoding="utf-8")
    click.echo(text if as_json else markdown(report), nl=False)
