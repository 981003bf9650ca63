"""The table of settings for a paper: LaTeX with booktabs, the numbers of the report."""

from __future__ import annotations

from hambench.reports.html_text import printable
from hambench.reports.page.cautions import cautions
from hambench.reports.sections.tables import summary_table
from hambench.reports.view import View
from hambench.run_notes import TITLES
from hambench.store import Run

COLUMNS = (
    "Cell",
    "n",
    "TPS",
    "Speed",
    "m",
    "Acceptance",
    "KV",
    "KV out",
    "TTFT",
    "Accuracy",
    "Δ accuracy",
    "Regret",
    "Cost",
)
"""Columns of the report's summary that the table has, where any setting has a value."""
_SYMBOLS = {
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "δ": r"$\delta$",
    "−": "$-$",
    "–": "--",
    "µ": r"$\mu$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "…": r"\ldots{}",
    "\u202f": r"\,",
    "\xa0": "~",
}

_IN_FULL = {TITLES[kind] for kind in ("model", "unscored", "missing", "left_out", "order", "other")}
"""Titles of cautions that say nothing without their text."""


def latex_table(run: Run) -> str:
    """Returns a ``table`` environment with a row per setting; it needs the package booktabs.

    Columns without a value in any row are left out. The caption says what was measured on what, and the report's
    cautions: those that make numbers doubtful in full, the others by name.
    """
    import pandas as pd

    view = View(run)
    table = summary_table(view)
    kept = [
        index
        for index, column in enumerate(table.columns)
        if column.title in COLUMNS and any(row[index].value is not None for row in table.rows)
    ]
    titles = [table.columns[index].title for index in kept]
    rows = [[row[index].text for index in kept] for row in table.rows]
    header = run.header
    device = header.environment.get("gpu") or header.environment.get("cpu") or header.model.get("device")
    what = f"{view.model_name} on {', '.join(header.suites)} ({len(run.samples)} samples, {device})"
    caption = (
        f"{what}; brackets: 95 % intervals; Speed is the paired ratio to the baseline. "
        f"hambench {header.hambench_version}, run {header.run_id}.{_cautions(view)}"
    )
    text = pd.DataFrame(rows, columns=titles).to_latex(
        index=False,
        escape=True,
        column_format="l" + "r" * (len(titles) - 1),
        caption=_escaped(caption),
        label=f"tab:{_label(header.run_id)}",
        position="t",
    )
    return _with_symbols(text)


def _cautions(view: View) -> str:
    """Returns the report's cautions as sentences that follow a full stop; empty without any."""
    full, named = [], []
    for caution in cautions(view):
        if caution.severity == "bad" or caution.title in _IN_FULL:
            full.append(f" {caution.title}: {printable(caution.text).replace('`', '').rstrip('.')}.")
        else:
            named.append(caution.title if caution.title.isupper() else caution.title.lower())
    return "".join(full) + (f" Cautions: {', '.join(named)}." if named else "")


def _escaped(text: str) -> str:
    special = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}"}
    special |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    # two hyphens of an option are not a dash
    return "".join(special.get(character, character) for character in text).replace("--", "-{}-")


def _label(text: str) -> str:
    return "".join(character if character.isascii() and character.isalnum() else "-" for character in text)


def _with_symbols(text: str) -> str:
    for symbol, command in _SYMBOLS.items():
        text = text.replace(symbol, command)
    return text
