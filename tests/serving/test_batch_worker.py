"""A server that answers several requests together."""

import queue
import subprocess
import sys
import threading

import pytest
from fakes import tiny_target
from serving_server import until

from hambench.decoding import SamplingParams
from hambench.engine.loop import generate
from hambench.errors import HambenchError
from hambench.methods.speculative import SpeculativeConfig
from hambench.methods.vanilla import VanillaConfig
from hambench.serving.batch_worker import BatchWorker
from hambench.serving.worker import Failed, Finished, Job, NotServingError, Piece, QueueFullError, Worker


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
        worker.stop()


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


def test_requests_share_their_rounds(make):
    _, worker = make(VanillaConfig(), size=3, max_waiting=8)
    one, events = job([[1], [2], [3]])
    worker.submit(one)
    together = []
    for _ in range(3 * 12 + 3):
        event = events.get(timeout=30)
        together += [event.step.in_round] if isinstance(event, Piece) else []
    # a prompt is read per round: once all three are, every step is one of three
    assert together.count(3) > 20


class Held:
    """A method whose sessions wait for the test, before they start or with every step."""

    def __init__(self, monkeypatch, method):
        self.started, self.go, self.may_start = (threading.Event() for _ in range(3))
        self.may_start.set()
        start = type(method).start

        def held_start(method, *args):
            self.started.set()
            self.may_start.wait(20)
            session = start(method, *args)
            step = session.step

            def held_step():
                self.go.wait(20)
                return step()

            session.step = held_step
            return session

        monkeypatch.setattr(type(method), "start", held_start)


def test_a_full_queue_refuses_and_a_place_that_is_free_again_is_taken(make, monkeypatch):
    """Prompts with a free place never count as waiting, however fast they come."""
    method, worker = make(VanillaConfig(), size=2, max_waiting=1)
    held = Held(monkeypatch, method)
    asked = [job([[1 + i]]) for i in range(4)]
    for number, (one, _) in enumerate(asked[:3]):
        worker.submit(one)
        assert worker.num_waiting == max(0, number - 1)
    with pytest.raises(
        QueueFullError, match="the server answers 2 prompts together and 1 requests are waiting"
    ):
        worker.submit(asked[3][0])
    held.go.set()
    for _, events in asked[:3]:
        assert len(answers(events, 1)[0]) == 12
    worker.submit(asked[3][0])
    assert len(answers(asked[3][1], 1)[0]) == 12
    until(lambda: not worker.busy)


def test_a_prompt_on_its_way_into_the_batch_has_its_place_and_holds_up_nobody(make, monkeypatch):
    method, worker = make(VanillaConfig(), size=1, max_waiting=0)
    held = Held(monkeypatch, method)
    held.may_start.clear()
    (first, events), (second, _) = (job([[i]]) for i in (1, 2))
    worker.submit(first)
    assert held.started.wait(20)
    outcomes = queue.Queue()

    def ask():
        try:
            outcomes.put(worker.submit(second))
        except QueueFullError as error:
            outcomes.put((error, worker.num_waiting, worker.busy))

    threading.Thread(target=ask, daemon=True).start()
    # the session starts for as long as it likes, and the answer comes meanwhile
    error, num_waiting, busy = outcomes.get(timeout=10)
    assert isinstance(error, QueueFullError)
    assert (num_waiting, busy) == (0, True)
    held.may_start.set()
    held.go.set()
    assert len(answers(events, 1)[0]) == 12


def test_a_cancelled_job_ends_and_the_others_go_on(make, monkeypatch):
    method, worker = make(VanillaConfig(), size=2, max_waiting=4)
    held = Held(monkeypatch, method)
    (gone, gone_events), (stays, events), (waiting, waiting_events) = (
        job([[i]], limit=60) for i in (1, 2, 3)
    )
    for one in (gone, stays, waiting):
        worker.submit(one)
    gone_events.get(timeout=30)
    worker.cancel(gone)
    held.go.set()
    assert len(answers(events, 1)[0]) == 60
    assert len(answers(waiting_events, 1)[0]) == 60
    ended = [event for event in gone_events.queue if isinstance(event, Finished)]
    assert ended == []


def test_a_job_that_is_cancelled_in_the_queue_gives_its_place_back_at_once(make, monkeypatch):
    """The round that is running may take long: nobody waits for its end."""
    method, worker = make(VanillaConfig(), size=1, max_waiting=1)
    held = Held(monkeypatch, method)
    (first, events), (gone, gone_events), (last, last_events) = (job([[i]]) for i in (1, 2, 3))
    worker.submit(first)
    assert held.started.wait(20)
    worker.submit(gone)
    worker.cancel(gone)
    assert worker.num_waiting == 0
    worker.submit(last)
    held.go.set()
    for each in (events, last_events):
        assert len(answers(each, 1)[0]) == 12
    assert gone_events.empty()


def test_prompts_that_have_a_place_but_no_session_yet_give_it_back_at_once(make, monkeypatch):
    method, worker = make(VanillaConfig(), size=2, max_waiting=1)
    held = Held(monkeypatch, method)
    held.may_start.clear()
    (first, events), (gone, gone_events), (second, second_events) = (job([[i], [i]]) for i in (1, 2, 3))
    single, single_events = job([[4]])
    worker.submit(single)
    assert held.started.wait(20)
    # one of its prompts takes the second place, the other waits for one
    worker.submit(gone)
    worker.submit(first)
    assert worker.num_waiting == 1
    worker.cancel(gone)
    assert worker.num_waiting == 0
    worker.submit(second)
    held.may_start.set()
    held.go.set()
    for each, num_prompts in ((single_events, 1), (events, 2), (second_events, 2)):
        assert all(len(tokens) == 12 for tokens in answers(each, num_prompts).values())
    assert gone_events.empty()
    until(lambda: not worker.busy)
    assert (worker._placed, worker._arrived, list(worker._line)) == (set(), [], [])


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


def test_a_prompt_that_fails_takes_the_others_of_its_request_along(make, monkeypatch):
    method, worker = make(VanillaConfig(), size=2, max_waiting=4)
    start = type(method).start

    def refuses(self, prompt_ids, params):
        if prompt_ids == [9]:
            raise HambenchError("no nines")
        return start(self, prompt_ids, params)

    monkeypatch.setattr(type(method), "start", refuses)
    (fails, failed), (stays, events) = job([[1], [2], [9], [3]]), job([[4]])
    worker.submit(fails)
    worker.submit(stays)
    assert len(answers(events, 1)[0]) == 12
    told = list(failed.queue)
    assert told[-1] == Failed("no nines", by_request=True)
    assert not any(isinstance(event, Failed) for event in told[:-1])
    until(lambda: not worker.busy)


@pytest.mark.parametrize("error", [RuntimeError, ValueError, HambenchError])
def test_a_round_that_fails_fails_those_in_it_and_the_queue_goes_on(make, monkeypatch, error):
    """An exception once ended the thread, and every client waited forever."""
    method, worker = make(VanillaConfig(), size=2, max_waiting=2)
    held = Held(monkeypatch, method)
    really, failing = type(worker._batch).round, [True]

    def breaks(batch):
        events = really(batch)
        if failing and batch.num_sequences == 2:
            failing.clear()
            raise error("secret in /home/somebody")
        return events

    monkeypatch.setattr(type(worker._batch), "round", breaks)
    held.may_start.clear()
    asked = [job([[1 + i]]) for i in range(4)]
    for one, _ in asked:
        worker.submit(one)
    held.may_start.set()
    held.go.set()
    for _, events in asked[:2]:
        told = [events.get(timeout=30)]
        while not isinstance(told[-1], Failed):
            told.append(events.get(timeout=30))
        assert told[-1].message.startswith("internal error ")
        assert not told[-1].by_request
    for _, events in asked[2:]:
        assert len(answers(events, 1)[0]) == 12
    assert worker.state == "ok"
    until(lambda: not worker.busy)
    assert worker.num_waiting == 0


def make_one(kind, method, target, *, max_waiting=8):
    return (
        Worker(method, target.tokenizer.decode, max_waiting=max_waiting)
        if kind is Worker
        else BatchWorker(method, target.tokenizer.decode, size=2, max_waiting=max_waiting)
    )


@pytest.mark.parametrize("kind", [Worker, BatchWorker])
def test_a_receiver_that_fails_harms_nobody_else(target, kind):
    worker = make_one(kind, VanillaConfig().build(target), target)

    def fails(event):
        raise LookupError("nobody listens")

    deaf = Job(
        prompts=[[1], [2]],
        params=[SamplingParams(max_new_tokens=12)] * 2,
        eos_ids=(),
        stop=(),
        emit=fails,
    )
    other, events = job([[3]])
    worker.submit(deaf)
    worker.submit(other)
    assert len(answers(events, 1)[0]) == 12
    until(lambda: not worker.busy)
    assert worker.state == "ok"
    worker.stop()


@pytest.mark.parametrize("kind", [Worker, BatchWorker])
def test_a_thread_that_dies_tells_everybody_who_waits_and_takes_no_more(target, kind, monkeypatch):
    method = VanillaConfig().build(target)
    begin = threading.Event()

    def dies(self, *args):
        begin.wait(20)
        raise SystemExit

    monkeypatch.setattr(type(method), "start", dies)
    worker = make_one(kind, method, target)
    asked = [job([[1 + i]]) for i in range(4)]
    for one, _ in asked:
        worker.submit(one)
    begin.set()
    for _, events in asked:
        told = events.get(timeout=30)
        assert told.message.startswith("internal error ")
        assert not told.by_request
    assert worker.state == "failed"
    assert (worker.busy, worker.num_waiting) == (False, 0)
    with pytest.raises(NotServingError, match=r"model thread has ended \(internal error .*\): restart it"):
        worker.submit(asked[0][0])


@pytest.mark.parametrize("kind", [Worker, BatchWorker])
def test_a_closed_worker_answers_what_it_has_and_takes_no_more(target, kind, monkeypatch):
    method = VanillaConfig().build(target)
    held = Held(monkeypatch, method)
    worker = make_one(kind, method, target)
    asked = [job([[1 + i]]) for i in range(4)]
    for one, _ in asked[:3]:
        worker.submit(one)
    worker.close()
    assert worker.state == "closing"
    with pytest.raises(NotServingError, match="the server is closing"):
        worker.submit(asked[3][0])
    held.go.set()
    for _, events in asked[:3]:
        assert len(answers(events, 1)[0]) == 12
    worker.stop()
    assert not worker._thread.is_alive()


ENDLESS = """
import queue, sys, types
import torch
from hambench.decoding import KVUsage, SamplingParams, Step
from hambench.serving.batch_worker import BatchWorker
from hambench.serving.worker import Job, Worker

torch.set_num_threads(1)
a = torch.ones(64, 64)


class Session:
    kv = KVUsage(1, 1)

    def prefill(self):
        for _ in range(200):
            torch.softmax(a, -1)
        return self.taken() if sys.argv[1] == "batch" else Step(tokens=(1,))

    step = prefill

    def taken(self):
        return Step(tokens=(1,))
        yield


method = types.SimpleNamespace(start=lambda ids, params: Session())
if sys.argv[1] == "batch":
    worker = BatchWorker(method, str, size=2, max_waiting=9)
else:
    worker = Worker(method, str, max_waiting=9)
events = queue.Queue()
for _ in range(4):
    worker.submit(
        Job(prompts=[[1]], params=[SamplingParams(max_new_tokens=10**6)], eos_ids=(), stop=(), emit=events.put)
    )
events.get(timeout=60)
if sys.argv[2] == "exit":
    sys.exit(3)
"""


@pytest.mark.parametrize("kind", ["one", "batch"])
@pytest.mark.parametrize(("ending", "code"), [("end", 0), ("exit", 3)])
def test_a_program_that_ends_in_the_middle_of_answers_ends_in_order(kind, ending, code):
    """torch ended it by "terminate called without an active exception", as its calls came back to no interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS, kind, ending],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, "")
