"""Checks whether lines of a run folder fit their run; each function returns the reason if not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from hambench.groups import Bounds
from hambench.records import Fidelity, Sample, SampleRecord, Score


def misfit(item: SampleRecord | Score, cells: set[str], samples: dict[str, Sample]) -> str | None:
    """Returns why a record or score does not belong to its run; ``None`` if it does."""
    if item.cell not in cells:
        return f"run.json names no cell {item.cell!r}"
    if item.sample_id not in samples:
        return f"prompts.jsonl holds no sample {item.sample_id!r}"
    if isinstance(item, SampleRecord) and item.trace is not None:
        num_steps = len(item.trace.steps)
        if num_steps == 0:
            return "the trace has no steps: an answer has at least its prefill"
        untimed = next((n for n, step in enumerate(item.trace.steps) if n and step.seconds is None), None)
        if untimed is not None:
            return f"step {untimed} has no seconds: only the first may lack them, where its prompt was copied"
        if item.step_texts and len(item.step_texts) != num_steps:
            return f"{len(item.step_texts)} step_texts for {num_steps} steps: there must be one for each"
    return None


_READINGS: dict[str, dict[str, Any]] = {
    "warmup": {"cell": str, "cold_s": float, "passes_s": list[float], "settled": bool},
    "bandwidth": {"read": float | None},
    "fidelity": {"seconds": float, "num_distinct": int, "num_answers": int},
    "samples": {"seconds": float},
    "budget": {"budget_s": float, "spent_s": float, "num_first": int, "num_added": int},
}


def odd_reading(reading: dict[str, Any]) -> str | None:
    """Returns why a reading of the machine is invalid; ``None`` if it is valid. Ignores other kinds and fields."""
    fields = {**_READINGS.get(str(reading.get("kind")), {}), "extra_weight_bytes": int | None}
    for name, kind in fields.items():
        try:
            msgspec.convert(reading.get(name), kind)
        except msgspec.ValidationError as error:
            return f"{name} of a reading: {error}"
    return None


class _Plan(msgspec.Struct):
    """The fields of a task in a header that are read."""

    own: bool = False
    config: str = ""
    settings: dict[str, Any] = {}
    metric: str = ""
    category: str = ""
    shown_by: str = ""
    runs_code: bool = False
    bounds: Bounds | None = None


class _Spec(msgspec.Struct):
    """The suite's fields in a header."""

    suite: str = ""
    averages: str | None = None
    asks_accuracy: bool = True
    tasks: dict[str, _Plan] = {}

    def __post_init__(self) -> None:
        if self.averages and not self.suite:
            raise ValueError("suite must be named where averages are asked for, got ''")


def odd_spec(spec: dict[str, Any]) -> str | None:
    """Returns why a header's ``suite_spec`` is invalid; ``None`` if it is valid. Ignores other fields."""
    try:
        msgspec.convert(spec, _Spec)
    except msgspec.ValidationError as error:
        return f"suite_spec: {error}"
    return None


_ROUNDING = 1e-3
"""Nats by which float32 rounding may put a log-probability above 0."""


def misjudged(item: Fidelity, answers: Mapping[str, SampleRecord]) -> str | None:
    """Returns why a judgement does not belong to the answer that it names; ``None`` if it does.

    Args:
        item: The judgement; one without a matching record is ignored.
        answers: One record per answer, by :func:`~hambench.records.answer_key`.
    """
    record = answers.get(item.answer)
    if record is None or record.trace is None or item.error is not None:
        return None
    if item.sample_id != record.sample_id:
        return f"the answer {item.answer} is one to {record.sample_id!r}, not to {item.sample_id!r}"
    num_tokens = len(record.trace.token_ids)
    if len(item.regrets) != num_tokens:
        return f"{len(item.regrets)} regrets for an answer of {num_tokens} tokens: there must be one for each"
    for name, values in (("regrets", item.regrets), ("gaps", item.gaps)):
        if values and min(values) < 0:
            return f"{name} are differences to the best and must be >= 0, got {min(values)}"
    if item.logprobs and max(item.logprobs) > _ROUNDING:
        return f"logprobs must be <= 0, got {max(item.logprobs)}"
    return None
