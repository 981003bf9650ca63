from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from fakes import save_tiny_model, wrap_prompts
from native_fixtures import need_compiler

from hambench.cli.profile import command
from hambench.errors import HambenchError


def run(tiny_model: Path, *arguments: str) -> str:
    options = [
        "--model",
        str(tiny_model),
        "--dtype",
        "float32",
        "--prompt",
        "abcdefgh",
        "-n",
        "6",
        *arguments,
    ]
    return CliRunner().invoke(command, options, catch_exceptions=False).stdout


def test_a_profile_says_what_was_run_and_the_three_numbers_of_kv_memory(tiny_model: Path) -> None:
    text = run(tiny_model, "--against", "prompt_lookup")
    assert text.startswith(f"{tiny_model} in float32 on cpu\n")
    (profile,) = json.loads(run(tiny_model, "--json"))
    # the last token has no slot yet
    assert profile["kv_slots"] == 8 + 5
    kv = profile["target_kv"]
    assert kv["formula_bytes"] == profile["kv_bytes"]
    # room was made for the last token too
    assert kv["storage_bytes"] == kv["formula_bytes"] * 14 // 13
    assert kv["allocator_bytes"] is None
    assert text.count("13 slots in use") == 2
    assert "allocator's difference not available" in text


def test_a_profiled_prompt_begins_once_and_never_ends(tmp_path: Path) -> None:
    folder = wrap_prompts(save_tiny_model(tmp_path / "tiny"))
    (profile,) = json.loads(run(folder, "--prompt", "<bos>hi", "--json"))
    assert profile["kv_slots"] == 3 + 5


def test_memory_is_in_the_json_at_every_step(tiny_model: Path) -> None:
    (profile,) = json.loads(run(tiny_model, "--json"))
    assert [point["num_tokens"] for point in profile["memory"]] == [1, 2, 3, 4, 5, 6]
    assert all(point["peak_bytes"] >= point["held_bytes"] > 0 for point in profile["memory"])


def test_a_native_forward_is_one_phase_and_the_reference_shows_its_parts(tiny_model: Path) -> None:
    need_compiler()
    found = {}
    for kernels in ("auto", "native", "reference"):
        arguments = ("--kernels", kernels, "--method", "speculative[k=2]", "--json")
        (profile,) = json.loads(run(tiny_model, *arguments))
        found[kernels] = {tuple(row["path"]) for row in profile["rows"]}
    # the kernels that `hambench run` would use
    assert found["auto"] == found["native"]
    assert {("draft", "native chain"), ("verify", "native forward")} <= found["native"]
    assert ("verify", "forward", "layers") in found["reference"]
    assert not any("native" in name for path in found["reference"] for name in path)


def test_one_token_leaves_nothing_to_profile(tiny_model: Path) -> None:
    with pytest.raises(HambenchError, match="-n must be >= 2"):
        run(tiny_model, "-n", "1")
