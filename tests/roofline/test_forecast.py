from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from hambench.cli.predict import command
from hambench.errors import HambenchError
from hambench.models.sizes import SHAPES
from hambench.roofline.byte_model import ByteModel
from hambench.roofline.forecast import Forecast, forecast, render_forecast


def predicted(**changes: object) -> Forecast:
    options = {"model": "m", "machine": "h", "bandwidth_source": "as given", "dtype": "bfloat16", **changes}
    return forecast(ByteModel(shape=SHAPES["llama-3.2-1b"]), 1e12, **options)  # type: ignore[arg-type]


def test_every_row_is_bandwidth_over_bytes_when_nothing_else_costs() -> None:
    for row in predicted(context=500).rows:
        assert row.tps == pytest.approx(1e12 / row.bytes_per_token)


def test_speedups_are_over_vanilla_under_the_same_conditions() -> None:
    for result in (predicted(), predicted(context=4000, gap_s=1e-6)):
        vanilla = next(row for row in result.rows if row.method == "vanilla")
        assert vanilla.speedup == 1
        assert all(row.speedup == pytest.approx(row.tps / vanilla.tps) for row in result.rows)


def test_the_command_prints_the_table_from_a_name_without_torch_or_network() -> None:
    code = (
        "import sys, socket\n"
        "socket.socket.connect = None\n"
        "from hambench.cli import main\n"
        "sys.argv = ['hambench', 'predict', '--model', 'meta-llama/Llama-3.2-1B-Instruct', '--gpu', 'h200', '--json']\n"
        "try:\n    main()\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    printed, torch_loaded = done.stdout.strip().splitlines()
    assert torch_loaded == "False"
    rows = {(row["method"], row["setting"]): row for row in json.loads(printed)["rows"]}
    assert rows["vanilla", ""]["tps"] == pytest.approx(1942, abs=1)
    assert rows["hamburger", "m=2"]["speedup"] == pytest.approx(1.39, abs=0.005)


def test_the_text_holds_the_numbers_of_the_json() -> None:
    result = predicted()
    text = render_forecast(result)
    for row in result.rows:
        assert f"{row.speedup:.2f}" in text
    for said in result.methods.values():
        assert all(line in text for line in said.conclusions)
    assert f"m = {result.methods['hamburger'].facts['break_even']:.2f}" in text
    assert "data sheet" not in text


def test_two_bandwidths_are_refused() -> None:
    result = CliRunner().invoke(command, ["--gpu", "h200", "--bandwidth", "1TB/s"])
    assert isinstance(result.exception, HambenchError)


def test_context_and_launch_gaps_are_said_and_slow_things_down() -> None:
    runs = [
        CliRunner().invoke(command, ["--model", "smollm2-135m", "--gpu", "h200", "--json", *extra])
        for extra in ([], ["--context", "8000"], ["--gap-us", "1.3"])
    ]
    speeds = [json.loads(run.output)["rows"][0]["tps"] for run in runs]
    assert speeds[0] > speeds[1] > 0
    assert speeds[0] > speeds[2] > 0


def test_the_bytes_of_caches_are_said_for_every_method_that_saves_or_adds_some() -> None:
    sizes = ByteModel(shape=SHAPES["llama-3.2-1b"])
    result = predicted(context=2000)
    rows = {(row.method, row.setting): row for row in result.rows if not row.column}
    plain = rows["vanilla", ""]
    assert plain.kv_bytes is not None
    assert plain.kv_bytes == 2000 * sizes.kv_per_slot
    small = rows["vanilla", "kv_dtype=int8"]
    # bfloat16 elements against codes with a scale of two bytes: (Dh + 2) / (2 Dh)
    assert small.kv_bytes == pytest.approx(plain.kv_bytes * (64 + 2) / (2 * 64))
    assert small.tps > plain.tps
    assert rows["kv_press", "ratio=0.75"].kv_bytes == pytest.approx(plain.kv_bytes / 4)
    # a press evicts from the prompt; merged slots are those of the answer
    assert rows["kv_press", "ratio=0.75"].kv_per_token == plain.kv_per_token == sizes.kv_per_slot
    assert rows["hamburger", "m=2"].kv_per_token == sizes.kv_per_slot / 2
    assert rows["hamburger", "m=2"].kv_bytes == plain.kv_bytes
    drafts = [row for row in result.rows if row.method == "speculative" and row.column]
    assert {row.kv_bytes for row in drafts} == {2 * plain.kv_bytes}
    text = render_forecast(result)
    assert "KV MB at 2,000" in text
    assert f"{plain.kv_bytes / 1e6:.1f}" in text
    assert "KV MB" not in render_forecast(predicted())
