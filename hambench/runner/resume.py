"""Checks that a resumed run continues under the conditions of the original one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from hambench.errors import HambenchError
from hambench.records import RunHeader
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
