"""What a reader must know before believing a number: the worst first, and short for each figure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hambench.analysis.thinking import advice, uncut_thinking
from hambench.records import BUSY_LOAD
from hambench.reports.html_text import without_paths
from hambench.reports.view import View
from hambench.reports.words import listing

Severity = Literal["bad", "warn"]
"""Share of the machine that other processes may take before speeds are called disturbed."""


@dataclass(frozen=True, slots=True)
class Caution:
    """A sentence that stands above the verdicts."""

    severity: Severity
    title: str
    text: str


def cautions(view: View) -> list[Caution]:
    """All of a run, worst first."""
    header, run = view.run.header, view.run
    found: list[Caution] = []
    notes = list(header.notes)
    seen: set[str] = set()
    for note in filter(str.strip, notes):
        word = _kind(note)
        title, colon, rest = note.partition(": ")
        # a note that brings its own title keeps it
        title, text = (title, rest) if colon and len(title) < 30 else (word, note)
        if word != "Offline edition" or word not in seen:
            severity: Severity = "bad" if word in _BAD else "warn"
            found.append(Caution(severity, title[0].upper() + title[1:], without_paths(text)))
        seen.add(word)
    if not run.complete:
        found.append(
            Caution(
                "bad",
                "Partial run",
                f"{len(run.measured)} of {run.num_expected} answers are there; finish it with "
                f"`hambench run --resume`.",
            )
        )
    errors = [record for record in run.measured if record.error is not None]
    if errors:
        cells = list(dict.fromkeys(record.cell for record in errors))
        found.append(
            Caution(
                "bad" if len(errors) > 0.1 * len(run.measured) else "warn",
                "Failed samples",
                f"{len(errors)} of {len(run.measured)} answers failed (in {listing(cells[:4])}"
                f"{' and others' if len(cells) > 4 else ''}); "
                "what only one side answered is left out of speed and memory and counts as 0 points in accuracy.",
            )
        )
    num, marker = uncut_thinking(record for record in run.measured if record.text is not None)
    if marker is not None and header.think_end is None:
        found.append(Caution("bad", "Thinking is scored", advice(num, len(run.measured), marker)))
    if view.baseline is None:
        found.append(
            Caution(
                "bad",
                "No baseline",
                "There is no vanilla cell, so nothing can be called faster or more accurate.",
            )
        )
    if not run.scores:
        found.append(
            Caution("bad", "Not scored", "No answer was scored: this report says nothing about accuracy.")
        )
    failed = [
        score
        for score in run.scores
        if score.primary and (score.value is None or not math.isfinite(score.value))
    ]
    if failed:
        found.append(
            Caution(
                "warn", "Scorer failed", f"{len(failed)} answers have no score; they count in no accuracy."
            )
        )
    disturbed = [r for r in run.measured if r.contaminated or (r.other_load or 0.0) > BUSY_LOAD]
    if disturbed:
        found.append(
            Caution(
                "warn",
                "Disturbed",
                f"other processes took more than {BUSY_LOAD:.0%} of the machine during {len(disturbed)} of "
                f"{len(run.measured)} answers; cells are interleaved, so ratios suffer less than absolute speeds."
                + _spare_core(view),
            )
        )
    if header.edition == "offline" and not any("offline" in note.lower() for note in notes):
        found.append(
            Caution(
                "warn", "Offline edition", "Tasks were built by hambench in the schemas of their namesakes."
            )
        )
    if _on_cpu(view) and not any("cpu" in note.lower() for note in notes):
        found.append(Caution("warn", "CPU", "Measured on a CPU: the ratios of a GPU differ."))
    return sorted(found, key=lambda caution: caution.severity != "bad")


def watermark(view: View) -> str:
    """One line for every figure: what kind of run this is, so that a copied picture still says it."""
    header = view.run.header
    words = [word for word in dict.fromkeys(_kind(note) for note in header.notes) if word != "Note"]
    if header.edition == "offline" and "Offline edition" not in words:
        words.append("Offline edition")
    if _on_cpu(view) and "CPU" not in words:
        words.append("CPU")
    if not view.run.complete:
        words.append("Partial run")
    return " · ".join(
        [*(word.lower() if word != "CPU" else word for word in words), f"hambench {header.run_id}"]
    )


def _spare_core(view: View) -> str:
    """What to do about it, where every core had a thread and the run did not choose its threads."""
    environment = view.run.header.environment
    cores, threads = environment.get("cpu_affinity"), environment.get("torch_threads")
    if any(cell.threads is not None for cell in view.run.header.cells):
        return ""
    if (
        not _on_cpu(view)
        or not isinstance(cores, int)
        or not isinstance(threads, int)
        or not 1 < cores <= threads
    ):
        return ""
    return (
        f" Each of the {cores} cores had a thread, and a step waits for the last of them: `--threads {cores - 1}` "
        "leaves others a core."
    )


def _on_cpu(view: View) -> bool:
    header = view.run.header
    return str(header.model.get("device") or "cpu").startswith("cpu")


_BAD = ("Simulated", "Random weights", "Forced")


def _kind(note: str) -> str:
    lowered = note.lower()
    for words, kind in (
        (("simulat",), "Simulated"),
        (("random weight", "toy weight"), "Random weights"),
        (("forced", "--force"), "Forced"),
        (("offline edition", "offline"), "Offline edition"),
        (("quantis", "quantiz"), "De-quantised model"),
        (("partial",), "Partial run"),
        (("cpu",), "CPU"),
    ):
        if any(word in lowered for word in words):
            return kind
    return "Note"
