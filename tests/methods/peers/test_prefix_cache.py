"""A server that caches prompts: the guard keeps answers cold, and what it can't keep cold is said."""

import dataclasses
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import synthetic
from fakes import TINY_SHAPE, save_tiny_model

from hambench.analysis.cautions.prefix_cache import cache_caution, cached_share
from hambench.analysis.summary import render_table
from hambench.decoding import SamplingParams
from hambench.engine.loop import generate
from hambench.method_facts import AnswerTotals
from hambench.methods.peers.endpoint import EndpointConfig
from hambench.models.target import load
from hambench.records import SampleRecord
from hambench.reports.page.cautions import cautions
from hambench.reports.view import View
from hambench.store import load_run

PROMPT = "The quick brown fox jumps over the lazy dog"
READ_S = 0.005
"""What one prompt token costs that is not cached."""


class Caching(BaseHTTPRequestHandler):
    """A server with a prefix cache: it honours a salt, and tells in its answers or in its counters what it reused."""

    protocol_version = "HTTP/1.1"
    knows_salt = tells_in_usage = tells_in_metrics = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/metrics":
            text = f'vllm:prefix_cache_hits_total{{engine="0"}} {float(self.hits)}\n'
            self._send(200 if self.tells_in_metrics else 404, "text/plain", text.encode())
            return
        self._send(200, "application/json", json.dumps({"data": [{"id": "tiny"}]}).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        salt = body.get("cache_salt", "") if self.knows_salt else ""
        prompt = body["prompt"]
        cached = max((_shared(prompt, other) for key, other in self.cache if key == salt), default=0)
        self.cache.append((salt, prompt))
        type(self).hits += cached
        time.sleep(READ_S * (len(prompt) - cached))
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 2}
        if self.tells_in_usage:
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        events = [
            {"choices": [{"text": "a", "finish_reason": None}]},
            {"choices": [{"text": "b", "finish_reason": "length"}]},
            {"choices": [], "usage": usage},
        ]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for event in events:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, status, kind, content):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _shared(one, two):
    return next(
        (n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two))
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = save_tiny_model(tmp_path_factory.mktemp("tiny"), TINY_SHAPE)
    target = load(str(folder), dtype="float32", device="cpu")
    target.name = "tiny"
    return target


@pytest.fixture
def caching():
    handler = type("Handler", (Caching,), {"cache": [], "hits": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()


def answers(method, target, times=3):
    ids = target.tokenizer(PROMPT)["input_ids"]
    return [generate(method, ids, SamplingParams(max_new_tokens=2)) for _ in range(times)]


def told(traces):
    return [trace.totals and trace.totals.cached_prompt_tokens for trace in traces]


def test_unguarded_answers_to_one_prompt_are_warm_and_say_so(tiny, caching):
    method = EndpointConfig(url=caching.url, guard="none").build(tiny)
    assert told(answers(method, tiny)) == [0, len(PROMPT), len(PROMPT)]


@pytest.mark.parametrize("guard", ["salt", "nonce"])
def test_guarded_answers_are_cold(tiny, caching, guard):
    method = EndpointConfig(url=caching.url, guard=guard).build(tiny)
    method.warmup()
    traces = answers(method, tiny)
    # two numbers may begin alike
    assert all(count <= len(PROMPT) // 3 for count in told(traces))
    assert all(trace.steps[0].seconds >= READ_S * len(PROMPT) * 0.6 for trace in traces)


def test_a_server_without_salt_needs_the_nonce(tiny, caching):
    caching.knows_salt = False
    assert told(answers(EndpointConfig(url=caching.url).build(tiny), tiny))[1:] == [len(PROMPT)] * 2
    cold = told(answers(EndpointConfig(url=caching.url, guard="nonce").build(tiny), tiny))
    assert all(count <= len(PROMPT) // 3 for count in cold)


def test_counters_tell_where_answers_do_not(tiny, caching):
    caching.tells_in_usage = False
    method = EndpointConfig(url=caching.url, guard="none").build(tiny)
    assert told(answers(method, tiny)) == [0, len(PROMPT), len(PROMPT)]


def test_where_nothing_tells_nothing_is_said(tiny, caching):
    caching.tells_in_usage = caching.tells_in_metrics = False
    method = EndpointConfig(url=caching.url, guard="none").build(tiny)
    assert told(answers(method, tiny)) == [None, None, None]
    records = [SampleRecord(cell="c", sample_id="s", prompt_hash="h", trace=t) for t in answers(method, tiny)]
    assert cached_share(records) is None


def test_uneven_hits_are_a_caution_in_terminal_and_report(tmp_path):
    run = load_run(synthetic.write_run(tmp_path / "run", synthetic.cells(confidences=(0.5,)), per_task=2))
    assert cache_caution(run) is None

    def warmed(record, share):
        if record.trace is None:
            return record
        totals = AnswerTotals(cached_prompt_tokens=int(share * record.trace.prompt_tokens))
        return dataclasses.replace(record, trace=dataclasses.replace(record.trace, totals=totals))

    first, *others = [cell.label for cell in run.header.cells]
    shares = {first: 0.0, **dict.fromkeys(others, 0.8)}
    records = tuple(warmed(record, shares[record.cell]) for record in run.records)
    uneven = dataclasses.replace(run, records=records)
    assert "unevenly" in cache_caution(uneven)
    assert "prefix cache, unevenly" in render_table(uneven)
    assert [each.severity for each in cautions(View(uneven)) if each.title == "Prefix cache"] == ["bad"]
    even = dataclasses.replace(run, records=tuple(warmed(record, 0.8) for record in run.records))
    assert "in every cell alike" in cache_caution(even)
    cold = dataclasses.replace(run, records=tuple(warmed(record, 0.01) for record in run.records))
    assert cache_caution(cold) is None
