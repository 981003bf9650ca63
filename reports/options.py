"""The options of a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """Options for the content of a report."""

    samples: SampleLimit = 200
    """Maximum number of samples in the drill-down; the worst and the most informative come first."""
    plain_bytes: int = 2_000_000
    """Approximate size in bytes of the samples in plain HTML; further samples are packed (see
    :mod:`hambench.reports.page.packing`)."""
    sample_bytes: int = 8_000_000
    """Approximate size limit in bytes of all samples before packing, unless ``samples`` is ``all``."""
    include_host: bool = False
    """Whether to keep absolute paths in commands and model names."""
    script: bool = True
    """Whether the page has a script; without it there is no sorting or filtering, and no sample is packed."""
    history: Path | None = None
    """Folder of ``hambench history``, for the regression page."""
    kernels: Path | None = None
    """JSON of ``hambench bench kernels``."""
    profile: Path | None = None
    """JSON of ``hambench profile``."""
    published: bool = False
    """Whether to show the HAMburger paper's reported numbers next to the run's."""
    refresh_s: int | None = None
    """Seconds between reloads of the page during a run."""


SampleLimit = int | Literal["all", "none"]
