"""Writes a summary of a run for a pull request or a CI log."""

from __future__ import annotations

import re

from hambench.groups import ALL
from hambench.reports.html_text import printable
from hambench.reports.page.cautions import cautions
from hambench.reports.page.verdict_words import answer, method_verdicts
from hambench.reports.sections.tables import summary_table
from hambench.reports.view import View
from hambench.store import Run

MAX_CHARACTERS = 60_000
"""GitHub's limit for a comment is 65,536."""
MOST_METHODS = 20
COLUMNS = (
    "Cell",
    "n",
    "Accuracy",
    "Δ accuracy",
    "TPS",
    "Speed",
    "m",
    "Acceptance",
    "KV",
    "KV out",
    "KV total",
)


def markdown_summary(run: Run) -> str:
    """Returns cautions, the answer, a sentence per method and one table in GitHub's Markdown.

    It has at most 60,000 characters. It begins with a comment by which a bot finds an earlier summary to replace.
    """
    view = View(run)
    lines = [
        f"<!-- hambench:{'+'.join(escape(suite) for suite in run.header.suites)} -->",
        f"### hambench: {escape(view.model_name)}, {escape(run.header.run_id)}",
        "",
    ]
    for caution in cautions(view):
        lines.append(
            f"> **{'✕' if caution.severity == 'bad' else '!'} {caution.title}:** {escape(caution.text)}  "
        )
    lines += ["", f"**{escape(answer(view))}**", ""]
    verdicts = method_verdicts(view)
    lines += [f"- **{escape(v.cell.label)}**: {escape(v.sentence)}" for v in verdicts[:MOST_METHODS]]
    if len(verdicts) > MOST_METHODS:
        lines.append(f"- … and {len(verdicts) - MOST_METHODS} more methods")
    table = summary_table(view)
    keep = [index for index, column in enumerate(table.columns) if column.title in COLUMNS]
    lines += [
        "",
        "| " + " | ".join(escape(table.columns[index].title) for index in keep) + " |",
        "|" + "|".join("---:" if table.columns[index].numeric else "---" for index in keep) + "|",
    ]
    length = sum(len(line) + 1 for line in lines)
    for number, row in enumerate(table.rows):
        line = "| " + " | ".join(escape(row[index].text) for index in keep) + " |"
        length += len(line) + 1
        if length > MAX_CHARACTERS:
            lines.append(f"\n{len(table.rows) - number} rows cut.")
            break
        lines.append(line)
    n = max((view.measured(cell, ALL).num_samples for cell in view.cells), default=0)
    lines += [
        "",
        f"_{n} samples per cell; brackets are 95 % intervals, paired but for Accuracy's own; speed is decode only._",
        "",
    ]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Escapes text, so that Markdown and HTML show it unchanged on one line."""
    text = printable(text).replace("\n", " ").replace("\r", " ")
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#|~@])", r"\\\1", text)
