from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from synthetic import header

from hambench.analysis.bandwidth_limit import Limit, decode_bytes, limits_of
from hambench.methods.common.speculation import SpeculationBytes
from hambench.methods.hamburger.byte_rule import HamburgerBytes
from hambench.models.sizes import SHAPES, shape_scalars
from hambench.records import Cell, GenerationTrace, SampleRecord, StepRecord
from hambench.roofline.byte_model import ByteModel
from hambench.store import Run

SHAPE = SHAPES["smollm2-135m"]
BYTES = ByteModel(shape=SHAPE)
HAMBURGER = HamburgerBytes(BYTES, num_micro_layers=2)


def cell(method: str, **knobs: str | float | int) -> Cell:
    own_sizes: dict[str, Any] = {"num_micro_layers": 2, "max_micro_steps": 4} if method == "hamburger" else {}
    return Cell(method=method, label=method, knobs=knobs, model="m", dtype="bfloat16", own_sizes=own_sizes)


def trace(*steps: StepRecord) -> GenerationTrace:
    return GenerationTrace(prompt_tokens=9, steps=steps, finish="length")


def step(num_tokens: int = 1, seconds: float = 0.01, **counts: Any) -> StepRecord:
    return StepRecord(tokens=(1,) * num_tokens, seconds=seconds, **counts)


def run_of(
    cell: Cell, trace: GenerationTrace, *, probes: tuple[float, ...] = (46e9,), load: float = 0.0
) -> Run:
    base = header((cell,), num_samples=1)
    base = dataclasses.replace(base, model={**base.model, **SHAPE.as_scalars()})
    record = SampleRecord(cell=cell.label, sample_id="s", prompt_hash="h", trace=trace, other_load=load)
    telemetry = tuple({"kind": "bandwidth", "read": value, "copy": value} for value in probes)
    return Run(Path("run"), base, {}, (record,), (), telemetry)


def limit_of(cell: Cell, trace: GenerationTrace, **options: object) -> Limit:
    return limits_of(run_of(cell, trace, **options))[cell.label]  # type: ignore[arg-type]


def test_vanilla_reads_all_weights_and_its_cache_once_a_token_and_the_prefill_is_left_out() -> None:
    cached = step(kv_slots=1000, kv_bytes=1000 * int(BYTES.kv_per_slot))
    one = trace(step(kv_slots=9, target_forwards=5), *[cached] * 10)
    assert decode_bytes([one], SHAPE, cell("vanilla")) == 10 * BYTES.vanilla_bytes(context=1000)


@pytest.mark.parametrize("m", [1, 2, 4])
def test_hamburger_reads_what_its_curve_says(m: int) -> None:
    one = trace(
        step(m, kv_slots=9), *[step(m, kv_slots=500, micro_forwards=m - 1, continue_probs=(0.5,) * m)] * 20
    )
    needed = decode_bytes([one], SHAPE, cell("hamburger"))
    # a group of one skips the merge, which the curve counts always
    merge = 0 if m > 1 else 20 * HAMBURGER.merge
    assert needed == pytest.approx(20 * m * HAMBURGER.per_token(m, context=500) - merge)


def test_speculation_reads_its_draft_and_its_cache_once_a_draft_forward() -> None:
    one = trace(step(kv_slots=9), *[step(5, kv_slots=300, draft_forwards=4, drafted=4, accepted=4)] * 7)
    needed = decode_bytes([one], SHAPE, cell("speculative", draft="int8"))
    assert needed == pytest.approx(7 * 5 * SpeculationBytes(BYTES).per_token(4, 1.0, context=300))


def test_a_draft_of_unknown_size_has_no_limit_and_prompt_lookup_needs_none() -> None:
    drafted = trace(step(), step(2, draft_forwards=1, drafted=1, accepted=1))
    assert decode_bytes([drafted], SHAPE, cell("speculative", draft="another-model")) is None
    assert limits_of(run_of(cell("speculative", draft="another-model"), drafted)) == {}
    looked_up = trace(step(), step(3, drafted=2, accepted=2))
    assert decode_bytes([looked_up], SHAPE, cell("prompt_lookup")) == BYTES.step


def test_hamburgers_weights_are_asked_where_a_run_does_not_say_their_sizes() -> None:
    one = trace(step(2), step(2, micro_forwards=1, continue_probs=(0.5,) * 2))
    old = dataclasses.replace(cell("hamburger"), own_sizes={})
    assert decode_bytes([one], SHAPE, old) is None
    shipped = dataclasses.replace(old, model="smollm2-135m")
    assert decode_bytes([one], SHAPE, shipped) == decode_bytes([one], SHAPE, cell("hamburger"))


def test_a_method_that_is_not_installed_here_has_no_limit() -> None:
    assert decode_bytes([trace(step(), step())], SHAPE, cell("of_another_machine")) is None


def test_a_peer_whose_counts_are_unknown_has_no_limit() -> None:
    unknown = dataclasses.replace(step(), target_forwards=None, kv_slots=None)
    assert decode_bytes([trace(step(), unknown)], SHAPE, cell("transformers")) is None


def test_utilisation_is_measured_over_predicted_speed() -> None:
    limit = limit_of(cell("vanilla"), trace(step(), *[step(seconds=0.01)] * 10))
    assert limit.measured_tps == pytest.approx(100)
    assert limit.predicted_tps == pytest.approx(46e9 / BYTES.step)
    assert limit.mbu == pytest.approx(BYTES.step / 0.01 / 46e9)
    assert limit.flag == ""


@pytest.mark.parametrize(
    ("seconds", "options", "reason"),
    [
        (0.1, {}, "compute or overhead, not told apart"),
        (0.1, {"load": 0.5}, "others took 50%"),
        (0.001, {}, "stays in a cache"),
        (0.001, {"probes": (46e9, 20e9)}, "probe was disturbed"),
    ],
)
def test_what_lies_outside_the_plausible_range_gets_its_likely_reason(
    seconds: float, options: dict[str, object], reason: str
) -> None:
    assert reason in limit_of(cell("vanilla"), trace(step(), *[step(seconds=seconds)] * 10), **options).flag


def threaded(seconds: dict[int, float], probes: dict[int, float]) -> dict[str, Limit]:
    """Vanilla cells of a run by their threads, each with the seconds of its steps; probes by theirs."""
    cells = [dataclasses.replace(cell("vanilla"), label=f"vanilla[threads={n}]", threads=n) for n in seconds]
    base = header(tuple(cells), num_samples=1)
    base = dataclasses.replace(base, model={**base.model, **SHAPE.as_scalars()})
    records = tuple(
        SampleRecord(
            cell=each.label,
            sample_id="s",
            prompt_hash="h",
            trace=trace(step(), *[step(seconds=seconds[each.threads or 0])] * 10),
        )
        for each in cells
    )
    telemetry = tuple({"kind": "bandwidth", "read": value, "threads": n} for n, value in probes.items())
    return limits_of(Run(Path("run"), base, {}, records, (), telemetry))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        # 6 ms of memory traffic at 46 GB/s, then what the threads share, then what they do not
        ({1: 0.106, 2: 0.056}, "compute-bound"),
        ({1: 0.106, 2: 0.105}, "overhead-bound"),
        ({1: 0.106, 2: 0.081}, "compute and overhead alike"),
        ({1: 0.106}, "not told apart"),
    ],
)
def test_compute_and_overhead_are_told_apart_by_the_threads_where_they_varied(
    seconds: dict[int, float], words: str
) -> None:
    limits = threaded(seconds, dict.fromkeys(seconds, 46e9))
    assert words in limits["vanilla[threads=1]"].flag
    assert "ms of each step are no memory traffic" in limits["vanilla[threads=1]"].flag


def test_a_cell_is_judged_against_what_its_own_threads_read() -> None:
    limits = threaded({1: 0.02, 2: 0.02}, {1: 20e9, 2: 46e9})
    assert {label: limit.bandwidth for label, limit in limits.items()} == {
        "vanilla[threads=1]": 20e9,
        "vanilla[threads=2]": 46e9,
    }
    # no probe of one thread: what two read is not its ceiling
    assert set(threaded({1: 0.02, 2: 0.02}, {2: 46e9})) == {"vanilla[threads=2]"}


def test_without_a_probe_or_sizes_there_is_no_limit_rather_than_a_guess() -> None:
    run = run_of(cell("vanilla"), trace(step(), step()))
    assert limits_of(dataclasses.replace(run, telemetry=())) == {}
    nameless = dataclasses.replace(run.header, model={"name": "m"})
    assert limits_of(dataclasses.replace(run, header=nameless)) == {}


def test_a_loaded_models_shape_becomes_scalars_and_a_foreign_one_nothing() -> None:
    assert shape_scalars(SHAPE) == SHAPE.as_scalars()
    assert shape_scalars(object()) == {}


def test_llama_cpp_reads_its_own_file_and_a_float16_cache_and_other_files_are_unknown() -> None:
    file = 98_400_000
    peer = dataclasses.replace(cell("llama_cpp"), own_sizes={"weight_bytes": file})
    one = trace(step(kv_slots=9), *[step(kv_slots=300)] * 10)
    float16 = 300 * BYTES.kv_per_slot
    assert decode_bytes([one], SHAPE, peer) == 10 * (file + float16)
    # the type of the other cells is not the file's, nor its cache's
    in_float32 = dataclasses.replace(peer, dtype="float32")
    assert decode_bytes([one], SHAPE, in_float32) == 10 * (file + float16)
    assert decode_bytes([one], SHAPE, cell("llama_cpp", gguf="other.gguf")) is None
