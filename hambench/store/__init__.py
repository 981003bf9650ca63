"""The run store: one append-only folder per run, readable after a kill at any moment.

``prompts.jsonl`` (the samples) and ``run.json`` (the header) are written first. The header never changes; a run with
time left of its budget adds samples, each before its first record. ``records.jsonl`` grows by one line per (sample,
cell, repeat), ``scores.jsonl`` by one per score, ``telemetry.jsonl`` by one per reading of the machine, and
``fidelity.jsonl`` by one per distinct answer that the target has judged. A line is complete if it ends in a newline.
Readers ignore an incomplete last line after a kill, and the next writer cuts it.
"""

from __future__ import annotations

from hambench.store.names import FIDELITY, HEADER, LOCK, PROMPTS, RECORDS, SCORES, TELEMETRY
from hambench.store.reading import RecordKey, Run, list_runs, load_header, load_run, record_key
from hambench.store.writing import RunWriter, refuse_existing

__all__ = [
    "FIDELITY",
    "HEADER",
    "LOCK",
    "PROMPTS",
    "RECORDS",
    "SCORES",
    "TELEMETRY",
    "RecordKey",
    "Run",
    "RunWriter",
    "list_runs",
    "load_header",
    "load_run",
    "record_key",
    "refuse_existing",
]
