"""The HAMburger paper's numbers, read off its figures; another model on other hardware, for orientation only.

Source: arXiv 2505.20438v1 and the figures of its repository (Llama-3.2-1B-Instruct; scores digitised to about 0.002,
LongBench to about 0.3, tokens/s to about 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

from hambench.reports.values import Column, Table, number_cell, text_cell

SOURCE = "reported by arXiv 2505.20438v1, Llama-3.2-1B-Instruct, other hardware, read off its figures"


@dataclass(frozen=True, slots=True)
class Published:
    """One panel of the paper's figures 3 and 4."""

    title: str
    baseline: float
    """Points, 0 to 100."""
    points: tuple[tuple[float, float, float], ...]
    """(confidence, points, KV compression of the output)."""


def _panel(
    title: str, scale: float, baseline: float, first: float, scores: tuple[float, ...], kv: tuple[int, ...]
) -> Published:
    return Published(
        title,
        scale * baseline,
        tuple(
            (round(first + 0.1 * index, 1), scale * score, percent / 100)
            for index, (score, percent) in enumerate(zip(scores, kv, strict=True))
        ),
    )


STANDARD = (
    _panel("IFEval", 100, 0.574, 0.6, (0.538, 0.557, 0.567, 0.584), (140, 126, 115, 106)),
    _panel("MGSM", 100, 0.384, 0.6, (0.392, 0.440, 0.496, 0.492), (187, 167, 147, 128)),
    _panel("GSM8K", 100, 0.3845, 0.6, (0.339, 0.355, 0.382, 0.418), (183, 166, 150, 131)),
    _panel("ARC-C", 100, 0.5615, 0.6, (0.5205, 0.5205, 0.5205, 0.5205), (188, 174, 164, 154)),
    _panel("HumanEval", 100, 0.360, 0.6, (0.299, 0.317, 0.348, 0.366), (267, 249, 225, 191)),
    _panel("MBPP", 100, 0.418, 0.6, (0.325, 0.415, 0.487, 0.495), (214, 193, 170, 145)),
)
LONGBENCH = (
    _panel("Single-doc QA", 1, 29.35, 0.5, (29.8, 30.8, 31.7, 32.5, 33.0), (190, 158, 133, 120, 110)),
    _panel("Multi-doc QA", 1, 26.4, 0.5, (31.4, 31.9, 32.4, 33.0, 34.2), (199, 171, 149, 128, 112)),
    _panel("Summarisation", 1, 23.05, 0.5, (21.2, 21.65, 21.7, 21.8, 21.9), (163, 144, 130, 119, 108)),
    _panel("Synthetic", 1, 4.0, 0.5, (4.33, 4.33, 4.5, 4.5, 4.5), (203, 135, 109, 103, 100)),
)
SPEEDS = (
    ("GSM8K", 33.7, 25.1, 28.1, 55.7),
    ("HumanEval", 34.1, 25.3, 27.5, 75.0),
    ("MGSM", 34.3, 25.3, 27.9, 58.9),
    ("Multi-News", 34.5, 24.9, 26.5, 52.7),
)
"""Task, tokens/s of plain decoding, speculation with 2 and 4 INT8-drafted tokens, HAMburger at confidence 0.5."""


def published_tables(prefix: str) -> tuple[Table, Table]:
    """Returns reported accuracy and speed as tables, because another model's points don't belong on this run's axes."""
    rows = []
    for panel in (*STANDARD, *LONGBENCH):
        for confidence, points, kv in panel.points:
            rows.append(
                (
                    text_cell(panel.title),
                    number_cell(confidence, f"{confidence:g}"),
                    number_cell(points, f"{points:.1f}"),
                    number_cell(panel.baseline, f"{panel.baseline:.1f}"),
                    number_cell(points - panel.baseline, f"{points - panel.baseline:+.1f}".replace("-", "−")),
                    number_cell(kv, f"{kv:.2f}"),
                )
            )
    accuracy = Table(
        name=f"{prefix}published-accuracy",
        caption=f"Accuracy against KV compression of the output, {SOURCE}.",
        columns=(
            Column("Task", numeric=False),
            Column("Confidence"),
            Column("HAMburger", "points"),
            Column("Llama-1B", "points"),
            Column("Δ", "points"),
            Column("KV out", "tokens/slot"),
        ),
        rows=tuple(rows),
    )
    speed = Table(
        name=f"{prefix}published-speed",
        caption=f"Decode tokens/s, {SOURCE}.",
        columns=(
            Column("Task", numeric=False),
            Column("Llama-1B"),
            Column("SD-2", "INT8 draft"),
            Column("SD-4", "INT8 draft"),
            Column("HAMburger", "confidence 0.5"),
            Column("Ratio", "× Llama-1B"),
        ),
        rows=tuple(
            (
                text_cell(task),
                *(number_cell(value, f"{value:.1f}") for value in values),
                number_cell(values[3] / values[0], f"{values[3] / values[0]:.2f}"),
            )
            for task, *values in SPEEDS
        ),
    )
    return accuracy, speed
