"""``hambench bench regimes``: times decode steps with and without fused kernels and CUDA graphs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from hambench.cli._options import UserPath
from hambench.files import write_text


@click.command()
@click.option(
    "--shape", "shape_name", default="llama-3.2-1b", show_default=True, metavar="NAME", help="Model shape."
)
@click.option("--device", "device_name", default="cuda", show_default=True, metavar="NAME")
@click.option(
    "--context",
    default=1000,
    show_default=True,
    type=click.IntRange(min=1, max=4000),
    help="Cached positions.",
)
@click.option(
    "--out",
    type=UserPath(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Also write .json and .md files.",
)
@click.option("--dry-run", is_flag=True, help="Only run the forced steps on a CPU, without measuring.")
@click.option("--json", "as_json", is_flag=True, help="Print the raw repeats as JSON instead of the table.")
def command(
    shape_name: str, device_name: str, context: int, out: Path | None, dry_run: bool, as_json: bool
) -> None:
    """Time a model shape's decode steps in each regime (CUDA only).

    It times target steps, drafts, verifications, micro-steps and forced macro-steps.
    """
    from hambench.bench.regimes import RegimeReport, markdown, run, walk

    def tell(text: str) -> None:
        click.echo(text, err=True)

    def save(report: RegimeReport) -> None:
        if out is not None:
            page = out / f"regimes-{report.shape}.md"
            write_text(page, markdown(report))
            write_text(page.with_suffix(".json"), json.dumps(report.to_json(), indent=2) + "\n")

    report = (
        walk(tell) if dry_run else run(shape_name, device_name, context=context, progress=tell, save=save)
    )
    save(report)
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else markdown(report).rstrip("\n"))
