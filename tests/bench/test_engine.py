import json

import pytest
from click.testing import CliRunner
from fakes import TINY_SHAPE, random_weights
from native_fixtures import compiler  # noqa: F401
from safetensors.torch import save_file
from transformers import LlamaConfig

from hambench.bench import engine
from hambench.cli.bench.engine import command
from hambench.errors import HambenchError
from hambench.models.target import load
from hambench.runner import backend

needs_compiler = pytest.mark.usefixtures("compiler")


@pytest.fixture
def folder(tmp_path, private_cache):
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        rms_norm_eps=1e-5,
    )
    folder = tmp_path / "tiny"
    folder.mkdir()
    save_file(random_weights(TINY_SHAPE), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder


def run(folder, *arguments):
    asked = ["--model", str(folder), "--tokens", "4", "--contexts", "100", "--repeats", "2", *arguments]
    return CliRunner().invoke(command, asked, catch_exceptions=False)


def test_the_numerics_come_first_and_each_ratio_is_of_paired_repeats(folder):
    told = json.loads(run(folder, "--json").stdout)
    exact = [item for item in told["numerics"] if item["dtype"] == "float32"]
    assert {(item["num_tokens"], item["num_different"]) for item in exact} == {(32, 0)}
    assert {item["engine"] for item in exact} == {"reference", "native"} - (
        {"native"} if not told["native"] else set()
    )
    paces = {(pace["engine"], pace["phase"]): pace["seconds_per_token"] for pace in told["paces"]}
    assert {len(seconds) for seconds in paces.values()} == {2}
    for item in told["ratios"]:
        pairs = zip(paces["transformers", item["phase"]], paces[item["engine"], item["phase"]], strict=True)
        ratios = sorted(theirs / ours for theirs, ours in pairs)
        assert item["times_transformers"]["least"] == pytest.approx(ratios[0])
        assert item["times_transformers"]["most"] == pytest.approx(ratios[1])


def test_the_share_of_bandwidth_counts_weights_keys_and_values(folder):
    told = json.loads(run(folder, "--json").stdout)
    slot_bytes = 2 * 4 * 2 * 16 * 2
    reference = next(p for p in told["paces"] if (p["engine"], p["phase"]) == ("reference", "decode"))
    target = load(str(folder))
    assert reference["bytes_per_token"] == target.weight_bytes + 100 * slot_bytes
    share = next(r for r in told["ratios"] if (r["engine"], r["phase"]) == ("reference", "decode"))[
        "bandwidth_share"
    ]
    seconds = sum(reference["seconds_per_token"]) / 2
    read = told["read_gigabytes_per_second"] * 1e9
    assert share == pytest.approx(reference["bytes_per_token"] / seconds / read)


@needs_compiler
def test_the_table_names_every_engine_phase_and_number_of_rows(folder):
    table = run(folder).stdout
    assert "native in float32: all 32 greedy tokens are transformers' own" in table
    for phase in ("decode", "prefill"):
        for name in ("transformers", "reference", "native", "native int8"):
            assert any(line.startswith(f"{phase:8} {100:7} {name}") for line in table.splitlines())
    (rows,) = [line for line in table.splitlines() if line.startswith("a forward of r rows")]
    assert "1: 1.00, " in rows
    assert ", 16: " in rows
    assert "an INT8 step in native steps: " in table


def test_without_a_native_engine_the_table_says_why(folder, monkeypatch):
    monkeypatch.setattr(backend, "native_obstacle", lambda target: "there is no C++ compiler: install g++")
    table = run(folder).stdout
    assert "native engine: not available: there is no C++ compiler: install g++" in table
    assert "reference int8" in table
    assert "a forward of r rows" not in table


def test_no_speed_is_given_for_an_engine_that_computes_something_else(folder, monkeypatch):
    from hambench.engine.llama import Llama

    honest = Llama.lm_head
    monkeypatch.setattr(Llama, "lm_head", lambda self, hidden: honest(self, hidden).roll(1, dims=-1))
    monkeypatch.setattr(engine, "_time_llama", lambda *_: pytest.fail("timed all the same"))
    with pytest.raises(
        HambenchError, match="32 of 32 greedy tokens of reference in float32 are not transformers'"
    ):
        run(folder)


def test_a_prompt_beyond_the_context_is_refused(folder):
    with pytest.raises(HambenchError, match="context of 512 tokens, 616 are needed"):
        run(folder, "--contexts", "64,600")
