"""``hambench doctor``: checks what works on this machine, and says how to fix what doesn't."""

from __future__ import annotations

import click

from hambench.cli._streams import echo_json

_SIGNS = {"ok": "OK", "absent": "–", "bad": "!"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Check this machine: CPU, GPU, memory, load, models and tools.

    It changes nothing and fetches nothing. OK means that the check passed, – that something optional is missing, !
    that something spoils results or will fail.
    """
    import dataclasses

    from hambench.doctor import CHECKS

    for check in CHECKS:
        finding = check.run()
        if as_json:
            echo_json({"check": check.name, **dataclasses.asdict(finding)})
            continue
        click.echo(f"{_SIGNS[finding.state]:<2} {check.name:<13} {finding.detail}")
        if finding.mend:
            click.echo(f"{'':<17}→ {finding.mend}")
