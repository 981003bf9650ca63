"""``hambench calibrate``: measures this machine's noise floor."""

from __future__ import annotations

from pathlib import Path

import click

from hambench.cli._options import UserPath


@click.command(
    epilog="""
\b
Examples:
  hambench calibrate
  hambench calibrate --method prompt_lookup --blocks 16
"""
)
@click.option("--config", type=UserPath(path_type=Path), help="Defaults to ./hambench.toml, if there is one.")
@click.option("--method", default="vanilla", show_default=True, help="The method to measure against itself.")
@click.option("--model", help="Defaults to the model of [gate.speed].")
@click.option("--blocks", type=int, help="Number of paired blocks; defaults to that of [gate.speed].")
@click.option(
    "--noise", type=UserPath(path_type=Path), help="Folder for the result; defaults to a cache folder."
)
def command(
    config: Path | None, method: str, model: str | None, blocks: int | None, noise: Path | None
) -> None:
    """Measure this machine's noise floor with an A/A test.

    It gates a method against itself. `hambench gate` refuses a threshold below the floor of its machine.
    """
    import msgspec

    from hambench.cli.gate import default_noise
    from hambench.errors import IncompleteError
    from hambench.gating.checks import CrashedError, ExitCode
    from hambench.gating.config import FILE, SpeedGate, read_config
    from hambench.gating.gate import calibrate
    from hambench.gating.noise import save_calibration

    path = config or (Path(FILE) if Path(FILE).is_file() else None)
    gate = (read_config(path).speed if path is not None else None) or SpeedGate()
    given = {name: value for name, value in (("model", model), ("blocks", blocks)) if value is not None}
    gate = msgspec.structs.replace(gate, **given)
    try:
        found = calibrate(gate, method, say=lambda line: click.echo(line, err=True))
    except CrashedError as error:
        click.echo(f"hambench: crashed: {error}", err=True)
        raise SystemExit(int(ExitCode.CRASHED)) from error
    except IncompleteError as error:
        click.echo(f"hambench: {error}", err=True)
        raise SystemExit(int(ExitCode.INCOMPLETE)) from error
    kept = save_calibration(noise if noise is not None else default_noise(), found)
    click.echo(f"{found.method} against itself on {found.model}, {found.machine}: {found.num_blocks} blocks")
    click.echo(
        f"difference measured between equals: {100 * found.effect:+.2f} %, standard deviation per block {found.sd:.2%}"
    )
    for number in (6, 10, 16, 24):
        floor = found.floor(number)
        called = found.loss_found(number, floor)
        click.echo(
            f"noise floor with {number:2d} blocks: {floor:.1%}; at that threshold a loss of {called:.1%} is detected "
            "4 times in 5"
        )
    click.echo(f"saved to {kept}")
