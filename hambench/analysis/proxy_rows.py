"""Rows of ``hambench proxies``: each cell's fidelity, and how close to a tie its first differences were."""

from __future__ import annotations

import io
import statistics
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hambench.analysis.baselines import baseline_of
from hambench.analysis.fidelity import (
    agreement,
    divergences,
    regret,
    target_logprob_per_token,
    token_identity,
)
from hambench.store import Run


def proxy_rows(run: Run) -> list[dict[str, Any]]:
    """Per cell: log-probability and regret per token, agreement, identity with the baseline, and the median gap where
    they part.
    """  # noqa: D205
    partings = divergences(run)
    rows = []
    for cell in run.header.cells:
        baseline = baseline_of(cell, run.header.cells)
        gaps = [parting.gap for (label, _, _), parting in partings.items() if label == cell.label]
        identity = token_identity(run, cell.label, baseline.label) if baseline else None
        mine = run.of_cell(cell.label)
        judged = [item for record in mine if (item := run.judged(record)) is not None]
        given_up = regret(judged)
        rows.append(
            {
                "cell": cell.label,
                "target_logprob_per_token": target_logprob_per_token(judged),
                "regret": given_up.value if given_up else None,
                "agreement": agreement(judged),
                "num_judged": len(judged),
                "num_identical": identity.num_identical if identity else None,
                "num_compared": identity.num_samples if identity else None,
                "first_difference": identity.first_difference if identity else None,
                "tokens_before_difference": identity.share_before if identity else None,
                "median_top_two_gap": statistics.median(gaps) if gaps else None,
            }
        )
    return rows


def render_proxies(rows: list[dict[str, Any]]) -> str:
    """Formats the rows as a table for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = (
        "method",
        "log p/token",
        "regret/token",
        "agree",
        "identical",
        "first diff.",
        "tokens before",
        "gap at diff.",
        "n",
    )
    for title in titles:
        # the label gives way, never a number
        is_label = title == "method"
        table.add_column(
            title,
            justify="left" if is_label else "right",
            no_wrap=not is_label,
            overflow="fold" if is_label else "ellipsis",
        )
    for row in rows:
        compared = row["num_compared"]
        cells = (
            row["cell"],
            _number(row["target_logprob_per_token"], "{:.3f}"),
            _number(row["regret"], "{:.3f}"),
            _number(row["agreement"], "{:.1%}"),
            f"{row['num_identical']}/{compared}" if compared else "–",
            _number(row["first_difference"], "{}"),
            _number(row["tokens_before_difference"], "{:.1%}"),
            _number(row["median_top_two_gap"], "{:.3f}"),
            str(row["num_judged"]),
        )
        table.add_row(*map(Text, cells))
    out = io.StringIO()
    Console(file=out, width=150, no_color=True, highlight=False).print(table)
    return out.getvalue().rstrip("\n")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
