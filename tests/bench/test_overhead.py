from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hambench.bench.asking import measure
from hambench.bench.overhead import Overhead, measure_overhead
from hambench.cli.bench.overhead import command
from hambench.errors import HambenchError
from hambench.models import target as models
from hambench.models.target import load
from hambench.profiling.profile import IdleCost


def test_the_harness_is_what_of_the_wall_time_is_no_step(tiny_model: Path) -> None:
    (measured,) = measure_overhead(
        load(str(tiny_model), dtype="float32", device="cpu"),
        methods=("vanilla",),
        num_records=2,
        max_new_tokens=8,
    )
    assert measured.num_tokens == 16
    assert 0 < measured.steps_s < measured.wall_s
    assert 0 < measured.share < 1
    assert measured.profiling is not None
    assert measured.profiling.num_ranges == 0
    assert measured.profiling_share == 0


def test_shares_are_of_one_record() -> None:
    cost = IdleCost(num_ranges=100, seconds_each=1e-6)
    overhead = Overhead(
        cell="x", num_records=4, num_tokens=80, wall_s=2.2, steps_s=2.0, start_s=None, profiling=cost
    )
    assert overhead.profiling_share == pytest.approx(100e-6 / 0.5)
    assert overhead.share == pytest.approx(0.2 / 2.2)


def test_the_command_prints_both_shares(tiny_model: Path) -> None:
    arguments = ["--model", str(tiny_model), "--dtype", "float32", "--records", "1", "--max-new-tokens", "4"]
    text = CliRunner().invoke(command, arguments).stdout
    assert "is the harness" in text
    assert "profiling, off: 0.000% of the steps (0 ranges per record" in text
    item = json.loads(CliRunner().invoke(command, [*arguments, "--json"]).stdout.splitlines()[0])
    assert item["profiling_share"] == 0


def test_the_fixed_costs_of_a_run_are_printed_by_part(tiny_model: Path) -> None:
    arguments = ["--model", str(tiny_model), "--dtype", "float32", "--records", "1", "--max-new-tokens", "4"]
    arguments += ["--suite", "efficiency"]
    text = CliRunner().invoke(command, arguments, catch_exceptions=False).stdout
    line = text.splitlines()[-1]
    assert line.startswith("before the first sample of efficiency: ")
    last = CliRunner().invoke(command, [*arguments, "--json"]).stdout.splitlines()[-1]
    parts = json.loads(last)["parts"]
    assert list(parts) == [
        "model", "suite", "methods", "counting tokens", "warm-ups", "calibration", "bandwidth probe",
    ]  # fmt: skip
    assert all(f"{name} " in line for name in parts)
    assert all(seconds >= 0 for seconds in parts.values())


def test_the_model_is_loaded_once_for_the_harness_and_the_loops(tiny_model: Path, monkeypatch) -> None:
    loaded: list[str] = []

    def counted(name: str, **options):
        loaded.append(name)
        return load(name, **options)

    monkeypatch.setattr(models, "load", counted)
    arguments = ["--model", str(tiny_model), "--dtype", "float32", "--records", "1", "--max-new-tokens", "4"]
    text = CliRunner().invoke(command, arguments, catch_exceptions=False).stdout
    assert "the engine's loop over a bare loop" in text
    assert loaded == [str(tiny_model)]


@pytest.mark.parametrize("error", [HambenchError("no ratio is given"), RuntimeError("out of memory")])
def test_an_error_of_the_loops_is_told_after_all_that_was_asked_for(
    tiny_model: Path, monkeypatch, error
) -> None:
    def failing(*_, **__):
        raise error

    monkeypatch.setattr(measure, "measure_asking", failing)
    arguments = ["--model", str(tiny_model), "--dtype", "float32", "--records", "1", "--max-new-tokens", "4"]
    result = CliRunner().invoke(command, [*arguments, "--suite", "efficiency"])
    assert result.exception is error
    lines = result.stdout.splitlines()
    assert "is the harness" in lines[0]
    assert lines[-1].startswith("before the first sample of efficiency: ")
