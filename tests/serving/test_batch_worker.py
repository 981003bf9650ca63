"""A server that answers several requests together."""

import queue
import threading

import httpx2
import pytest
from fakes import tiny_target
from serving_server import running

from hambench.decoding import SamplingParams
from hambench.engine.loop import generate
from hambench.errors import HambenchError
from hambench.methods.speculative import SpeculativeConfig
from hambench.methods.vanilla import VanillaConfig
from hambench.serving.app import create_app
from hambench.serving.batch_worker import BatchWorker
from hambench.serving.worker import Failed, Finished, Job, Piece, QueueFullError


@pytest.fixture(scope="module")
def target():
    return tiny_target()


def job(prompts, *, limit=12):
    events = queue.Queue()
    return (
        Job(
            prompts=prompts,
            params=[SamplingParams(max_new_tokens=limit) for _ in prompts],
            eos_ids=(),
            stop=(),
            emit=events.put,
        ),
        events,
    )


def answers(events, num_prompts):
    tokens = {index: [] for index in range(num_prompts)}
    left = num_prompts
    while left:
        event = events.get(timeout=30)
        assert not isinstance(event, Failed), event
        if isinstance(event, Piece):
            tokens[event.index] += event.step.tokens
        else:
            left -= 1
    return tokens


@pytest.fixture
def make(target):
    workers = []

    def made(config, **options):
        method = config.build(target)
        workers.append(BatchWorker(method, target.tokenizer.decode, **options))
        return method, workers[-1]

    yield made
    for worker in workers:
        worker.close()


@pytest.mark.parametrize("config", [VanillaConfig(), SpeculativeConfig(num_draft_tokens=3)], ids=str)
def test_requests_that_are_answered_together_get_what_they_would_get_alone(make, config):
    method, worker = make(config, size=3, max_waiting=8)
    prompts = [[[1, 2, 3]], [[4, 5]], [[6], [7, 8, 9, 10]], [[1] * 20], [[30, 40, 50]]]
    asked = [job(each) for each in prompts]
    for one, _ in asked:
        worker.submit(one)
    for (_, events), each in zip(asked, prompts, strict=True):
        given = answers(events, len(each))
        for index, prompt in enumerate(each):
            alone = generate(method, prompt, SamplingParams(max_new_tokens=12))
            assert tuple(given[index]) == alone.token_ids


def slow(method):
    """The method with steps that wait for the test."""
    go, start = threading.Event(), type(method).start

    def waits(self, *args):
        session = start(self, *args)
        step = session.step

        def held():
            go.wait(20)
            return step()

        session.step = held
        return session

    return go, waits


def test_a_full_queue_refuses_and_a_place_that_is_free_again_is_taken(make, monkeypatch):
    method, worker = make(VanillaConfig(), size=2, max_waiting=1)
    go, waits = slow(method)
    monkeypatch.setattr(type(method), "start", waits)
    asked = [job([[1 + i]]) for i in range(4)]
    for one, _ in asked[:3]:
        worker.submit(one)
        if one is asked[1][0]:
            while worker.num_waiting:
                pass
    with pytest.raises(
        QueueFullError, match="the server answers 2 prompts together and 1 requests are waiting"
    ):
        worker.submit(asked[3][0])
    go.set()
    for _, events in asked[:3]:
        assert len(answers(events, 1)[0]) == 12
    while worker.busy:
        pass
    worker.submit(asked[3][0])
    assert len(answers(asked[3][1], 1)[0]) == 12


def test_a_prompt_on_its_way_into_the_batch_has_its_place(make, monkeypatch):
    """A prompt that was in neither the line nor the batch once looked like a free place."""
    method, worker = make(VanillaConfig(), size=1, max_waiting=0)
    go, waits = slow(method)
    monkeypatch.setattr(type(method), "start", waits)
    adding, add = (threading.Event() for _ in range(2))
    really = worker._batch.add

    def slowly(*args):
        adding.set()
        add.wait(20)
        really(*args)

    monkeypatch.setattr(worker._batch, "add", slowly)
    (first, events), (second, _) = (job([[i]]) for i in (1, 2))
    worker.submit(first)
    assert adding.wait(20)
    outcomes = []

    def ask():
        try:
            outcomes.append(worker.submit(second))
        except QueueFullError as error:
            outcomes.append(error)

    asks = threading.Thread(target=ask)
    asks.start()
    asks.join(0.2)
    add.set()
    asks.join(20)
    go.set()
    assert isinstance(outcomes[0], QueueFullError)
    assert len(answers(events, 1)[0]) == 12


def test_a_cancelled_job_ends_and_the_others_go_on(make, monkeypatch):
    method, worker = make(VanillaConfig(), size=2, max_waiting=4)
    go, waits = slow(method)
    monkeypatch.setattr(type(method), "start", waits)
    (gone, gone_events), (stays, events), (waiting, waiting_events) = (
        job([[i]], limit=60) for i in (1, 2, 3)
    )
    for one in (gone, stays, waiting):
        worker.submit(one)
    gone_events.get(timeout=30)
    worker.cancel(gone)
    go.set()
    assert len(answers(events, 1)[0]) == 60
    assert len(answers(waiting_events, 1)[0]) == 60
    ended = [event for event in gone_events.queue if isinstance(event, Finished)]
    assert ended == []


def test_a_request_that_fails_fails_alone(make, monkeypatch):
    method, worker = make(VanillaConfig(), size=2, max_waiting=4)
    start = type(method).start

    def refuses(self, prompt_ids, params):
        if prompt_ids == [9]:
            raise HambenchError("no nines")
        if prompt_ids == [8]:
            raise RuntimeError("secret in /home/somebody")
        return start(self, prompt_ids, params)

    monkeypatch.setattr(type(method), "start", refuses)
    asked = {token: job([[token]]) for token in (1, 9, 8, 2)}
    for one, _ in asked.values():
        worker.submit(one)
    assert asked[9][1].get(timeout=30) == Failed("no nines", by_request=True)
    told = asked[8][1].get(timeout=30)
    assert told.message.startswith("internal error ")
    assert "secret" not in told.message
    for token in (1, 2):
        assert len(answers(asked[token][1], 1)[0]) == 12


def test_the_server_answers_clients_at_once_each_its_own_text(target):
    method = VanillaConfig().build(target)
    replies = {}

    def ask(url, number):
        body = {"model": target.name, "prompt": [number, 2, 3], "max_tokens": 10}
        body |= {"ignore_eos": True, "return_token_ids": True}
        replies[number] = httpx2.post(f"{url}/v1/completions", json=body, timeout=60)

    with running(create_app(target, method, batch=4)) as url:
        threads = [threading.Thread(target=ask, args=(url, number)) for number in range(1, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    for number, reply in replies.items():
        assert reply.status_code == 200, reply.text
        alone = generate(method, [number, 2, 3], SamplingParams(max_new_tokens=10))
        assert tuple(reply.json()["choices"][0]["token_ids"]) == alone.token_ids
