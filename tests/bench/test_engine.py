import json

import pytest
from click.testing import CliRunner
from fakes import TINY_SHAPE, random_weights
from safetensors.torch import save_file
from transformers import LlamaConfig

from hambench.bench import engine
from hambench.cli.bench.engine import command
from hambench.errors import HambenchError


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
    asked = ["--model", str(folder), "--tokens", "4", "--prompt-tokens", "128", "--repeats", "2", *arguments]
    return CliRunner().invoke(command, asked, catch_exceptions=False)


def test_the_numerics_come_first_and_each_ratio_is_of_paired_repeats(folder):
    told = json.loads(run(folder, "--json").stdout)
    exact = told["numerics"][0]
    assert (exact["dtype"], exact["num_tokens"], exact["num_different"]) == ("float32", 32, 0)
    paces = {(pace["engine"], pace["phase"]): pace["seconds_per_token"] for pace in told["paces"]}
    assert {len(seconds) for seconds in paces.values()} == {2}
    for phase in ("decode", "prefill"):
        pairs = zip(paces["transformers", phase], paces["hambench", phase], strict=True)
        ratios = sorted(theirs / ours for theirs, ours in pairs)
        assert told["times_transformers"][phase]["min"] == pytest.approx(ratios[0])
        assert told["times_transformers"][phase]["max"] == pytest.approx(ratios[1])


def test_the_table_names_every_engine_and_phase(folder):
    table = run(folder).stdout
    assert "float32: all 32 greedy tokens are transformers' own" in table
    for phase in ("decode", "prefill"):
        for name in ("transformers", "hambench", "hambench int8"):
            assert any(line.startswith(f"{phase:8} {name}") for line in table.splitlines())


def test_no_speed_is_given_for_an_engine_that_computes_something_else(folder, monkeypatch):
    from hambench.engine.llama import Llama

    honest = Llama.lm_head
    monkeypatch.setattr(Llama, "lm_head", lambda self, hidden: honest(self, hidden).roll(1, dims=-1))
    monkeypatch.setattr(engine, "_time_llama", lambda *_: pytest.fail("timed all the same"))
    with pytest.raises(HambenchError, match="32 of 32 greedy tokens in float32 are not transformers'"):
        run(folder)


def test_a_prompt_beyond_the_context_is_refused(folder):
    with pytest.raises(HambenchError, match="context of 512 tokens, 604 are needed"):
        run(folder, "--prompt-tokens", "600")
