"""The server that answers several requests together, asked over HTTP by clients that come, leave and fail."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from serving_server import running, until

from hambench.decoding import SamplingParams
from hambench.engine.loop import generate
from hambench.errors import HambenchError
from hambench.methods.speculative import SpeculativeConfig
from hambench.methods.vanilla import VanillaConfig
from hambench.records import GenerationTrace, StepRecord
from hambench.serving.app import create_app
from hambench.serving.exposition import Exposition
from hambench.serving.wire import usage

NUM_TOKENS = 10


class Held:
    """A method whose decode steps wait for the test; refuses and breaks where the prompt says so."""

    def __init__(self, method):
        self._method = method
        self.go = threading.Event()
        self.num_begun = 0
        self.errors = {}
        """What a prompt raises, by its first id."""

    def __getattr__(self, name):
        return getattr(self._method, name)

    def start(self, prompt_ids, params):
        self.num_begun += 1
        if prompt_ids[0] in self.errors:
            raise self.errors[prompt_ids[0]]
        session = self._method.start(prompt_ids, params)
        step = session.step

        def held():
            self.go.wait(20)
            return step()

        session.step = held
        return session


@pytest.fixture
def method(served_target):
    return Held(VanillaConfig().build(served_target))


@pytest.fixture
def clients():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def ask(url, first_id, **options):
    body = {"model": "tiny", "prompt": [first_id, 2, 3], "max_tokens": NUM_TOKENS}
    body |= {"ignore_eos": True, "return_token_ids": True}
    return httpx2.post(f"{url}/v1/completions", json=body | options, timeout=30)


def health(url):
    return httpx2.get(f"{url}/health").json()


def answered(asked):
    """What has come back so far, to be read in a failure."""
    return {number: each.result().text for number, each in asked.items() if each.done()}


def check(reply, method, first_id):
    """The reply is what the method gives alone."""
    assert reply.status_code == 200, reply.text
    alone = generate(method, [first_id, 2, 3], SamplingParams(max_new_tokens=NUM_TOKENS))
    assert tuple(reply.json()["choices"][0]["token_ids"]) == alone.token_ids


@pytest.mark.parametrize(
    "config", [VanillaConfig(), SpeculativeConfig(num_draft_tokens=3)], ids=["vanilla", "speculative"]
)
def test_clients_at_once_get_each_its_own_answer(served_target, clients, config):
    method = config.build(served_target)
    with running(create_app(served_target, method, batch=4)) as url:
        asked = {number: clients.submit(ask, url, number) for number in range(1, 8)}
        replies = {number: each.result(60) for number, each in asked.items()}
    for number, reply in replies.items():
        check(reply, method, number)


def test_a_full_batch_and_a_full_queue_answer_503(served_target, method, clients):
    with running(create_app(served_target, method, batch=2, max_waiting=1)) as url:
        asked = {number: clients.submit(ask, url, number) for number in (1, 2, 3)}
        until(lambda: health(url)["waiting"] == 1)
        refused = ask(url, 4)
        method.go.set()
        replies = {number: each.result(30) for number, each in asked.items()}
        last = ask(url, 4)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["error"]["code"] == "queue_full"
    assert "2 prompts together and 1 requests are waiting" in refused.json()["error"]["message"]
    for number, reply in {**replies, 4: last}.items():
        check(reply, method, number)


def test_a_client_that_leaves_the_batch_leaves_its_place_to_the_next(served_target, method, clients):
    body = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 200, "stream": True, "ignore_eos": True}
    with running(create_app(served_target, method, batch=2, max_waiting=1)) as url:
        with httpx2.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as leaves:
            # kept: an iterator that is dropped closes the stream, and its client has left
            lines = leaves.iter_lines()
            next(lines)
            stay = {number: clients.submit(ask, url, number) for number in (2, 3)}
            until(lambda: health(url)["waiting"] == 1, say=lambda: answered(stay) | health(url))
        method.go.set()
        for number, each in stay.items():
            check(each.result(30), method, number)
        until(lambda: not health(url)["busy"])
        metrics = httpx2.get(f"{url}/metrics").text
    assert 'hambench:requests_total{outcome="cancelled"} 1.0' in metrics
    assert 'hambench:requests_total{outcome="ok"} 2.0' in metrics
    # it had room for two hundred tokens
    assert float(re.search(r"^hambench:generation_tokens_total (\S+)", metrics, re.M)[1]) < 200


def test_a_client_that_leaves_the_queue_gives_its_place_back_during_the_round(served_target, method, clients):
    with running(create_app(served_target, method, batch=2, max_waiting=1)) as url:
        both = clients.submit(ask, url, 1, prompt=[[1, 2, 3], [2, 2, 3]])
        until(lambda: health(url)["busy"])
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(
                f"{url}/v1/completions", json={"model": "tiny", "prompt": [3], "max_tokens": 4}, timeout=0.5
            )
        until(lambda: not health(url)["waiting"])
        assert not method.go.is_set()
        next_one = clients.submit(ask, url, 4)
        until(lambda: health(url)["waiting"] == 1)
        method.go.set()
        assert len(both.result(30).json()["choices"]) == 2
        reply = next_one.result(30)
    assert method.num_begun == 3, "the one that left was never begun"
    check(reply, method, 4)


def test_one_request_fails_and_the_others_are_answered(served_target, method, clients):
    method.errors = {8: HambenchError("no eights"), 9: RuntimeError("secret in /home/somebody")}
    with running(create_app(served_target, method, batch=2)) as url:
        asked = {number: clients.submit(ask, url, number) for number in (1, 8, 9, 2)}
        method.go.set()
        replies = {number: each.result(30) for number, each in asked.items()}
        metrics = httpx2.get(f"{url}/metrics").text
    assert (replies[8].status_code, replies[8].json()["error"]["message"]) == (400, "no eights")
    assert replies[9].status_code == 500
    assert replies[9].json()["error"]["message"].startswith("internal error ")
    assert "secret" not in replies[9].text
    for number in (1, 2):
        check(replies[number], method, number)
    # a request has one outcome
    outcomes = dict(re.findall(r'hambench:requests_total\{outcome="(\w+)"\} (\S+)', metrics))
    assert outcomes == {"ok": "2.0", "failed": "2.0"}


def test_a_round_that_fails_is_an_error_for_those_in_it_and_the_server_goes_on(
    served_target, method, monkeypatch
):
    from hambench.engine.requests.batch import Batch

    really, failing = Batch.round, [True]

    def breaks(batch):
        events = really(batch)
        if failing:
            failing.clear()
            raise RuntimeError("secret")
        return events

    monkeypatch.setattr(Batch, "round", breaks)
    method.go.set()
    with running(create_app(served_target, method, batch=2)) as url:
        broken = ask(url, 1, prompt=[[1, 2, 3], [2, 2, 3]])
        check(ask(url, 3), method, 3)
        assert health(url) | {"model": "", "method": ""} == {
            "status": "ok", "model": "", "method": "", "busy": False, "waiting": 0
        }  # fmt: skip
    assert broken.status_code == 500
    assert "secret" not in broken.text


@pytest.mark.parametrize("batch", [1, 2])
def test_a_server_whose_model_thread_has_died_says_so(served_target, method, batch):
    method.errors = {9: SystemExit()}
    with running(create_app(served_target, method, batch=batch)) as url:
        died, later = ask(url, 9), ask(url, 1)
        state = httpx2.get(f"{url}/health")
    assert died.status_code == 500
    assert (later.status_code, later.json()["error"]["code"]) == (503, "not_serving")
    assert "restart it" in later.json()["error"]["message"]
    assert "retry-after" not in later.headers
    assert (state.status_code, state.json()["status"], state.json()["busy"]) == (503, "failed", False)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_server_that_is_closed_answers_what_it_took(served_target, method, clients, batch):
    others = set(threading.enumerate())
    with running(create_app(served_target, method, batch=batch)) as url:
        asked = {number: clients.submit(ask, url, number) for number in (1, 2, 3)}
        until(lambda: health(url)["waiting"] == 3 - batch)
        threading.Timer(0.3, method.go.set).start()
    for number, each in asked.items():
        check(each.result(30), method, number)
    until(lambda: not [t for t in threading.enumerate() if t.name == "hambench-serve" and t not in others])


def step(seconds, share):
    return StepRecord(tokens=(1,), seconds=seconds, share_s=share, in_round=None if share is None else 4)


def test_seconds_of_answers_count_a_round_once():
    """Each of four answers waits for the whole round, and a quarter of it is its own."""
    together = [GenerationTrace(prompt_tokens=1, steps=(step(2.0, 0.5), step(4.0, 1.0)), finish="length")] * 4
    assert usage(together, "m")["hambench"]["seconds"] == 6.0
    alone = GenerationTrace(prompt_tokens=1, steps=(step(2.0, None), step(4.0, None)), finish="length")
    assert usage([alone], "m")["hambench"]["seconds"] == 6.0
    exposition = Exposition(lambda: 0)
    for trace in together:
        for number, each in enumerate(trace.steps):
            exposition.count_step(each, num_prompt_tokens=None if number else 1)
    text = exposition.render().decode()
    assert "hambench:busy_seconds_total 6.0" in text
    # what clients wait for is the round
    assert "hambench:step_seconds_sum 16.0" in text
    assert "hambench:time_to_first_token_seconds_sum 8.0" in text


def test_the_busy_seconds_of_a_server_are_those_of_its_answers(served_target, clients):
    method = VanillaConfig().build(served_target)
    with running(create_app(served_target, method, batch=4)) as url:
        replies = [each.result(30) for each in [clients.submit(ask, url, n) for n in (1, 2, 3, 4)]]
        text = httpx2.get(f"{url}/metrics").text
    busy = float(re.search(r"^hambench:busy_seconds_total (\S+)", text, re.M)[1])
    assert busy == pytest.approx(sum(each.json()["usage"]["hambench"]["seconds"] for each in replies))
