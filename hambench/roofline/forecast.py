"""Table of ``hambench predict``: the speed that bandwidth allows each method, without loading the model."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from hambench.method_facts import MethodCeilings
from hambench.registry import facts_of, method_names
from hambench.roofline.byte_model import ByteModel, tokens_per_second
from hambench.roofline.gpu_specs import bandwidth_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Ceiling of one configuration."""

    method: str
    setting: str
    column: str
    """Second coordinate of the setting, if the method's settings form a grid."""
    bytes_per_token: float
    tps: float
    speedup: float
    """Speed-up over vanilla at the same bandwidth, context and launch gap."""
    kv_bytes: float | None
    """Bytes of all caches behind a prompt of the context's length; ``None`` if the method does not say."""
    kv_per_token: float | None
    """Bytes that each further token adds to them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Everything that the byte model says about a model on a machine."""

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
    methods: dict[str, MethodCeilings]
    """Facts that each method states about itself: added weights, break-even points, conclusions."""
    rows: tuple[Prediction, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        fields = dataclasses.asdict(self)
        fields["methods"] = {
            name: {"extra_bytes": said.extra_bytes, **said.facts} for name, said in self.methods.items()
        }
        return fields


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
    """Asks every method for its ceilings on a model, and converts them to speeds.

    Args:
        bytes_of: The byte model.
        bandwidth: Bytes per second.
        model: Name of the model, for display.
        machine: Name of the machine, for display.
        bandwidth_source: Source of the bandwidth, for display.
        dtype: Type of the weights, for display.
        context: Number of cached positions.
        gap_s: Seconds lost between two kernels.
    """
    methods = {
        name: said
        for name in method_names()
        if (said := facts_of(name).ceilings(bytes_of, model=model, context=context)) is not None
    }

    def speed(bytes_per_token: float, kernels_per_token: float) -> float:
        return tokens_per_second(bytes_per_token, bandwidth, kernels_per_token=kernels_per_token, gap_s=gap_s)

    vanilla_tps = speed(bytes_of.vanilla_bytes(context=context), bytes_of.kernels_per_forward)
    rows = []
    for name, said in methods.items():
        for row in said.rows:
            tps = speed(row.bytes_per_token, row.kernels_per_token)
            rows.append(
                Prediction(
                    method=name,
                    setting=row.setting,
                    column=row.column,
                    bytes_per_token=row.bytes_per_token,
                    tps=tps,
                    speedup=tps / vanilla_tps,
                    kv_bytes=None if row.kv_per_position is None else context * row.kv_per_position,
                    kv_per_token=row.kv_per_token,
                )
            )
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
        methods=methods,
        rows=tuple(rows),
    )


def render_forecast(forecast: Forecast, *, width: int = 110) -> str:
    """Formats the forecast as text."""
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
    held = (f"KV MB at {forecast.context:,}",) if forecast.context else ()
    for title in ("MB/token", "tok/s", "× vanilla", *held, "KV kB/token"):
        table.add_column(title, justify="right")
    for row in forecast.rows:
        if not row.column:
            kept = (_scaled(row.kv_bytes, 1e6),) if held else ()
            table.add_row(
                row.method,
                row.setting,
                _scaled(row.bytes_per_token, 1e6),
                _speed(row.tps),
                f"{row.speedup:.2f}",
                *kept,
                _scaled(row.kv_per_token, 1e3),
            )
    console.print(table)
    for grid in _grids(forecast):
        console.print()
        console.print(grid)
    console.print()
    for said in forecast.methods.values():
        for line in said.conclusions:
            console.print(line, soft_wrap=True)
    return out.getvalue().rstrip("\n")


def _grids(forecast: Forecast) -> Iterator[Table]:
    for name, said in forecast.methods.items():
        rows = [row for row in forecast.rows if row.method == name and row.column]
        if rows:
            yield _grid(said.grid_title or name, rows)


def _grid(title: str, rows: Sequence[Prediction]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(title)
    columns = dict.fromkeys(row.column for row in rows)
    for column in columns:
        table.add_column(f"{column} tok/s (×)", justify="right")
    at = {(row.setting, row.column): row for row in rows}
    for setting in dict.fromkeys(row.setting for row in rows):
        cells = (at.get((setting, column)) for column in columns)
        table.add_row(
            setting, *("–" if row is None else f"{_speed(row.tps)} ({row.speedup:.2f})" for row in cells)
        )
    return table


def _scaled(number: float | None, unit: float) -> str:
    return "–" if number is None else f"{number / unit:.1f}"


def _speed(tps: float) -> str:
    return f"{tps:.0f}" if tps >= 100 else f"{tps:.1f}"
