"""The Python API: runs like the command line and returns results as pandas frames."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hambench.analysis.comparisons import compare_run
from hambench.analysis.exports.frames import conditions_of
from hambench.analysis.measurements import measure_run
from hambench.decoding import KnobValue, MethodConfig
from hambench.errors import UnknownNameError
from hambench.runner.sweep import Sweep
from hambench.store import Run, load_run

if TYPE_CHECKING:
    import pandas as pd

AXES = ("batches", "contexts", "max_new_tokens", "threads", "regimes", "kernels")
"""Axes of a sweep that are not knobs of a method."""


@dataclasses.dataclass(frozen=True)
class Results:
    """A run as frames; ``run`` has all data, ``path`` is its folder."""

    run: Run

    @property
    def path(self) -> Path:
        """The run folder: `hambench report` and `hambench show` read it."""
        return self.run.path

    @property
    def cells(self) -> pd.DataFrame:
        """One row per cell: its conditions and everything measured over all samples."""
        return self._measurements().query("group == 'all'").reset_index(drop=True)

    @property
    def tasks(self) -> pd.DataFrame:
        """One row per cell and group (all, suite, category, task)."""
        return self._measurements()

    @property
    def comparisons(self) -> pd.DataFrame:
        """One row per cell, group and metric: the paired comparison with the cell's baseline, and its verdict."""
        import pandas as pd

        rows = []
        for compared in compare_run(self.run):
            row: dict[str, Any] = dataclasses.asdict(compared)
            effect = row.pop("effect") or {}
            row["effect"], row["effect_n"] = effect.get("value"), effect.get("n", 0)
            row["effect_low"], row["effect_high"] = effect.get("low"), effect.get("high")
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def steps(self) -> pd.DataFrame:
        """One row per step of each measured answer: tokens, seconds, counts, KV memory and regret."""
        from hambench.analysis.exports.frames import steps_frame

        return steps_frame(self.run)

    @property
    def samples(self) -> pd.DataFrame:
        """One row per measured answer, with its primary score."""
        import pandas as pd

        primary = {
            (score.cell, score.sample_id, score.repeat): score.value
            for score in self.run.scores
            if score.primary
        }
        rows = []
        for record in self.run.measured:
            sample = self.run.samples[record.sample_id]
            trace = record.trace
            rows.append(
                {
                    "cell": record.cell,
                    "sample_id": record.sample_id,
                    "suite": sample.suite,
                    "task": sample.task,
                    "repeat": record.repeat,
                    "prompt_tokens": trace.prompt_tokens if trace else None,
                    "new_tokens": len(trace.token_ids) if trace else None,
                    "steps": len(trace.steps) if trace else None,
                    "seconds": trace.seconds if trace else None,
                    "finish": trace.finish if trace else None,
                    "score": primary.get((record.cell, record.sample_id, record.repeat)),
                    "text": record.text,
                    "error": record.error,
                }
            )
        return pd.DataFrame(rows)

    def _measurements(self) -> pd.DataFrame:
        import pandas as pd

        rows = []
        cells = {cell.label: cell for cell in self.run.header.cells}
        for measured in measure_run(self.run):
            cell = cells[measured.cell]
            row: dict[str, Any] = {
                "cell": cell.label,
                # its knobs are in its label
                "method": cell.method,
                **conditions_of(cell),
                **dataclasses.asdict(measured),
            }
            accuracy = row.pop("accuracy") or {}
            row["accuracy"] = accuracy.get("value")
            row["accuracy_low"], row["accuracy_high"] = accuracy.get("low"), accuracy.get("high")
            row["accuracy_n"] = accuracy.get("n", 0)
            rows.append(row)
        return pd.DataFrame(rows)


def run(
    *,
    methods: Sequence[str | MethodConfig] = ("all",),
    suite: str | None = "longbench",
    model: str = "smollm2-135m",
    knobs: Mapping[str, Sequence[KnobValue]] | None = None,
    dtype: str = "bfloat16",
    axes: Mapping[str, Sequence[Any]] | None = None,
    out: str | Path | None = None,
    **request: Any,
) -> Results:
    """Runs a sweep and returns its results as frames.

    Args:
        methods: Registry names, optionally with knobs (``"speculative[k=8]"``), or configs
            (``SpeculativeConfig(num_draft_tokens=8)``).
        suite: A name from ``hambench ls suites``, a YAML file, or a file or folder of your own prompts.
        model: A registered name, a folder or a hub id.
        knobs: Axis values by knob, e.g. ``{"k": [2, 4], "confidence": [0.5, 0.8]}``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        axes: Values of axes that are not knobs of a method, by field of :class:`hambench.runner.sweep.Sweep`:
            ``batches``, ``contexts``, ``max_new_tokens``, ``threads``, ``regimes``, ``kernels`` (defaults to ``auto``).
        out: The run folder; defaults to a temporary one, whose path is in the results.
        request: Further fields of :class:`hambench.runner.request.RunRequest`, e.g. ``limit=5``.

    Example:
        >>> results = hambench.run(methods=["vanilla", "speculative"], limit=2)  # doctest: +SKIP
        >>> results.cells[["cell", "tps", "accuracy"]]  # doctest: +SKIP
    """
    from hambench.runner.request import RunRequest
    from hambench.runner.start import start_run

    values = {name: tuple(each) for name, each in (knobs or {}).items()}
    others = {"kernels": ("auto",), **{name: tuple(each) for name, each in (axes or {}).items()}}
    for name in others:
        if name not in AXES:
            raise UnknownNameError("axis", name, AXES)
    sweep = Sweep(model=model, methods=tuple(methods), knobs=values, dtype=dtype, **others)  # type: ignore[arg-type]
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="hambench-")) / "run"
    return Results(start_run(RunRequest(sweep=sweep, suite=suite, **request), folder))


def open_run(path: str | Path) -> Results:
    """Opens a stored run, finished or not, as frames: ``cells``, ``tasks``, ``comparisons``, ``samples``, ``steps``.

    Args:
        path: The run folder.

    Raises:
        StoreError: If the folder is not a run.

    Example:
        >>> results = hambench.open_run("runs/2026-01-31-longbench")  # doctest: +SKIP
        >>> results.steps.groupby("cell").seconds.median()  # doctest: +SKIP
    """
    return Results(load_run(path))
