"""A stream read in a thread of its own: the clock of one event does not wait for the work on another."""

import json
import threading
import time

import pytest

from hambench.method_facts import AnswerTotals
from hambench.serving.arrivals import Arrivals
from hambench.serving.counters import read_cached_tokens
from hambench.serving.events import EndpointError, parse_event


def test_items_are_read_on_while_one_is_looked_at():
    all_read = threading.Event()

    def source():
        yield from range(4)
        all_read.set()

    arrivals = Arrivals(source())
    assert next(arrivals) == 0
    # nobody asks for the others
    assert all_read.wait(20)
    assert list(arrivals) == [1, 2, 3]


def test_an_error_of_the_source_is_raised_where_it_is_waited_for_and_once():
    def source():
        yield 1
        raise EndpointError("broke off")

    arrivals = Arrivals(source())
    assert next(arrivals) == 1
    with pytest.raises(EndpointError, match="broke off"):
        next(arrivals)
    assert list(arrivals) == []


def test_closing_ends_the_source_at_its_next_item_and_leaves_no_thread():
    closed = threading.Event()

    def source():
        try:
            while True:
                time.sleep(0.005)
                yield 1
        finally:
            closed.set()

    before = threading.active_count()
    arrivals = Arrivals(source())
    next(arrivals)
    arrivals.close()
    assert closed.wait(5)
    assert list(arrivals) == []
    arrivals._thread.join(5)
    assert threading.active_count() <= before


def test_a_source_never_asked_is_closed_unread():
    read = []

    def source():
        read.append(1)
        yield 1

    Arrivals(source()).close()
    assert read == []


@pytest.mark.parametrize(
    ("event", "totals"),
    [
        (
            {
                "choices": [],
                "metrics": {
                    "speculative_decoding": {
                        "num_draft_tokens": 12,
                        "num_accepted_draft_tokens": 5,
                        "num_spec_steps": 4,
                        "mean_acceptance_length": 2.25,
                    }
                },
            },
            AnswerTotals(drafted=12, accepted=5, rounds=4),
        ),
        (
            {
                "choices": [],
                "usage": {
                    "prompt_tokens": 9,
                    "completion_tokens": 8,
                    "prompt_tokens_details": {"cached_tokens": 3},
                    "completion_tokens_details": {
                        "accepted_prediction_tokens": 6,
                        "rejected_prediction_tokens": 2,
                        "reasoning_tokens": 1,
                    },
                },
            },
            AnswerTotals(drafted=8, accepted=6, cached_prompt_tokens=3),
        ),
        (
            {"choices": [], "timings": {"cache_n": 4, "prompt_n": 5, "draft_n": 8, "draft_n_accepted": 7}},
            AnswerTotals(drafted=8, accepted=7, cached_prompt_tokens=4),
        ),
        (
            {"choices": [], "timings": {"cache_n": 0, "prompt_n": 5, "predicted_ms": 1.5}},
            AnswerTotals(drafted=0, accepted=0, cached_prompt_tokens=0),
        ),
        ({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}, None),
    ],
)
def test_acceptance_and_cached_tokens_of_this_answer_are_read_where_a_server_puts_them(event, totals):
    assert parse_event(json.dumps(event)).totals == totals


def test_more_accepted_than_drafted_is_no_event():
    with pytest.raises(EndpointError):
        parse_event('{"choices": [], "timings": {"cache_n": 0, "draft_n": 1, "draft_n_accepted": 2}}')


def test_llama_cpps_own_events_are_read():
    first = parse_event('{"content": "a", "tokens": [65], "stop": false, "timings": {"cache_n": 0}}')
    assert (first.text, first.token_ids, first.finish) == ("a", (65,), None)
    last = parse_event('{"content": "", "tokens": [], "stop": true, "stop_type": "limit"}')
    assert (last.token_ids, last.finish) == ((), "length")


def test_cached_tokens_are_read_under_every_name():
    name = "vllm:prefix_cache_hits_total"
    assert read_cached_tokens(f'{name}{{engine="0"}} 5.0\n{name}{{engine="1"}} 2.0\n') == 7
    assert read_cached_tokens("sglang:cached_tokens_total 4.0\n") == 4
    sources = "".join(
        f'sglang:cached_tokens_total{{cache_source="{each}"}} 4.0\n' for each in ("device", "host")
    )
    assert read_cached_tokens(sources) == 8
    assert read_cached_tokens("vllm:gpu_prefix_cache_hits_total 3.0\n") == 3
    assert read_cached_tokens("vllm:external_prefix_cache_hits_total 4.0\n") is None
    assert read_cached_tokens(None) is None


def test_a_count_under_two_names_is_counted_once_and_blocks_are_no_tokens():
    """vLLM 0.9 has one count under its old and its new name; its first versions counted blocks of 16 tokens."""
    both = "vllm:gpu_prefix_cache_hits_total 32.0\nvllm:prefix_cache_hits_total 32.0\n"
    assert read_cached_tokens(both) == 32
    name = "vllm:gpu_prefix_cache_hits_total"
    for unit, tokens in (("blocks", None), ("tokens", 2)):
        text = (
            f"# HELP {name} Prefix cache hits, in terms of number of cached {unit}.\n# TYPE {name} counter\n"
        )
        assert read_cached_tokens(f"{text}{name} 2.0\n") == tokens
