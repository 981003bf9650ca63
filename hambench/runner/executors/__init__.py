"""Executors: make a run's records in this process or on the workers of a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from hambench.errors import HambenchError, UnknownNameError

if TYPE_CHECKING:
    from hambench.runner.generator import Generator, Workload
    from hambench.store import RunWriter

NAMES = ("local", "ray")


class Executor(Protocol):
    """Makes the records of a run. The store has a single writer, the driver's process."""

    def run(self, generator: Generator, writer: RunWriter, work: Workload) -> None:
        """Makes the records of ``work``; see :meth:`hambench.runner.generator.Generator.run`."""

    def placement(self) -> tuple[str, ...]:
        """Returns one line per worker that would be used, for ``hambench plan``."""


class LocalExecutor:
    """Makes the records in this process."""

    def run(self, generator: Generator, writer: RunWriter, work: Workload) -> None:
        """Makes the records one after another."""
        generator.run(writer, work)

    def placement(self) -> tuple[str, ...]:
        """Returns no lines: there is one process."""
        return ()


def get_executor(name: str, *, ray_address: str | None = None) -> Executor:
    """Returns the executor with this name.

    Raises:
        HambenchError: For an unknown name, or if Ray is asked for and not installed.
    """
    if name == "local":
        if ray_address is not None:
            raise HambenchError("a Ray address needs --executor ray")
        return LocalExecutor()
    if name != "ray":
        raise UnknownNameError("executor", name, NAMES)
    try:
        from hambench.runner.executors.ray_executor import RayExecutor
    except ImportError as error:
        if error.name != "ray":
            raise
        raise HambenchError("Ray is not installed: pip install 'hambench[ray]'") from error
    return RayExecutor(ray_address)
