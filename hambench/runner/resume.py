"""Checks that a resumed run continues under the conditions of the original one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hambench.errors import HambenchError
from hambench.records import RunHeader
from hambench.runner.backend import INSTRUCTION_SET
from hambench.runner.generator import DecodingOptions

if TYPE_CHECKING:
    from hambench.models.target import TargetModel


def decoding_options(header: RunHeader) -> DecodingOptions:
    """Returns the decoding options that a run started with."""
    names = [field.name for field in dataclasses.fields(DecodingOptions)]
    return DecodingOptions(**{name: getattr(header, name) for name in names})


def refuse_other_model(header: RunHeader, target: TargetModel) -> None:
    """Refuses a target whose weights differ from those that the run started with.

    Raises:
        HambenchError: With both digests.
    """
    before, now = str(header.model.get("sha256")), target.identity.sha256
    if before != now:
        raise HambenchError(
            f"{target.name} has changed since this run began (weights {before[:12]} then, {now[:12]} now): "
            "start a new run"
        )


def refuse_other_instruction_set(header: RunHeader, facts: Mapping[str, str]) -> None:
    """Refuses native kernels of another instruction set than a run began with: a cell keeps to one.

    Args:
        header: The run's.
        facts: What :func:`~hambench.runner.backend.backend_facts` says here and now.

    Raises:
        HambenchError: With both sets and what to do.
    """
    before, now = header.environment.get(INSTRUCTION_SET), facts.get(INSTRUCTION_SET)
    # runs of older versions say nothing of it
    if before is not None and now is not None and before != now:
        raise HambenchError(
            f"this run began with the native kernels for {before} and would go on with those for {now}, whose tokens "
            f"may differ: set HAMBENCH_CPU_ISA={before} where the CPU has it, or start a new run"
        )
