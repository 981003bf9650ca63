"""``hambench bench``: benchmarks of hambench's own parts; each checks results before it prints a speed."""

from __future__ import annotations

import click

from hambench.cli import LazyGroup


@click.group(cls=LazyGroup, package=__name__)
def command() -> None:
    """Benchmark a part of hambench itself."""
