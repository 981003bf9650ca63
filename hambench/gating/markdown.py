"""Writes an outcome as a pull request comment: verdict first, worst rows first, and a note on rows that were cut."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from hambench.errors import HambenchError, count
from hambench.files import reason_of
from hambench.gating.checks import Check, ExitCode, Outcome
from hambench.terminal_text import terminal_safe

MAX_CHARACTERS = 60_000
"""GitHub's limit for a comment is 65,536."""
_SIGNS = {
    "regressed": "🔴",
    "not comparable": "⚪",
    "inconclusive": "🟡",
    "improved": "🔵",
    "equivalent": "🟢",
}
_ESCAPES = {
    **{ord(character): f"\\{character}" for character in "\\`*[]<>|~"},
    # a zero-width space keeps @name and #1 from becoming mentions
    ord("@"): "@\u200b",
    ord("#"): "#\u200b",
}
_HEADER = (
    "| | metric | of | base | head | change [95 %] | found 4 in 5 | why |",
    "|---|---|---|--:|--:|--:|--:|---|",
)


def marker(outcome: Outcome) -> str:
    """Returns the hidden first line that identifies a job's own comment, to update it in place."""
    return f"<!-- hambench:{''.join(c for c in outcome.suite or 'gate' if c.isalnum() or c in '+-_')} -->"


def render_markdown(outcome: Outcome, *, strict: bool = False, max_characters: int = MAX_CHARACTERS) -> str:
    """Returns the outcome as Markdown of at most ``max_characters``, with deciding rows before advisory ones."""
    code = outcome.exit_code(strict=strict)
    sign = {ExitCode.FINE: "🟢", ExitCode.REGRESSED: "🔴", ExitCode.CRASHED: "💥", ExitCode.UNDECIDED: "🟡"}
    head = [
        marker(outcome),
        f"### {sign.get(code, '⚪')} {escape(outcome.headline(strict=strict))}",
        "",
        f"{escape(outcome.title)}: base {escape(outcome.base)}, head {escape(outcome.head)}. "
        f"Exit code {int(code)}.",
        *(f"- {escape(line)}" for line in outcome.crashes),
    ]
    ranked = outcome.ranked
    same = [c for c in ranked if c.primary and c.verdict == "equivalent" and c.metric_class == "exact"]
    advisory = [c for c in ranked if not c.primary]
    decides = [c for c in ranked if c.primary and c not in same]
    notes = ["", *(f"> {escape(note)}" for note in outcome.notes)] if outcome.notes else []
    room = max_characters - sum(len(line) + 1 for line in head + notes) - 600
    body: list[str] = []
    for title, checks in (
        ("Decides", decides),
        (f"{count(len(same), 'exact count')} unchanged", same),
        ("Advisory", advisory),
    ):
        rows, cut = _fitting([_row(check) for check in checks], room)
        room -= sum(len(row) + 1 for row in rows)
        if rows or cut:
            table = [*_HEADER, *rows, *([f"\n{count(cut, 'row')} cut."] if cut else [])]
            body += ["", *_folded(title, table, fold=checks is not decides)]
    return "\n".join([*head, *body, *notes])[:max_characters] + "\n"


def append_job_summary(text: str) -> None:
    """Appends the text to the job's summary page.

    Raises:
        HambenchError: If this is not a job of GitHub Actions, or its file can't be written.
    """
    target = os.environ.get("GITHUB_STEP_SUMMARY")
    if not target:
        raise HambenchError("--summary needs $GITHUB_STEP_SUMMARY, which GitHub Actions sets")
    try:
        with Path(target).open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as error:
        raise HambenchError(f"can't write $GITHUB_STEP_SUMMARY, {target}: {reason_of(error)}") from error


def escape(text: str) -> str:
    """Escapes text for Markdown, so that it can't form table bars, tags, links or mentions."""
    return " ".join(terminal_safe(text).translate(_ESCAPES).split())


def change_of(check: Check) -> str:
    """Formats the effect with its interval: percent, points for accuracy, nats per token for regret."""
    if check.effect is None:
        return "–"
    low, high = check.effect.low, check.effect.high
    shown: Callable[[float], str] = {"accuracy": _points, "fidelity": _nats}.get(check.metric_class, _percent)
    if low is None or high is None:
        return shown(check.effect.value)
    return f"{shown(check.effect.value)} [{shown(low)}, {shown(high)}]"


def detectable_of(check: Check) -> str:
    """Formats the smallest loss that would be detected 4 times in 5."""
    if check.minimum_detectable_effect is None:
        return "–"
    if check.metric_class == "accuracy":
        return f"{check.minimum_detectable_effect:.1f} points"
    if check.metric_class == "fidelity":
        return f"{check.minimum_detectable_effect:.3f} nats/token"
    return f"{check.minimum_detectable_effect:.1%}"


def _row(check: Check) -> str:
    where = check.cell if check.group == "all" else f"{check.cell}, {check.group}"
    cells = [
        f"{_SIGNS[check.verdict]} {check.verdict}",
        escape(check.metric),
        escape(where),
        _value(check.base, check.unit),
        _value(check.head, check.unit),
        change_of(check),
        detectable_of(check),
        escape(check.reason),
    ]
    return f"| {' | '.join(cells)} |"


def _fitting(rows: Sequence[str], room: int) -> tuple[list[str], int]:
    kept: list[str] = []
    for row in rows:
        room -= len(row) + 1
        if room < 0:
            break
        kept.append(row)
    return kept, len(rows) - len(kept)


def _folded(title: str, lines: Sequence[str], *, fold: bool) -> list[str]:
    if not fold:
        return list(lines)
    return [f"<details><summary>{title}</summary>", "", *lines, "", "</details>"]


def _value(value: float | None, unit: str) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    if unit == "head / base":
        return f"{value:.3f}"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"


def _percent(ratio: float) -> str:
    return f"{ratio - 1:+.1%}"


def _nats(value: float) -> str:
    return f"{value:+.3f} nats/token"


def _points(value: float) -> str:
    return f"{value:+.1f}"
