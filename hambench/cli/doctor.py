"""``hambench doctor``: what works on this machine, and how to mend what doesn't."""

from __future__ import annotations

import click

from hambench.cli._streams import echo_json

_SIGNS = {"ok": "OK", "absent": "–", "bad": "!"}


@click.command()
@click.option("--json", "as_json", is_flag=True)
def command(as_json: bool) -> None:
    """Check CPU, GPU, memory, load, models and tools; nothing is changed and nothing is fetched.

    OK is well, – is something optional that is not there, ! spoils results or will fail.
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
