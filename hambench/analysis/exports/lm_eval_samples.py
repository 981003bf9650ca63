"""A run as lm-eval's ``--log_samples`` would have written it: a folder per cell, a file per task, a line per answer."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from hambench.errors import IncompleteError
from hambench.files import write_text
from hambench.records import Sample, SampleRecord, Score
from hambench.store import Run


def write_lm_eval_samples(run: Run, folder: Path) -> list[Path]:
    """Writes ``CELL/samples_TASK_TIME.jsonl`` for each cell and task; returns the files.

    A line has lm-eval's keys, every metric of the answer, and its text before and after the task's own cut. Of several
    repeats the first is taken, and answers that failed are left out: lm-eval has no word for them.

    Raises:
        IncompleteError: If no answer is left.
    """
    scores: dict[tuple[str, str], list[Score]] = {}
    for score in run.scores:
        if score.repeat == 0:
            scores.setdefault((score.cell, score.sample_id), []).append(score)
    cells = {cell.label: cell for cell in run.header.cells}
    lines: dict[tuple[str, str], list[str]] = {}
    for record in run.measured:
        if record.repeat != 0 or record.text is None:
            continue
        sample = cells[record.cell].asks(run.samples[record.sample_id])
        given = scores.get((record.cell, record.sample_id), [])
        line = json.dumps(_example(sample, record, given), ensure_ascii=False, default=str)
        lines.setdefault((record.cell, sample.task), []).append(line)
    if not lines:
        raise IncompleteError(
            f"{run.header.run_id} has no answers to write: nothing was measured, or every answer failed"
        )
    time = re.sub(r"[^0-9T.-]", "-", run.header.created_at.partition("+")[0])
    written = []
    for (cell, task), texts in lines.items():
        path = folder / _plain(cell) / f"samples_{_plain(task)}_{time}.jsonl"
        write_text(path, "\n".join(texts) + "\n")
        written.append(path)
    return written


def _example(sample: Sample, record: SampleRecord, scores: list[Score]) -> dict[str, Any]:
    prompt = sample.prompt if record.prompt is None else record.prompt
    target: Any = list(sample.references) if len(sample.references) != 1 else sample.references[0]
    generation = {"until": list(sample.stop), "max_gen_toks": sample.max_new_tokens}
    metrics = {score.metric: score.value for score in scores if score.value is not None}
    return {
        "doc_id": sample.doc_id,
        "doc": sample.doc,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": generation}},
        "resps": [["".join(record.step_texts) or record.text]],
        "filtered_resps": [record.text],
        "filter": "none",
        "metrics": list(metrics),
        "doc_hash": _hash(json.dumps(sample.doc, indent=2, default=str, ensure_ascii=False)),
        "prompt_hash": _hash(prompt),
        "target_hash": _hash(str(target)),
        **metrics,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(name: str) -> str:
    return re.sub(r"[^\w.=,-]+", "_", name).strip("_.") or "cell"
