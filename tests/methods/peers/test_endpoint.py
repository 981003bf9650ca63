"""A server as a method: the same tokens as in process, honest absences, and one line about each difference."""

import dataclasses
import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from fakes import EOS, TINY_SHAPE, save_tiny_model
from serving_server import running

from hambench.analysis.measurements import measure
from hambench.analysis.metrics import (
    acceptance_rate,
    decode_seconds,
    kv_bytes,
    mean_acceptance_length,
    tokens_per_target_forward,
)
from hambench.decoding import SamplingParams
from hambench.engine.loop import generate
from hambench.errors import HambenchError
from hambench.methods.peers.endpoint import EndpointConfig
from hambench.methods.speculative import SpeculativeConfig
from hambench.models.target import load
from hambench.records import SampleRecord

CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    target = load(
        str(save_tiny_model(tmp_path_factory.mktemp("tiny"), TINY_SHAPE)), dtype="float32", device="cpu"
    )
    target.name = "tiny"
    target.tokenizer.chat_template = CHAT_TEMPLATE
    return target


@pytest.fixture(scope="module")
def served(tiny):
    from hambench.serving.app import create_app

    with running(create_app(tiny, SpeculativeConfig(num_draft_tokens=3).build(tiny))) as url:
        yield url


def decode(method, target, text, *, limit=24, stop=()):
    ids = target.tokenizer(text)["input_ids"]
    return generate(
        method,
        ids,
        SamplingParams(max_new_tokens=limit),
        eos_ids=target.eos_ids,
        stop=stop,
        decode_text=target.tokenizer.decode,
    )


@pytest.mark.parametrize("prompt", ["text", "ids"])
def test_an_endpoint_gives_the_tokens_and_counts_of_the_method_it_serves(tiny, served, prompt):
    method = EndpointConfig(url=served, prompt=prompt).build(tiny)
    method.warmup()
    remote = decode(method, tiny, "The quick brown fox")
    local = decode(SpeculativeConfig(num_draft_tokens=3).build(tiny), tiny, "The quick brown fox")
    assert remote.token_ids == local.token_ids
    assert remote.finish == local.finish
    assert [(s.tokens, s.drafted, s.kv_slots) for s in remote.steps] == [
        (s.tokens, s.drafted, s.kv_slots) for s in local.steps
    ]


def test_chat_unwraps_the_template_and_the_server_wraps_it_again(tiny, served):
    text = "[user]Why is the sky blue?\n[assistant]"
    remote = decode(EndpointConfig(url=served, api="chat").build(tiny), tiny, text)
    local = decode(SpeculativeConfig(num_draft_tokens=3).build(tiny), tiny, text)
    assert remote.token_ids == local.token_ids


@pytest.mark.parametrize("guard", ["salt", "none"])
def test_an_answer_that_the_prompt_begins_goes_on_at_the_server(tiny, served, guard):
    text = "[user]Why is the sky blue?\n[assistant]Because of"
    remote = decode(EndpointConfig(url=served, api="chat", guard=guard).build(tiny), tiny, text)
    local = decode(SpeculativeConfig(num_draft_tokens=3).build(tiny), tiny, text)
    opened = decode(SpeculativeConfig(num_draft_tokens=3).build(tiny), tiny, text.removesuffix("Because of"))
    assert remote.token_ids == local.token_ids != opened.token_ids


def test_a_stop_string_ends_the_answer_and_frees_the_server(tiny, served):
    local = decode(SpeculativeConfig(num_draft_tokens=3).build(tiny), tiny, "x")
    stop = tiny.tokenizer.decode(local.token_ids[5:7])
    method = EndpointConfig(url=served).build(tiny)
    remote = decode(method, tiny, "x", stop=[stop])
    assert remote.finish == "stop"
    assert len(remote.token_ids) < len(local.token_ids)
    assert decode(method, tiny, "x").token_ids == local.token_ids


class Scripted(BaseHTTPRequestHandler):
    """A server that knows no extensions and says what the test wants."""

    protocol_version = "HTTP/1.1"
    events = ()
    pause_s = 0.0
    refuse_unknown = False
    refused = None
    asked = None

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._json(200, {"object": "list", "data": [{"id": "tiny"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        if self.refuse_unknown and "return_token_ids" in body:
            self._json(400, {"error": {"message": "unrecognized field"}})
            return
        if self.refused in body:
            self._json(400, {"error": {"message": f"use max_completion_tokens, not {self.refused}"}})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for item in self.events:
            time.sleep(self.pause_s)
            if item == "die":
                self.connection.close()
                return
            self.wfile.write(f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n".encode())

    def _json(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def scripted():
    handler = type("Handler", (Scripted,), {"asked": [], "events": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()


def piece(text, finish=None):
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish}]}


def counted(prompt, completion):
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


def test_a_plain_server_leaves_forwards_and_cache_unknown(tiny, scripted):
    scripted.events = [piece("ab"), piece("c"), piece("", "stop"), counted(1, 4), "[DONE]"]
    trace = decode(EndpointConfig(url=scripted.url).build(tiny), tiny, "x")
    assert [len(step.tokens) for step in trace.steps] == [2, 1, 1]
    assert (trace.token_ids[-1], trace.finish) == (EOS, "eos")
    for step in trace.steps:
        assert step.target_forwards is step.drafted is step.accepted is step.kv_slots is step.kv_bytes is None
    assert tokens_per_target_forward([trace]) is None
    assert acceptance_rate([trace]) is None
    assert kv_bytes([trace]) is None
    record = SampleRecord(cell="c", sample_id="s", prompt_hash="0", trace=trace, text="abc")
    measured = measure([record], [], {}, cell="c")
    assert measured.num_drafted is None or measured.num_samples == 0


def test_acceptance_of_this_answer_comes_with_its_last_event(tiny, scripted):
    spoken = {"num_draft_tokens": 8, "num_accepted_draft_tokens": 2, "num_spec_steps": 2}
    told = {**counted(1, 4), "metrics": {"speculative_decoding": spoken}}
    scripted.events = [piece("ab"), piece("c"), piece("d", "length"), told, "[DONE]"]
    trace = decode(EndpointConfig(url=scripted.url).build(tiny), tiny, "x", limit=4)
    assert acceptance_rate([trace]) == 2 / 8
    assert mean_acceptance_length([trace]) == 1 + 2 / 2
    # what it does not tell stays unknown, and an answer cut here has no totals of the server's
    assert tokens_per_target_forward([trace]) is None
    cut = decode(EndpointConfig(url=scripted.url).build(tiny), tiny, "x", stop=["c"])
    assert acceptance_rate([cut]) is None
    assert acceptance_rate([trace, cut]) is None


def test_work_of_the_client_between_events_makes_no_server_faster(tiny, scripted):
    scripted.events = [*(piece("a") for _ in range(11)), piece("", "length"), "[DONE]"]
    scripted.pause_s = 0.02
    method = EndpointConfig(url=scripted.url).build(tiny)

    def slow_text(ids):
        time.sleep(0.015)
        return tiny.tokenizer.decode(ids)

    trace = generate(method, [120], SamplingParams(max_new_tokens=11), stop=["never"], decode_text=slow_text)
    assert len(trace.steps) == 11
    # ten waits of 20 ms, of which the client spent 15 each on its own work
    assert decode_seconds([trace]) >= 0.8 * 10 * 0.02


def test_a_server_on_this_machine_is_told_from_strangers(tiny, scripted):
    method = EndpointConfig(url=scripted.url).build(tiny)
    assert method.local_port == int(scripted.url.rpartition(":")[2])
    elsewhere = SimpleNamespace(config=EndpointConfig(url="http://example.com/v1"))
    assert dataclasses.replace(method, talk=elsewhere).local_port is None


def test_a_server_that_refuses_our_fields_is_asked_without_them_from_then_on(tiny, scripted):
    scripted.refuse_unknown = True
    scripted.events = [piece("a", "length"), "[DONE]"]
    method = EndpointConfig(url=scripted.url).build(tiny)
    for _ in range(2):
        decode(method, tiny, "x", limit=1)
    assert ["return_token_ids" in body for body in scripted.asked] == [True, False, False]


def delta(text, **fields):
    return {"choices": [{"index": 0, "delta": {"content": text, **fields}, "finish_reason": None}]}


def test_thinking_counts_and_is_parted_from_the_answer_as_the_model_had_written_it(tiny, scripted):
    scripted.events = [delta(None, reasoning_content="Hm"), delta("ab"), piece("", "stop"), "[DONE]"]
    trace = decode(EndpointConfig(url=scripted.url, api="chat").build(tiny), tiny, "x")
    assert tiny.tokenizer.decode(trace.token_ids[:-1]) == "Hm</think>ab"
    assert len(trace.steps[0].tokens) == 2


def test_a_server_that_wants_the_newer_limit_is_asked_with_it(tiny, scripted):
    scripted.refused = "max_tokens"
    scripted.events = [piece("a", "length"), "[DONE]"]
    decode(EndpointConfig(url=scripted.url, api="chat").build(tiny), tiny, "x", limit=3)
    assert scripted.asked[-1]["max_completion_tokens"] == 3


def test_what_a_greedy_answer_needs_not_is_not_sent(tiny, scripted):
    scripted.events = [piece("a", "length"), "[DONE]"]
    decode(EndpointConfig(url=scripted.url).build(tiny), tiny, "x", limit=1)
    assert not {"seed", "top_p"} & set(scripted.asked[-1])


def test_a_server_that_dies_is_an_error_of_that_answer(tiny, scripted):
    scripted.events = [piece("a"), "die"]
    with pytest.raises(HambenchError, match="after 1 events"):
        decode(EndpointConfig(url=scripted.url).build(tiny), tiny, "x")


def test_a_server_that_ends_short_ends_the_answer_as_it_says(tiny, scripted):
    scripted.events = [piece("ab"), piece("", "length"), "[DONE]"]
    trace = decode(EndpointConfig(url=scripted.url).build(tiny), tiny, "x")
    assert (trace.finish, len(trace.token_ids)) == ("length", 2)


def test_another_tokenizer_and_wrong_counts_are_said_once_each(tiny, scripted, caplog):
    scripted.events = [piece("ab"), piece("", "length"), counted(99, 40), "[DONE]"]
    method = EndpointConfig(url=scripted.url).build(tiny)
    with caplog.at_level(logging.WARNING):
        method.warmup()
        for _ in range(3):
            decode(method, tiny, "x")
    said = [record.getMessage() for record in caplog.records]
    assert sum("another tokenizer" in line and "reads 99 tokens" in line for line in said) == 1
    assert sum("counts 40 tokens where 2 were seen" in line for line in said) == 1


def test_an_honest_server_is_not_complained_about(tiny, served, caplog):
    with caplog.at_level(logging.WARNING):
        method = EndpointConfig(url=served).build(tiny)
        method.warmup()
        decode(method, tiny, "naïve 東京")
    assert caplog.records == []


def test_the_key_comes_from_the_environment_and_is_in_no_knob(tiny, served, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-123")
    config = EndpointConfig(url=served, key_env="MY_KEY")
    assert "sk-123" not in json.dumps(config.knobs()) + config.label + repr(config.build(tiny))


def test_bad_knobs_are_named():
    for knobs in ({"url": "nowhere"}, {"api": "x"}, {"prompt": "x"}, {"timeout_s": 0}, {"retries": -1}):
        with pytest.raises(HambenchError, match=next(iter(knobs))):
            EndpointConfig.from_knobs(knobs)


def test_nothing_listening_is_one_clear_line(tiny):
    with pytest.raises(HambenchError, match=r"http://127\.0\.0\.1:9 does not answer"):
        EndpointConfig(url="http://127.0.0.1:9", retries=0).build(tiny)


def test_a_run_with_peers_is_reported_with_dashes_where_nothing_is_known(
    tiny_model, rows, scripted, tmp_path
):
    from hambench.analysis.summary import render_table
    from hambench.reports import write_html
    from hambench.runner.request import RunRequest
    from hambench.runner.start import start_run
    from hambench.runner.sweep import Sweep

    scripted.events = [piece("ab"), piece("cd", "length"), counted(1, 4), "[DONE]"]
    methods = ("vanilla", "transformers[mode=assistant]", f"endpoint[url={scripted.url}]")
    sweep = Sweep(model=str(tiny_model), methods=methods, dtype="float32")
    asked = RunRequest(
        sweep=sweep, suite="longbench", tasks=("lcc",), data=rows, limit=1, max_new_tokens=4, device="cpu"
    )
    run = start_run(asked, tmp_path / "run")
    assert [record.error for record in run.measured] == [None] * 3
    write_html([run], tmp_path / "report.html")
    row = next(line for line in render_table(run).splitlines() if line.startswith("endpoint"))
    assert row.count("–") >= 4
    assert str(tiny_model) not in json.dumps(scripted.asked[0]["model"])


def test_a_folders_path_is_not_served(tiny_model):
    from fastapi.testclient import TestClient

    from hambench.methods.vanilla import VanillaConfig
    from hambench.serving.app import create_app

    target = load(str(tiny_model), dtype="float32", device="cpu")
    with TestClient(create_app(target, VanillaConfig().build(target)), base_url="http://localhost") as client:
        for reply in (
            client.get("/v1/models"),
            client.get("/health"),
            client.post("/v1/completions", json={"model": "x", "prompt": "y"}),
        ):
            assert str(tiny_model.parent) not in reply.text
        assert client.get("/v1/models").json()["data"][0]["id"] == tiny_model.name
