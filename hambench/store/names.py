"""Names of the files in a run folder."""

from __future__ import annotations

HEADER, PROMPTS, RECORDS, SCORES, TELEMETRY, FIDELITY = (
    "run.json",
    "prompts.jsonl",
    "records.jsonl",
    "scores.jsonl",
    "telemetry.jsonl",
    "fidelity.jsonl",
)
LOCK = ".lock"
