"""Open-loop load: arrivals that wait for nobody, times that count from them, and goodput under bounds."""

import itertools
import statistics
import threading
from types import SimpleNamespace

import pytest
from cli_calls import invoke

from hambench.analysis.cost import dollars_per_million, parse_price
from hambench.bench import endpoint
from hambench.bench.arrivals import Slo, arrival_times, parse_slo, peak_in_flight, read_trace, text_lines
from hambench.bench.endpoint import Answer, Asked, _since, _summary, ask, measure_open_loop
from hambench.errors import HambenchError
from hambench.serving.events import Chunk


def test_constant_arrivals_are_evenly_spaced_and_poisson_ones_keep_the_rate_and_the_seed():
    assert arrival_times("constant", 4.0, 3) == [0.0, 0.25, 0.5]
    times = arrival_times("poisson", 5.0, 4000, seed=1)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert times == sorted(times)
    # exponential: mean and standard deviation are both one over the rate
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.06)
    assert statistics.stdev(gaps) == pytest.approx(0.2, rel=0.08)
    assert times == arrival_times("poisson", 5.0, 4000, seed=1)
    assert times != arrival_times("poisson", 5.0, 4000, seed=2)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_must_be_above_zero(rate):
    with pytest.raises(HambenchError, match="--rate must be > 0"):
        arrival_times("poisson", rate, 3)


def test_a_trace_is_seconds_or_timestamps_from_its_first_line_on(tmp_path):
    path = tmp_path / "trace.txt"
    path.write_text("10\n10.5\n\n12\n")
    assert read_trace(path) == [0.0, 0.5, 2.0]
    path.write_text('{"timestamp": 1000, "input_length": 3}\n{"timestamp": 1250}\n')
    assert read_trace(path) == [0.0, 0.25]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no arrival times"),
        ("1\nsoon\n", "line 2: must be seconds"),
        ('{"time": 3}\n', "line 1: must be seconds"),
        ("true\n", "line 1: must be seconds"),
        (f"1{'0' * 400}\n", "line 1: must be seconds"),
        ("1e400\n", "line 1: must be seconds"),
        ("2\n1\n", "line 2: arrives before the line above it"),
    ],
)
def test_a_broken_trace_is_one_line_with_its_place(tmp_path, content, message):
    path = tmp_path / "trace.txt"
    path.write_text(content)
    with pytest.raises(HambenchError, match=message):
        read_trace(path)


def test_bounds_are_read_with_their_units_and_nothing_else():
    assert parse_slo("ttft=1s, tpot=50ms") == Slo(ttft=1.0, tpot=0.05)
    assert parse_slo("e2e=2.5s") == Slo(e2e=2.5)
    for text in ("ttft=1", "tpot", "fast=1s", "ttft=1s,ttft=2s", "ttft=0s", "", "ttft=-1s"):
        with pytest.raises(HambenchError, match="--slo"):
            parse_slo(text)


def test_an_answer_is_good_if_it_keeps_every_bound():
    slo = Slo(ttft=1.0, tpot=0.1)
    assert slo.holds(1.0, 0.1, 9.0, num_tokens=5)
    assert not slo.holds(1.1, 0.1, 9.0, num_tokens=5)
    assert not slo.holds(1.0, 0.2, 9.0, num_tokens=5)
    assert not slo.holds(None, 0.1, 9.0, num_tokens=5)
    assert slo.holds(0.5, None, 9.0, num_tokens=1)
    assert not Slo(e2e=1.0).holds(0.1, 0.1, 2.0, num_tokens=5)


def test_an_answer_that_was_not_measured_is_not_good():
    # five tokens in one piece: their time per token is unknown
    assert not Slo(tpot=0.1).holds(0.5, None, 0.5, num_tokens=5)
    assert Slo(ttft=1.0, e2e=1.0).holds(0.5, None, 0.5, num_tokens=5)
    # no piece came, so its end is not known either
    assert not Slo(e2e=1.0).holds(None, None, 0.0, num_tokens=0)
    answers = [
        Answer(ttft_s=0.5, num_tokens=5, seconds=0.5),
        Answer(),
        Answer(ttft_s=0.5, gaps_s=(0.1,), num_tokens=2, seconds=0.6),
    ]
    level = _summary(answers, 1, 3.0, None, 0, slo=Slo(tpot=0.2, e2e=2.0))
    assert (level.goodput_rps, level.good_share) == (1 / 3, 1 / 3)


def test_goodput_counts_failed_answers_as_none():
    answers = [
        Answer(ttft_s=0.5, gaps_s=(0.1,), num_tokens=2, seconds=0.6),
        Answer(ttft_s=2.0, gaps_s=(0.1,), num_tokens=2, seconds=2.1),
        Answer(error="busy"),
        Answer(ttft_s=0.7, num_tokens=1, seconds=0.7),
    ]
    level = _summary(answers, 1, 4.0, None, 0, slo=Slo(ttft=1.0))
    assert (level.goodput_rps, level.good_share) == (2 / 4, 2 / 4)
    assert level.requests_per_s == 3 / 4
    assert _summary(answers, 1, 4.0, None, 0, slo=None).goodput_rps is None


def test_waits_of_the_client_and_of_retries_are_its_users_too():
    answer = Answer(ttft_s=0.2, gaps_s=(0.1,), num_tokens=2, seconds=0.3, retried_s=1.0)
    since = _since(answer, 0.5)
    assert since.ttft_s == pytest.approx(0.2 + 0.5 + 1.0)
    assert since.seconds == pytest.approx(0.3 + 0.5 + 1.0)
    assert since.tpot_s == answer.tpot_s


class Trailing:
    """A client whose first attempt fails after 2 s, and whose stream ends 50 s after its last piece."""

    def __init__(self, monkeypatch, texts="ab"):
        self.now, self.texts = 100.0, texts
        monkeypatch.setattr(endpoint, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def ask(self, client, path, body, before_sending):
        before_sending()
        self.now += 2.0
        before_sending()
        for text in self.texts:
            self.now += 0.25
            yield Chunk(text=text, arrived=self.now)
            # a piece has the time at which it came, not that at which somebody looked at it
            self.now += 0.25
        self.now += 50.0


def test_what_a_stream_does_after_its_last_piece_is_in_no_wait(monkeypatch):
    stream = Trailing(monkeypatch)
    answer = ask(None, "/v1/completions", {}, stream)
    assert stream.now == 153.0
    assert (answer.ttft_s, answer.gaps_s, answer.seconds, answer.retried_s) == (0.25, (0.5,), 0.75, 2.0)
    since = _since(answer, 1.0)
    assert (since.ttft_s, since.seconds) == (3.25, 3.75)


def test_an_answer_without_a_piece_took_no_time_that_anybody_measured(monkeypatch):
    answer = ask(None, "/v1/completions", {}, Trailing(monkeypatch, texts=""))
    assert (answer.ttft_s, answer.gaps_s, answer.seconds) == (None, (), 0.0)


def test_an_open_loop_counts_waits_from_the_arrival(monkeypatch):
    """By a clock that moves with sleeps alone: a request that the client sends late has waited already."""
    answer = Answer(ttft_s=0.2, gaps_s=(0.1,), num_tokens=2, seconds=0.3, retried_s=1.0)
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds + 0.5

    monkeypatch.setattr(endpoint, "time", SimpleNamespace(perf_counter=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(endpoint, "ask", lambda *arguments: answer)
    level = measure_open_loop(
        lambda: Holding(None, []),
        Asked(model="m", max_tokens=4, chat=True, slo=Slo(ttft=1.6)),
        [0.0],
        arrivals="constant",
    )
    assert level.late_max_s == pytest.approx(0.5)
    assert level.ttft_p50_s == pytest.approx(0.2 + 0.5 + 1.0)
    assert level.good_share == 0


def test_the_most_requests_under_way_at_once():
    assert peak_in_flight([(0, 2), (1, 3), (2.5, 4), (9, 10)]) == 2
    assert peak_in_flight([]) == 0


class Holding:
    """A client whose answers all wait until every request has arrived: a closed loop would wait forever."""

    num_retried = 0
    bodies: list

    def __init__(self, barrier, bodies):
        self.barrier, self.bodies = barrier, bodies

    def metrics_text(self):
        return None

    def close(self):
        pass

    def stream(self, path, body):
        self.bodies.append(body)
        self.barrier.wait(20)
        yield Chunk(text="a", arrived=0.0)
        yield Chunk(text="b", finish="stop", arrived=0.0)


def test_requests_of_an_open_loop_wait_for_no_answer():
    barrier, bodies = threading.Barrier(5), []
    level = measure_open_loop(
        lambda: Holding(barrier, bodies),
        Asked(model="m", max_tokens=4, chat=True),
        [0.0, 0.01, 0.02, 0.03, 0.04],
        arrivals="constant",
    )
    assert (level.num_requests, level.num_errors, level.concurrency) == (5, 0, 5)
    assert level.offered_rps == pytest.approx(100)
    # the same question comes again: none may be read out of the server's cache
    assert len({body["cache_salt"] for body in bodies}) == 5


def test_the_price_of_a_million_tokens():
    assert parse_price("2.50/h") == parse_price("$2.5 / hour") == 2.5
    assert parse_price("0.05/min") == pytest.approx(3.0)
    assert dollars_per_million(100.0, 3.6) == pytest.approx(10.0)
    assert dollars_per_million(None, 3.6) is dollars_per_million(100.0, None) is None
    for text in ("2.50", "free/h", "0/h", "-1/h", "1/day"):
        with pytest.raises(HambenchError, match="--price"):
            parse_price(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arrivals", "poisson"], "--rate belongs to"),
        (["--rate", "2"], "--rate belongs to"),
        (["--arrivals", "trace"], "belong together"),
        (["--arrivals", "constant", "--rate", "fast"], "--rate must be numbers"),
        (["--slo", "ttft=1"], "--slo"),
        (["--price", "2"], "--price"),
        (["--timeout", "0"], "'--timeout': 0.0 is not in the range"),
        (["--timeout", "-1"], "'--timeout'"),
        (["--timeout", "nan"], "'--timeout': 'nan' is not a finite number"),
        (["--timeout", "1e9"], "'--timeout'"),
        (["--concurrency", "0"], "--concurrency must be whole numbers >= 1, got '0'"),
        (["--concurrency", "1,-2"], "--concurrency must be whole numbers >= 1, got '-2'"),
        (["--concurrency", "9" * 5000], "--concurrency must be whole numbers >= 1"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_the_server_is_asked(capsys, arguments, message):
    code, _, said = invoke(capsys, "bench", "endpoint", "--url", "http://127.0.0.1:9", *arguments)
    assert message in said
    assert code == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Why?\n\xff\n", "is not UTF-8: invalid start byte at byte 5; save it as UTF-8"),
        (b" \n\n", "holds no questions: write one per line"),
    ],
)
def test_a_file_of_questions_that_can_not_be_asked_is_one_line(tmp_path, capsys, content, message):
    (tmp_path / "q.txt").write_bytes(content)
    code, _, said = invoke(
        capsys, "bench", "endpoint", "--url", "http://127.0.0.1:9", "--prompts", tmp_path / "q.txt"
    )
    assert (code, said) == (2, f"hambench: {tmp_path / 'q.txt'} {message}\n")


def test_lines_of_a_text_are_cut_at_line_ends_alone(tmp_path):
    (tmp_path / "q.txt").write_bytes("\ufeffone\u2028more\r\n\r\ntwo\x0cmore\n".encode())
    assert text_lines(tmp_path / "q.txt") == [(1, "one\u2028more"), (3, "two\x0cmore")]
