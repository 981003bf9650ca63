"""Options of a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """What to leave in or out."""

    samples: SampleLimit = 200
    """How many samples the drill-down may hold; the worst and the most telling come first."""
    plain_bytes: int = 2_000_000
    """Rough size of the samples that stand in the page as plain HTML; those past it are packed (see
    :mod:`hambench.reports.page.packing`)."""
    sample_bytes: int = 8_000_000
    """Rough size of all samples before packing, whatever ``samples`` says (``all`` lifts it)."""
    include_host: bool = False
    """Whether absolute paths in commands and model names stay."""
    script: bool = True
    """Whether the page has its script; without it only sorting and filtering are lost, and no sample is packed."""
    history: Path | None = None
    """Folder of ``hambench history``, for the page of regressions."""
    kernels: Path | None = None
    """JSON of ``hambench bench kernels``."""
    profile: Path | None = None
    """JSON of ``hambench profile``."""
    published: bool = False
    """Whether to put the numbers that the HAMburger paper reports beside the run's."""
    refresh_s: int | None = None
    """Reload the page every so many seconds, for a run that goes on."""


SampleLimit = int | Literal["all", "none"]
