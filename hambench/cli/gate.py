"""``hambench gate``: measures base and head, and decides whether the head is worse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hambench.cli._options import FiniteRange, UserPath
from hambench.cli._outcome import EXIT_CODES, finish, outcome_options
from hambench.cli._repeats import ListOption
from hambench.errors import HambenchError

if TYPE_CHECKING:
    from hambench.gating.checks import Outcome
    from hambench.gating.gate import GateRequest


@click.command(
    epilog=EXIT_CODES
    + """
\b
Examples:
  hambench gate --only exact                  counts against the committed file, in seconds
  hambench gate --only exact --update-baseline
  hambench gate --base-ref origin/main --markdown comment.md --junit gate.xml
  hambench gate --only speed --base vanilla --head prompt_lookup
"""
)
@click.option("--config", type=UserPath(path_type=Path), help="Defaults to ./hambench.toml.")
@click.option(
    "--only",
    cls=ListOption,
    metavar="KINDS",
    help="Any of exact, speed, accuracy; defaults to all declared ones.",
)
@click.option("--base-ref", metavar="COMMIT", help="Build the base from this commit, in its own environment.")
@click.option(
    "--base", "base_method", metavar="METHOD", help="Compare two methods of this code instead of two commits."
)
@click.option("--head", "head_method", metavar="METHOD", help="Defaults to that of --base (an A/A gate).")
@click.option("--blocks", type=int, help="Number of paired blocks, each in fresh processes.")
@click.option("--threshold", type=FiniteRange(), help="Smallest change to report: 0.05 is 5 %.")
@click.option("--update-baseline", is_flag=True, help="Accept this code's counts as the new baseline.")
@click.option(
    "--new-baseline", type=UserPath(path_type=Path), help="Also write this code's counts to this file."
)
@click.option("--noise", type=UserPath(path_type=Path), help="Folder of `hambench calibrate`'s files.")
@outcome_options
def command(
    config: Path | None, only: str | None, update_baseline: bool, noise: Path | None, **options: Any
) -> None:
    """Measure base and head; exit with 1 on a regression.

    hambench.toml declares the gates.
    """
    from hambench.gating.config import FILE, read_config

    path = config if config is not None else Path(FILE)
    gate = read_config(path)
    own = {name: options.pop(name) for name in ("blocks", "threshold")}
    ways = {name: options.pop(name) for name in ("base_ref", "base_method", "head_method", "new_baseline")}
    if ways["head_method"] is not None and ways["base_method"] is None:
        raise HambenchError("--head METHOD needs --base METHOD")
    if ways["base_ref"] is not None and ways["base_method"] is not None:
        raise HambenchError("--base-ref compares two versions, --base two methods: give one of them")
    root = path.resolve().parent
    if update_baseline:
        _update(gate.exact, root)
        return

    def make() -> Outcome:
        from hambench.gating.gate import GateRequest, run_gates

        request: GateRequest = GateRequest(
            config=_with(gate, **own),
            root=root,
            only=tuple(word.strip() for word in (only or "").split(",") if word.strip()),
            noise=noise if noise is not None else default_noise(),
            **ways,
        )
        return run_gates(request, say=lambda line: click.echo(line, err=True))

    finish(make, **options)


def default_noise() -> Path:
    """Returns the default folder of calibration files."""
    from hambench.paths import cache_dir

    return cache_dir() / "noise"


def _with(gate: Any, **own: Any) -> Any:
    import msgspec

    given = {name: value for name, value in own.items() if value is not None}
    if not given:
        return gate
    if gate.speed is None:
        raise HambenchError(
            "--blocks and --threshold belong to the speed gate, and hambench.toml has no [gate.speed]"
        )
    return msgspec.structs.replace(gate, speed=msgspec.structs.replace(gate.speed, **given))


def _update(exact: Any, root: Path) -> None:
    from hambench.gating.gate import update_baseline

    if exact is None:
        raise HambenchError("--update-baseline needs a [gate.exact] in hambench.toml")
    path, measured = update_baseline(exact, root)
    click.echo(f"{path}: {len(measured.cells)} cells; review the difference and commit it")
