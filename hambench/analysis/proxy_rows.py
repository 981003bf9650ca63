"""Proxies of a run as rows: one per cell, derived from its stored scores and tokens."""

from __future__ import annotations

import io
import statistics
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hambench.analysis.baselines import baseline_of
from hambench.analysis.summary import token_identity
from hambench.store import Run

LOGPROB = "target_logprob"
"""Mean natural log-probability per token of the output under the target model, in nats."""
GAP = "top_two_gap"
"""The gap between the target's two best logits where an answer first differs from the baseline's."""


def proxy_rows(run: Run) -> list[dict[str, Any]]:
    """Per cell: mean log-probability per token, identity with the baseline, and the median gap where they part."""
    rows = []
    for cell in run.header.cells:
        baseline = baseline_of(cell, run.header.cells)
        mine = [score for score in run.scores if score.cell == cell.label and score.value is not None]
        logprobs = [score.value for score in mine if score.metric == LOGPROB and score.value is not None]
        gaps = [score.value for score in mine if score.metric == GAP and score.value is not None]
        identity = token_identity(run, cell.label, baseline.label) if baseline else None
        rows.append(
            {
                "cell": cell.label,
                "target_logprob_per_token": statistics.fmean(logprobs) if logprobs else None,
                "num_samples": len(logprobs),
                "num_identical": identity.num_identical if identity else None,
                "num_compared": identity.num_samples if identity else None,
                "first_difference": identity.first_difference if identity else None,
                "tokens_before_difference": identity.share_before if identity else None,
                "median_top_two_gap": statistics.median(gaps) if gaps else None,
            }
        )
    return rows


def render_proxies(rows: list[dict[str, Any]]) -> str:
    """The rows as a table for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ("method", "log p/token", "identical", "first diff.", "tokens before", "gap at diff.", "n")
    for title in titles:
        table.add_column(title, justify="left" if title == "method" else "right", no_wrap=True)
    for row in rows:
        compared = row["num_compared"]
        cells = (
            row["cell"],
            _number(row["target_logprob_per_token"], "{:.3f}"),
            f"{row['num_identical']}/{compared}" if compared else "–",
            _number(row["first_difference"], "{}"),
            _number(row["tokens_before_difference"], "{:.1%}"),
            _number(row["median_top_two_gap"], "{:.3f}"),
            str(row["num_samples"]),
        )
        table.add_row(*map(Text, cells))
    out = io.StringIO()
    Console(file=out, width=120, no_color=True, highlight=False).print(table)
    return out.getvalue().rstrip("\n")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
