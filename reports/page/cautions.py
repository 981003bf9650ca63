"""Cautions that a reader must know before trusting a number, worst first, and a short form for figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hambench.analysis.cautions.prefix_cache import cache_caution
from hambench.analysis.cautions.thinking import advice, uncut_thinking
from hambench.analysis.cold_start import unsettled
from hambench.analysis.fidelity import SAMPLED_SAME, failures
from hambench.analysis.measurements import repetition_cautions
from hambench.groups import asks_accuracy
from hambench.records import ALONE_SHARE, BUSY_LOAD
from hambench.reports.html_text import without_paths
from hambench.reports.number_text import listing
from hambench.reports.view import View
from hambench.run_notes import NOT_MEASURED, TITLES, WATERMARKED, Note

Severity = Literal["bad", "warn"]


@dataclass(frozen=True, slots=True)
class Caution:
    """A sentence to show above the verdicts."""

    severity: Severity
    title: str
    text: str


def cautions(view: View) -> list[Caution]:
    """Returns all cautions of a run, worst first."""
    header, run = view.run.header, view.run
    kinds = {note.kind for note in header.notes}
    found = [
        Caution(
            "bad" if note.kind in NOT_MEASURED else "warn", TITLES[note.kind], without_paths(_untitled(note))
        )
        for note in header.notes
        if note.text.strip()
    ]
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
    if not run.scores and asks_accuracy(header.suite_spec):
        found.append(
            Caution("bad", "Not scored", "No answer was scored: this report says nothing about accuracy.")
        )
    if (cached := cache_caution(run)) is not None:
        found.append(Caution("bad" if "unevenly" in cached else "warn", "Prefix cache", cached))
    overall = {cell.label: view.measured(cell) for cell in view.cells}
    found += [Caution("warn", "Repeated text", line) for line in repetition_cautions(run, overall)]
    unheard = failures(run)
    found += [Caution("warn", "Not judged", f"{line}.") for line in unheard]
    failed = [score for score in run.scores if score.primary and score.points is None]
    if failed:
        found.append(
            Caution(
                "warn", "Scorer failed", f"{len(failed)} answers have no score; they count in no accuracy."
            )
        )
    alone = [r for r in run.measured if r.share_alone > ALONE_SHARE]
    if alone:
        num_calls = sum(r.native_calls or 0 for r in alone)
        num_alone = sum(r.native_calls_alone or 0 for r in alone)
        found.append(
            Caution(
                "warn",
                "Threads went alone",
                f"in {len(alone)} of {len(run.measured)} answers the native engine made {num_alone / num_calls:.0%} of "
                "its calls on one thread, because others held a core: these answers took longer than on a quiet "
                "machine.",
            )
        )
    disturbed = [
        r
        for r in run.measured
        if (r.other_load or 0.0) > BUSY_LOAD or (r.contaminated and r.share_alone <= ALONE_SHARE)
    ]
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
    if pace := unsettled(run):
        found.append(Caution("warn", "Unsettled", f"{pace}."))
    if header.temperature > 0:
        found.append(Caution("warn", "Sampled", SAMPLED_SAME))
    if header.edition == "offline" and "offline" not in kinds:
        found.append(
            Caution(
                "warn", "Offline edition", "Tasks were built by hambench in the schemas of their namesakes."
            )
        )
    if _on_cpu(view) and "cpu" not in kinds:
        found.append(Caution("warn", "CPU", "Measured on a CPU: the ratios of a GPU differ."))
    return sorted(found, key=lambda caution: caution.severity != "bad")


def watermark(view: View) -> str:
    """Returns the kind of run in one line, which every figure shows in case it is copied."""
    header = view.run.header
    kinds = [kind for kind in dict.fromkeys(note.kind for note in header.notes) if kind in WATERMARKED]
    if header.edition == "offline" and "offline" not in kinds:
        kinds.append("offline")
    if _on_cpu(view) and "cpu" not in kinds:
        kinds.append("cpu")
    if not view.run.complete and "partial" not in kinds:
        kinds.append("partial")
    words = [TITLES[kind] for kind in kinds]
    return " · ".join(
        [*(word.lower() if word != "CPU" else word for word in words), f"hambench {header.run_id}"]
    )


def _spare_core(view: View) -> str:
    """Returns advice to leave a core free, if every core had a thread and the run did not set its threads."""
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


def _untitled(note: Note) -> str:
    """Returns a note's text without its leading title, which is already shown above it."""
    title, colon, rest = note.text.partition(": ")
    return rest if colon and title.lower() == TITLES[note.kind].lower() else note.text
