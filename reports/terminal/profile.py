"""Prints profiles: a table of phases, for one method or two side by side, and each method's memory over steps."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from hambench.profiling.memory import KVMemory
from hambench.profiling.profile import Profile


def render_profiles(profiles: Sequence[Profile], *, width: int = 110) -> str:
    """Returns a table of milliseconds and share per phase and profile."""
    paths = {path: 0.0 for profile in profiles for path in sorted(row.path for row in profile.rows)}
    for profile in profiles:
        for row in profile.rows:
            paths[row.path] = max(paths[row.path], row.seconds / profile.wall_s)
    table = Table(box=None, pad_edge=False)
    table.add_column("phase of decoding")
    for profile in profiles:
        table.add_column(f"{profile.method}\nms per token", justify="right")
        table.add_column("share", justify="right")
        table.add_column("calls", justify="right")
    for path in sorted(paths, key=lambda path: -paths[path]):
        table.add_row(" › ".join(path), *(text for profile in profiles for text in _cells(profile, path)))
    totals = [
        text
        for profile in profiles
        for text in (
            f"{1e3 * profile.accounted_s / profile.num_tokens:.3f}",
            f"{profile.accounted_s / profile.wall_s:.1%}",
            "",
        )
    ]
    table.add_row("total, of the wall time", *totals)
    out = io.StringIO()
    console = Console(file=out, width=width, no_color=True, highlight=False, markup=False, emoji=False)
    console.print(table)
    console.print()
    for profile in profiles:
        console.print(_summary(profile), soft_wrap=True)
    for profile in profiles:
        if profile.memory:
            console.print()
            console.print(_memory_table(profile))
        if profile.target_kv is not None:
            console.print(_target_kv(profile, profile.target_kv), soft_wrap=True)
    return out.getvalue().rstrip("\n")


ADDS_UP_WITHIN = 0.03
"""Maximum difference between the phases' sum and the wall time, beyond which the table warns."""


def _cells(profile: Profile, path: tuple[str, ...]) -> tuple[str, str, str]:
    row = next((row for row in profile.rows if row.path == path), None)
    if row is None:
        return "–", "–", "–"
    milliseconds = 1e3 * row.seconds / profile.num_tokens
    return f"{milliseconds:.3f}", f"{row.seconds / profile.wall_s:.1%}", str(row.calls)


def _summary(profile: Profile) -> str:
    apart = profile.accounted_s / profile.wall_s - 1
    doubt = f"; the phases' sum is off the wall time by {apart:+.1%}" if abs(apart) > ADDS_UP_WITHIN else ""
    recorded = profile.wall_s / profile.plain_wall_s - 1
    peak = profile.peak_memory_bytes
    return (
        f"{profile.method}: {profile.num_tokens} tokens in {profile.plain_wall_s * 1e3:.1f} ms plain "
        f"({recorded:+.1%} while recorded), prefill {profile.prefill_s * 1e3:.1f} ms; weights "
        f"{profile.weight_bytes / 1e6:.0f} MB + {profile.extra_weight_bytes / 1e6:.0f} MB of its own, cache "
        f"{profile.kv_bytes / 1e6:.2f} MB, peak {'not available' if peak is None else f'{peak / 1e6:.0f} MB'}{doubt}"
    )


_MOST_STEPS = 7
"""Number of steps in the memory table; the JSON has all of them."""


def _memory_table(profile: Profile) -> Table:
    """Returns a table of evenly spaced steps, including the first, the last and the one with the highest peak."""
    points = profile.memory
    last = len(points) - 1
    spread = {round(index * last / (_MOST_STEPS - 1)) for index in range(_MOST_STEPS)}
    highest = max(range(len(points)), key=lambda index: points[index].peak_bytes)
    weights = profile.weight_bytes + profile.extra_weight_bytes
    table = Table(box=None, pad_edge=False, title_justify="left")
    table.add_column(f"memory of {profile.method}, MB\nafter step")
    for title in (
        "tokens",
        "weights",
        "caches\nin use",
        "caches and\nstate held",
        "activations\nat peak",
        "all at\npeak",
    ):
        table.add_column(title, justify="right", vertical="bottom")
    for index in sorted(spread | {highest}):
        point = points[index]
        table.add_row(
            "0 (prefill)" if index == 0 else f"{index}{' (highest)' if index == highest else ''}",
            str(point.num_tokens),
            _megabytes(weights),
            "–" if point.kv_bytes is None else _megabytes(point.kv_bytes),
            _megabytes(point.held_bytes),
            _megabytes(point.activation_bytes),
            _megabytes(weights + point.peak_bytes),
        )
    return table


def _target_kv(profile: Profile, kv: KVMemory) -> str:
    """Returns three different measures of KV memory side by side."""
    allocator = "not available" if kv.allocator_bytes is None else f"{_megabytes(kv.allocator_bytes)} MB"
    return (
        f"the target's cache with {profile.kv_slots} slots in use: {_megabytes(kv.formula_bytes)} MB by formula, "
        f"{_megabytes(kv.storage_bytes)} MB of storage, allocator's difference {allocator}"
    )


def _megabytes(value: int) -> str:
    return f"{value / 1e6:.2f}"
