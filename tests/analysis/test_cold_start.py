from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from synthetic import header

from hambench.analysis.cold_start import pays_from, start_ups
from hambench.records import Cell, GenerationTrace, SampleRecord, StepRecord
from hambench.store import Run


def answer(bytes_per_step: int, tokens_per_step: int) -> GenerationTrace:
    first = StepRecord(tokens=(1,), seconds=1.0, kv_bytes=1000)
    later = [
        StepRecord(tokens=(1,) * tokens_per_step, seconds=1.0, kv_bytes=1000 + bytes_per_step * (i + 1))
        for i in range(6)
    ]
    return GenerationTrace(prompt_tokens=10, steps=(first, *later), finish="length")


def test_extra_weights_are_paid_by_what_each_token_saves() -> None:
    # 100 bytes a token against 100 bytes for two tokens
    assert pays_from(5001, [answer(100, 2)], [answer(100, 1)]) == 101


def test_a_cache_that_grows_as_fast_or_is_unknown_never_pays() -> None:
    assert pays_from(1, [answer(100, 1)], [answer(100, 1)]) is None
    assert pays_from(1, [answer(300, 2)], [answer(100, 1)]) is None
    unknown = dataclasses.replace(answer(1, 1).steps[0], kv_bytes=None)
    assert pays_from(1, [dataclasses.replace(answer(1, 2), steps=(unknown,) * 3)], [answer(100, 1)]) is None


def test_a_cells_start_is_its_first_reading_and_not_that_of_a_resume() -> None:
    cells = tuple(
        Cell(method=name, label=name, knobs={}, model="m", dtype="float32")
        for name in ("vanilla", "hamburger")
    )
    records = tuple(
        SampleRecord(cell=cell.label, sample_id="s", prompt_hash="h", trace=answer(100, 1 + i))
        for i, cell in enumerate(cells)
    )
    reading = {"kind": "warmup", "cell": "hamburger", "passes_s": [3.0, 1.0, 1.0, 1.0], "settled": True}
    telemetry = (
        {**reading, "cold_s": 5.0, "extra_weight_bytes": 5000},
        {**reading, "cold_s": 1.0, "extra_weight_bytes": 5000},
    )
    starts = start_ups(Run(Path("run"), header(cells, num_samples=1), {}, records, (), telemetry))
    assert list(starts) == ["hamburger"]
    start = starts["hamburger"]
    assert start.cold_start_s == pytest.approx(5)
    assert (start.num_passes, start.settled, start.pays_from_tokens) == (4, True, 100)
    assert start.shares is None


def test_a_cell_that_was_warm_with_anothers_weights_has_no_cold_start() -> None:
    cells = tuple(
        Cell(method="hamburger", label=name, knobs={}, model="m", dtype="float32")
        for name in ("c=0.5", "c=0.9")
    )
    first = {
        "kind": "warmup",
        "cell": "c=0.5",
        "passes_s": [3.0, 1.0, 1.0, 1.0],
        "settled": True,
        "cold_s": 5.0,
    }
    second = {**first, "cell": "c=0.9", "passes_s": [1.0], "settled": False, "cold_s": 1.5, "shares": "c=0.5"}
    starts = start_ups(Run(Path("run"), header(cells, num_samples=1), {}, (), (), (first, second)))
    assert (starts["c=0.5"].cold_start_s, starts["c=0.5"].shares) == (5.0, None)
    assert (starts["c=0.9"].cold_start_s, starts["c=0.9"].shares) == (None, "c=0.5")
    # as settled as the cell whose passes were counted
    assert (starts["c=0.9"].num_passes, starts["c=0.9"].settled) == (1, True)
