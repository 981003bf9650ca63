"""A run as tidy frames: a row per step, a row per answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hambench.errors import HambenchError, IncompleteError
from hambench.files import replacing
from hambench.records import Cell, Sample, SampleRecord
from hambench.store import Run

if TYPE_CHECKING:
    import pandas as pd

ENDINGS = (".parquet", ".csv")
CONDITIONS = ("model", "dtype", "kernels", "regime", "threads", "context", "max_new_tokens", "batch")


def conditions_of(cell: Cell) -> dict[str, str | int | None]:
    """Returns what a cell was run with besides its method and knobs, by field: every export repeats these."""
    return {name: getattr(cell, name) for name in CONDITIONS}


def steps_frame(run: Run) -> pd.DataFrame:
    """Returns a frame with a row per step of each measured answer; an answer that failed has one row, with its error.

    Counts and seconds are those of the step; ``position`` is the number of tokens before it in the answer. In a batch
    ``seconds`` is what a user waited, and the sum of ``share_s`` counts each round once.
    """
    import pandas as pd

    cells = {cell.label: cell for cell in run.header.cells}
    scores = {(s.cell, s.sample_id, s.repeat): s.value for s in run.scores if s.primary}
    rows = [
        row
        for record in run.measured
        for row in _rows(run, record, cells[record.cell], run.samples[record.sample_id], scores)
    ]
    # whole numbers stay whole where some are missing
    return pd.DataFrame(rows).convert_dtypes()


def write_steps(run: Run, path: Path) -> int:
    """Writes :func:`steps_frame` as Parquet or CSV, by the file's ending; returns the number of rows.

    Raises:
        HambenchError: If the ending is another.
        IncompleteError: If the run has no answers.
        OSError: If the file can't be written.
    """
    if path.suffix.lower() not in ENDINGS:
        raise HambenchError(f"the file to write must end in {' or '.join(ENDINGS)}, got {path.name!r}")
    frame = steps_frame(run)
    if frame.empty:
        raise IncompleteError(f"{run.header.run_id} has no answers to write: nothing was measured")
    with replacing(path) as temporary:
        if path.suffix.lower() == ".parquet":
            frame.to_parquet(temporary, index=False)
        else:
            spaced = frame.copy()
            spaced["token_ids"] = frame["token_ids"].map(_spaced)
            spaced.to_csv(temporary, index=False)
    return len(frame)


def _spaced(ids: Any) -> str | None:
    return " ".join(map(str, ids)) if isinstance(ids, list) else None


def _rows(
    run: Run,
    record: SampleRecord,
    cell: Cell,
    sample: Sample,
    scores: dict[tuple[str, str, int], float | None],
) -> Iterator[dict[str, Any]]:
    about: dict[str, Any] = {
        "run_id": run.header.run_id,
        "cell": cell.label,
        "method": cell.method,
        "knobs": json.dumps(cell.knobs),
        **conditions_of(cell),
        "suite": sample.suite,
        "category": sample.category,
        "task": sample.task,
        "sample_id": sample.sample_id,
        "turn": sample.turn or None,
        "repeat": record.repeat,
        "score": scores.get((record.cell, record.sample_id, record.repeat)),
        "other_load": record.other_load,
        "contaminated": record.contaminated,
        "error": record.error,
    }
    if record.trace is None:
        yield {**about, "step": None, "token_ids": None}
        return
    judged = run.judged(record)
    position = 0
    for number, step in enumerate(record.trace.steps):
        size = len(step.tokens)
        regrets = judged.regrets[position : position + size] if judged is not None else ()
        yield {
            **about,
            "prompt_tokens": record.trace.prompt_tokens,
            "finish": record.trace.finish,
            "step": number,
            "position": position,
            "num_tokens": size,
            "token_ids": list(step.tokens),
            "text": record.step_texts[number] if record.step_texts else None,
            "seconds": step.seconds,
            "target_forwards": step.target_forwards,
            "draft_forwards": step.draft_forwards,
            "micro_forwards": step.micro_forwards,
            "drafted": step.drafted,
            "accepted": step.accepted,
            "relaxed": step.relaxed,
            "discarded": step.discarded,
            "draft_seconds": step.draft_seconds,
            "share_s": step.share_s,
            "in_round": step.in_round,
            "kv_slots": step.kv_slots,
            "kv_bytes": step.kv_bytes,
            "peak_kv_bytes": step.peak_kv_bytes,
            "round_kv_bytes": step.round_kv_bytes,
            "regret": sum(regrets) if len(regrets) == size and judged is not None else None,
        }
        position += size
