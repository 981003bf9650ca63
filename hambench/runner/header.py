"""Writes the header of a run: the request, the model, the data, the machine and the warnings."""

from __future__ import annotations

import dataclasses
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hambench._version import __version__
from hambench.files import printable
from hambench.machine.clock import now
from hambench.machine.fingerprint import fingerprint
from hambench.models.sizes import shape_scalars
from hambench.records import SCHEMA_VERSION, Cell, RunHeader
from hambench.run_notes import Note, NoteKind
from hambench.runner.backend import backend_facts
from hambench.runner.sweep import config_of

if TYPE_CHECKING:
    from hambench.runner.request import Prepared


def make_header(prepared: Prepared, folder: Path) -> RunHeader:
    """Builds the header of a run that is about to begin."""
    request, target, captured = prepared.request, prepared.target, prepared.captured
    cells = prepared.expansion.cells
    environment = {**fingerprint(), **backend_facts(cell.kernels for cell in cells)}
    commit = environment.get("commit")
    return RunHeader(
        schema_version=SCHEMA_VERSION,
        run_id=f"{printable(folder.name)}-{uuid.uuid4().hex[:6]}",
        created_at=now(),
        hambench_version=__version__,
        commit=str(commit) if commit else None,
        command=command_line(),
        suites=tuple(dict.fromkeys(sample.suite for sample in prepared.samples)),
        edition=captured.edition,
        data_source=captured.data_source,
        data_hashes=captured.data_hashes,
        cells=tuple(_with_own_sizes(cell) for cell in cells),
        num_samples=len(prepared.samples),
        limit=request.limit,
        repeats=request.repeats,
        price_per_hour=request.price_per_hour,
        seed=request.decoding.seed,
        temperature=request.decoding.temperature,
        top_p=request.decoding.top_p,
        max_new_tokens=request.max_new_tokens,
        ignore_eos=request.decoding.ignore_eos,
        fidelity=request.fidelity,
        think_end=request.decoding.think_end,
        chat_template_args=request.decoding.chat_template_args,
        prefill=request.decoding.prefill,
        prefill_chunk=request.decoding.prefill_chunk,
        max_remeasured=request.decoding.max_remeasured,
        model={
            **dataclasses.asdict(target.identity),
            "context_length": target.context_length,
            "weight_bytes": target.weight_bytes,
            "device": str(target.device),
            # sizes: reports judge speeds against the bytes that a step reads
            **shape_scalars(target.llama.shape),
        },
        environment=environment,
        suite_spec=captured.spec,
        weights=dict(target.companions),
        num_whole=None if captured.num_left_out else len(captured.samples),
        notes=warnings_of(prepared),
    )


def _with_own_sizes(cell: Cell) -> Cell:
    """Adds the sizes that the cell's method reports, since a reader of the run may not have the checkpoint."""
    return dataclasses.replace(cell, own_sizes=dict(config_of(cell).own_sizes(cell.model)))


def command_line() -> tuple[str, ...]:
    """Returns the command as typed, without the program's folder."""
    return (Path(sys.argv[0]).name, *map(printable, sys.argv[1:]))


def warnings_of(prepared: Prepared) -> tuple[Note, ...]:
    """Returns the notes that every report must show first, most severe first."""
    request, target, captured = prepared.request, prepared.target, prepared.captured
    notes = list(captured.notes)
    if target.identity.note:
        kind: NoteKind = "dequantised" if target.identity.dequantised else "model"
        notes.append(Note(kind, f"Model: {target.identity.note}."))
    if target.device.type == "cpu":
        cores = os.cpu_count()
        notes.append(
            Note("cpu", f"Measured on a CPU ({cores} logical cores): the speeds say nothing about a GPU.")
        )
    # with a budget it goes once the run has added all samples, see hambench.store
    if captured.num_left_out or len(prepared.samples) < len(captured.samples):
        text = "Partial run: some rows of each task only; the intervals show what they allow to say."
        notes.append(Note("partial", text))
    if request.max_new_tokens is not None:
        text = f"Answers end at {request.max_new_tokens} tokens instead of the tasks' own limits."
        notes.append(Note("limits", text))
    if limits := [limit for limit in request.sweep.max_new_tokens if limit is not None]:
        text = f"Answers end at {_either(limits)} tokens, by cell, instead of the tasks' own limits."
        notes.append(Note("limits", text))
    if contexts := [context for context in request.sweep.contexts if context is not None]:
        text = (
            f"Prompt and answer are held to {_either(contexts)} positions: a longer prompt is cut or refused by its "
            "suite's rule."
        )
        notes.append(Note("limits", text))
    if request.decoding.ignore_eos:
        notes.append(Note("limits", "EOS ignored: every answer has its full length, and nothing is scored."))
    if max(request.sweep.batches) > 1 and target.device.type != "cpu":
        notes.append(Note("limits", "Batches have never been run on a GPU before: check their tokens first."))
    notes += [Note("missing", f"{task} is missing: {reason}") for task, reason in captured.missing.items()]
    notes += [Note("left_out", text) for text in prepared.expansion.left_out]
    by_order = [cell.label for cell in prepared.expansion.cells if config_of(cell).depends_on_order]
    if by_order:
        text = (
            f"{', '.join(by_order)}: an answer's speed depends on the answers before it, so another order or a resumed "
            "run gives other counts."
        )
        notes.append(Note("order", text))
    return tuple(notes)


def _either(values: Sequence[int]) -> str:
    *most, last = map(str, values)
    return f"{', '.join(most)} or {last}" if most else last
