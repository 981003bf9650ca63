"""The table of ``hambench predict``: what bandwidth allows each method, for a model that need not be at hand."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from hambench.roofline.byte_model import MAX_GROUP, ByteModel
from hambench.roofline.gpu_specs import bandwidth_text

GROUPS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
"""Tokens per macro-step that the table shows."""
DRAFTS = (1, 2, 4, 8)
ACCEPTANCES = (0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Ceiling of one configuration."""

    method: str
    setting: str
    bytes_per_token: float
    tps: float
    speedup: float
    """Over vanilla at the same bandwidth, context and launch gap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """All that the byte model says about a model on a machine."""

    model: str
    machine: str
    bandwidth: float
    bandwidth_source: str
    """``data sheet``, ``as given`` or ``measured now``."""
    dtype: str
    context: int
    gap_s: float
    step_bytes: int
    kv_bytes_per_slot: int
    flops_per_token: float
    extra_bytes: dict[str, int]
    """Weights that a method adds."""
    rows: tuple[Prediction, ...]
    hamburger_break_even: float
    hamburger_asymptote: float
    hamburger_pays_in_memory_from: int
    """Cached positions that HAMburger must save before its extra weights are paid back."""
    speculative_break_even: dict[int, float | None]
    """Acceptance from which k drafted tokens pay."""
    equivalence: dict[float, tuple[float, int] | None]
    """Tokens per macro-step → acceptance at which int8 speculation with its best k is as fast, and that k."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return dataclasses.asdict(self)


def forecast(
    bytes_of: ByteModel,
    bandwidth: float,
    *,
    model: str,
    machine: str,
    bandwidth_source: str,
    dtype: str,
    context: int = 0,
    gap_s: float = 0.0,
) -> Forecast:
    """Evaluates the byte model over the table's settings.

    Args:
        bytes_of: The byte model.
        bandwidth: Bytes per second.
        model: Its name, to be shown.
        machine: The machine's name, to be shown.
        bandwidth_source: Where the bandwidth comes from.
        dtype: Type of the weights, to be shown.
        context: Cached positions.
        gap_s: Seconds lost between two kernels.
    """
    vanilla = bytes_of.vanilla_tps(bandwidth, context=context, gap_s=gap_s)
    rows = [("vanilla", "", bytes_of.vanilla_bytes(context=context), vanilla)]
    int8 = bytes_of.int8_draft + context * bytes_of.kv_per_slot
    rows.append(
        ("all int8", "not lossless", int8, bytes_of.int8_tps(bandwidth, context=context, gap_s=gap_s))
    )
    for m in GROUPS:
        spent = bytes_of.hamburger_bytes(m, context=context)
        rows.append(
            (
                "hamburger",
                f"m={m:g}",
                spent,
                bytes_of.hamburger_tps(m, bandwidth, context=context, gap_s=gap_s),
            )
        )
    for k in DRAFTS:
        for a in ACCEPTANCES:
            spent = bytes_of.speculative_bytes(k, a, context=context)
            tps = bytes_of.speculative_tps(k, a, bandwidth, context=context, gap_s=gap_s)
            rows.append(("speculative", f"k={k} a={a:g}", spent, tps))
    return Forecast(
        model=model,
        machine=machine,
        bandwidth=bandwidth,
        bandwidth_source=bandwidth_source,
        dtype=dtype,
        context=context,
        gap_s=gap_s,
        step_bytes=bytes_of.step,
        kv_bytes_per_slot=bytes_of.kv_per_slot,
        flops_per_token=bytes_of.flops_per_token(context=context),
        extra_bytes={"hamburger": bytes_of.hamburger_extra, "speculative": bytes_of.int8_draft},
        rows=tuple(
            Prediction(method=method, setting=setting, bytes_per_token=spent, tps=tps, speedup=tps / vanilla)
            for method, setting, spent, tps in rows
        ),
        hamburger_break_even=bytes_of.hamburger_break_even,
        hamburger_asymptote=bytes_of.hamburger_asymptote,
        hamburger_pays_in_memory_from=-(-bytes_of.hamburger_extra // bytes_of.kv_per_slot),
        speculative_break_even={k: bytes_of.speculative_break_even(k) for k in DRAFTS},
        equivalence={
            m: bytes_of.equivalent_acceptance(m) for m in GROUPS if m > bytes_of.hamburger_break_even
        },
    )


def render_forecast(forecast: Forecast, *, width: int = 110) -> str:
    """The forecast as text."""
    out = io.StringIO()
    console = Console(file=out, width=width, no_color=True, highlight=False, markup=False, emoji=False)
    source, speed = forecast.bandwidth_source, bandwidth_text(forecast.bandwidth)
    console.print(f"{forecast.model}, {forecast.dtype}, on {forecast.machine} at {speed} ({source})")
    gap = f"{forecast.gap_s * 1e6:g} µs lost per kernel" if forecast.gap_s else "no launch gaps"
    console.print(
        f"ceilings from bytes alone, {gap}: a vanilla token reads {forecast.step_bytes / 1e6:.1f} MB of weights and "
        f"{forecast.kv_bytes_per_slot:,} B of cache for each of {forecast.context:,} slots, "
        f"{forecast.flops_per_token / 1e9:.2f} GFLOP",
        soft_wrap=True,
    )
    console.print()
    table = Table(box=None, pad_edge=False)
    table.add_column("method")
    table.add_column("setting")
    for title in ("MB/token", "tok/s", "× vanilla"):
        table.add_column(title, justify="right")
    for row in forecast.rows:
        if row.method != "speculative":
            megabytes = f"{row.bytes_per_token / 1e6:.1f}"
            table.add_row(row.method, row.setting, megabytes, _speed(row.tps), f"{row.speedup:.2f}")
    console.print(table)
    console.print()
    console.print(_speculation_table(forecast))
    console.print()
    for line in _conclusions(forecast):
        console.print(line, soft_wrap=True)
    return out.getvalue().rstrip("\n")


def _speculation_table(forecast: Forecast) -> Table:
    by_setting = {row.setting: row for row in forecast.rows if row.method == "speculative"}
    table = Table(box=None, pad_edge=False)
    table.add_column("int8 speculation")
    for k in DRAFTS:
        table.add_column(f"k={k} tok/s (×)", justify="right")
    for a in ACCEPTANCES:
        cells = [by_setting[f"k={k} a={a:g}"] for k in DRAFTS]
        table.add_row(f"acceptance {a:g}", *(f"{_speed(row.tps)} ({row.speedup:.2f})" for row in cells))
    table.add_row("pays from a =", *(_ratio(forecast.speculative_break_even[k]) for k in DRAFTS))
    return table


def _conclusions(forecast: Forecast) -> Sequence[str]:
    extra = forecast.extra_bytes
    lines = [
        f"hamburger pays from m = {forecast.hamburger_break_even:.2f}; no group size passes "
        f"{forecast.hamburger_asymptote:.2f}×, and it makes at most {MAX_GROUP} tokens a step",
        f"extra weights: hamburger {extra['hamburger'] / 1e6:.0f} MB (its cache savings repay them from "
        f"{forecast.hamburger_pays_in_memory_from:,} slots saved), int8 draft {extra['speculative'] / 1e6:.0f} MB",
        "as fast as hamburger is int8 speculation (lossless, its best k) at:",
    ]
    for m, equal in forecast.equivalence.items():
        answer = "no acceptance" if equal is None else f"acceptance {equal[0]:.2f} with k={equal[1]}"
        lines.append(f"  m = {m:g}: {answer}")
    return lines


def _speed(tps: float) -> str:
    return f"{tps:.0f}" if tps >= 100 else f"{tps:.1f}"


def _ratio(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}"
