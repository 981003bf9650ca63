"""Times decode steps of one model shape in each regime, as shares of the memory's speed.

Weights are random, because a step's speed depends on sizes alone. The cost of a HAMburger macro-step of m tokens is
composed from these steps; :mod:`hambench.bench.forced` times the macro-steps themselves. In both, m is *forced*: no
acceptance or confidence enters.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hambench.errors import HambenchError, UnknownNameError

if TYPE_CHECKING:
    import torch

    from hambench.bench.forced import Amount, ForcedPace
    from hambench.engine.language_model import LanguageModel
    from hambench.engine.llama import Llama
    from hambench.kernels.tools.shapes import KernelShape

MICRO_LAYERS = 4
STEPS = 32
REPEATS = 7
TOLERANCE = 0.05
"""Relative error of bfloat16 logits between torch and the kernels: one rounding per layer and operation."""


@dataclasses.dataclass(frozen=True)
class Pace:
    """Seconds per forward in each repeat."""

    what: str
    """``step``, ``draft`` (INT8 weights) or ``micro`` (four layers and the head)."""
    regime: str
    kernels: str
    rows: int
    num_bytes: int
    """Bytes of weights, keys and values that one forward reads."""
    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """Median seconds per forward."""
        return statistics.median(self.seconds)


@dataclasses.dataclass(frozen=True)
class RegimeReport:
    """Result of one `hambench bench regimes`."""

    shape: str
    device: str
    context: int
    copy_bytes_per_second: float
    error: float
    """Relative error of the kernels' logits against torch's, checked before any timing."""
    paces: tuple[Pace, ...]
    forced: tuple[ForcedPace, ...] = ()
    """Paces of whole steps at forced lengths."""
    dry_run: bool = False
    """True if the steps only ran on a CPU without timing; there are no figures then."""

    def to_json(self) -> dict[str, Any]:
        """Returns plain values, raw repeats included."""
        return dataclasses.asdict(self)

    def pace(self, what: str, regime: str, kernels: str, rows: int = 1) -> Pace | None:
        """Returns the pace with these properties, ``None`` if there is none."""
        wanted = (what, regime, kernels, rows)
        return next((p for p in self.paces if (p.what, p.regime, p.kernels, p.rows) == wanted), None)


def run(
    shape_name: str,
    device_name: str,
    *,
    context: int,
    progress: Callable[[str], None],
    save: Callable[[RegimeReport], None] = lambda report: None,
) -> RegimeReport:
    """Checks the kernels against torch, then times steps in each regime, and whole steps at forced lengths.

    Args:
        shape_name: Name in :data:`hambench.kernels.tools.shapes.SHAPES`.
        device_name: A CUDA device.
        context: Number of tokens before the steps.
        progress: Receives one line per timed item.
        save: Receives the unfinished report, before the forced part and after each of its rows.

    Raises:
        HambenchError: If there is no CUDA device, or the numerics disagree.
    """
    import torch

    from hambench.bench import forced as bench_forced
    from hambench.engine.cuda.fused_llama import accelerate
    from hambench.engine.int8 import quantize_int8
    from hambench.kernels.tools import bench
    from hambench.kernels.tools.shapes import SHAPES
    from hambench.models.target import device_of

    if shape_name not in SHAPES:
        raise UnknownNameError("shape", shape_name, SHAPES)
    if not device_name.startswith("cuda") or not torch.cuda.is_available():
        raise HambenchError("bench regimes needs a CUDA device: on a CPU there are no graphs to compare")
    device = device_of(device_name)
    ceiling = bench.measure_ceiling(device)
    paces: list[Pace] = []
    error = 0.0
    for what, layers in (("step", None), ("draft", None), ("micro", MICRO_LAYERS)):
        plain = random_llama(SHAPES[shape_name], device, torch.bfloat16, num_layers=layers)
        if what == "draft":
            draft = quantize_int8(plain).reference
            assert draft is not None
            plain = draft
        error = max(error, _check(plain, device, what))
        for regime, kernels in (("eager", "reference"), ("eager", "fused"), ("graph", "fused")):
            for rows in (1, 2, 5, 8) if what == "step" and regime == "graph" else (1,):
                progress(f"{what}, {regime}, {kernels}, {rows} rows")
                paces.append(_pace(plain, what, regime, kernels, rows, context))
                gc.collect()
        del plain
        torch.cuda.empty_cache()
    report = RegimeReport(shape_name, bench.device_name(device), context, ceiling.copy, error, tuple(paces))
    save(report)
    plain = random_llama(SHAPES[shape_name], device, torch.bfloat16)

    def engine(model: Llama, regime: str, kernels: str) -> LanguageModel:
        return accelerate(model, regime=regime, kernels=kernels)

    for forced in bench_forced.run(
        plain, SHAPES[shape_name], engine=engine, context=context, amount=_amount, progress=progress
    ):
        report = dataclasses.replace(report, forced=(*report.forced, forced))
        save(report)
    return report


def walk(progress: Callable[[str], None]) -> RegimeReport:
    """Runs the forced part on a CPU with a toy model and the kernels' references; gives no figures."""
    import torch

    from hambench.bench import forced as bench_forced
    from hambench.bench.forced import Amount
    from hambench.engine.cuda.fused_llama import FusedLlama
    from hambench.kernels.tools.shapes import TOY

    plain = random_llama(TOY, torch.device("cpu"), torch.float32)

    def engine(model: Llama, regime: str, kernels: str) -> LanguageModel:
        return model if kernels == "reference" else FusedLlama(model, impl="reference")

    walked = bench_forced.run(
        plain, TOY, engine=engine, context=24, amount=lambda regime: Amount(2, 1), progress=progress
    )
    forced = tuple(dataclasses.replace(pace, seconds=()) for pace in walked)
    return RegimeReport("toy", "a CPU", 24, 0.0, 0.0, (), forced, dry_run=True)


def _amount(regime: str) -> Amount:
    from hambench.bench.forced import Amount

    # without graphs, launches bound a step: it takes many times as long, and repeats vary little
    return Amount(STEPS, REPEATS) if regime == "graph" else Amount(8, 3)


def random_llama(
    sizes: KernelShape, device: torch.device, dtype: torch.dtype, *, num_layers: int | None = None
) -> Llama:
    """Builds a Llama of a named shape with random weights and a tied head."""
    import torch

    from hambench.engine.llama import Llama
    from hambench.engine.shape import LlamaShape
    from hambench.models.contents import sizes_of

    layers = num_layers or sizes.num_layers
    shape = LlamaShape(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_layers=layers,
        num_heads=sizes.heads,
        num_kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        rms_norm_eps=1e-5,
        rope_theta=5e5,
        max_positions=sizes.capacity,
        tie_embeddings=True,
    )

    def normal(*size: int) -> torch.Tensor:
        drawn = torch.randn(*size, dtype=dtype, device=device)
        return drawn.mul_(size[-1] ** -0.5)

    ones = torch.ones(sizes.hidden, dtype=dtype, device=device)
    weights = {name: normal(*size) if len(size) > 1 else ones for name, size in sizes_of(shape).items()}
    return Llama(shape, weights, dtype, device)


def _check(plain: Llama, device: torch.device, what: str) -> float:
    import torch

    from hambench.engine.cuda.fused_llama import accelerate

    ids = torch.arange(1, 40, device=device)
    logits = []
    for model in (plain, accelerate(plain, regime="graph", kernels="fused")):
        cache = model.new_cache(64)
        model.prefill(ids, cache)
        logits.append(model.forward(ids[:1], cache).logits.double())
    error = float((logits[0] - logits[1]).norm() / logits[0].norm())
    if not error <= TOLERANCE:
        raise HambenchError(
            f"the kernels' {what} logits are off by {error:.3g}, more than {TOLERANCE}: no speed is given"
        )
    return error


def _pace(plain: Llama, what: str, regime: str, kernels: str, rows: int, context: int) -> Pace:
    import torch

    from hambench.engine.cuda.fused_llama import accelerate

    model = accelerate(plain, regime=regime, kernels=kernels)
    cache = model.new_cache(context + rows)
    ids = torch.arange(1, context + 1, device=model.device) % 1000
    model.prefill(ids, cache)
    tokens = ids[:rows].tolist()

    def step() -> None:
        # as a session does: wait for the tokens, and roll a verification back
        model.greedy(tokens, cache, num_tokens=rows)
        cache.truncate(context)

    for _ in range(8):
        step()
    seconds = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(STEPS):
            step()
        end.record()
        torch.cuda.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3 / STEPS)
    moved = model.weight_bytes + context * cache.bytes_per_slot
    return Pace(what, regime, kernels, rows, moved, tuple(seconds))


def markdown(report: RegimeReport) -> str:
    """Formats the report as a Markdown page."""
    from hambench.bench.forced import markdown as forced_table

    if report.dry_run:
        lines = [
            "# Dry run: forced steps",
            "",
            "**Run on a CPU with a toy model: nothing was measured.**",
            "",
        ]
        return "\n".join([*lines, *forced_table(report.forced)]) + "\n"
    lines = [
        f"# Decode steps at the shape of {report.shape}, on {report.device}",
        "",
        f"Random bfloat16 weights, a context of {report.context} tokens, wall time between steps included (each step's "
        f"tokens are waited for). Copy in this process: {report.copy_bytes_per_second / 1e9:.0f} GB/s. The kernels' "
        f"logits differed from torch's by {report.error:.2g} (relative) before timing.",
        "",
        "| what | regime | kernels | rows | ms | per second | MBU copy | × step |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for pace in report.paces:
        base = report.pace("step", pace.regime, pace.kernels)
        ratio = "–" if base is None else f"{pace.median_s / base.median_s:.2f}"
        share = 100 * pace.num_bytes / pace.median_s / report.copy_bytes_per_second
        lines.append(
            f"| {pace.what} | {pace.regime} | {pace.kernels} | {pace.rows} | {pace.median_s * 1e3:.3f} | "
            f"{1 / pace.median_s:.0f} | {share:.0f} % | {ratio} |"
        )
    lines += ["", *_composed(report)]
    if report.forced:
        lines += ["", *forced_table(report.forced)]
    return "\n".join(lines) + "\n"


def _composed(report: RegimeReport) -> list[str]:
    """Returns HAMburger at forced m, composed of a base step and m - 1 micro-steps, without merger and stop head."""
    lines = [
        "Composed, m forced: one step and m - 1 micro-steps, for m tokens, against vanilla in the same regime. The "
        "merger and the stop head are not in it (2 % of the bytes at m = 2 of Llama-3.2-1B's shape).",
        "",
        "| regime | kernels | m = 2 | m = 3 | m = 4 |",
        "|---|---|--:|--:|--:|",
    ]
    for regime, kernels in (("eager", "reference"), ("eager", "fused"), ("graph", "fused")):
        step, micro = report.pace("step", regime, kernels), report.pace("micro", regime, kernels)
        if step is None or micro is None:
            continue
        gains = [m * step.median_s / (step.median_s + (m - 1) * micro.median_s) for m in (2, 3, 4)]
        lines.append(f"| {regime} | {kernels} | " + " | ".join(f"{gain:.2f}×" for gain in gains) + " |")
    return lines
