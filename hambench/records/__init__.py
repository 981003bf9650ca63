"""The spine of every run: Cell → StepRecord → GenerationTrace → SampleRecord → Measurement → Comparison.

Frozen dataclasses of plain values; counts are stored and rates derived (see :mod:`hambench.analysis.metrics`).
``msgspec`` reads and writes them as JSON and checks types on the way in. Nothing here imports torch.
"""

from __future__ import annotations

from hambench.records.answers import (
    ALONE_SHARE,
    BUSY_LOAD,
    Fidelity,
    FinishReason,
    GenerationTrace,
    SampleRecord,
    Score,
    StepRecord,
    answer_key,
)
from hambench.records.asked import Cell, Edition, Sample, Truncation
from hambench.records.comparison import Comparison, Estimate, Verdict
from hambench.records.header import SCHEMA_VERSION, RunHeader

__all__ = [
    "ALONE_SHARE",
    "BUSY_LOAD",
    "SCHEMA_VERSION",
    "Cell",
    "Comparison",
    "Edition",
    "Estimate",
    "Fidelity",
    "FinishReason",
    "GenerationTrace",
    "RunHeader",
    "Sample",
    "SampleRecord",
    "Score",
    "StepRecord",
    "Truncation",
    "Verdict",
    "answer_key",
]
