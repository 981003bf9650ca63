"""Suffix decoding: its knobs, and what an answer takes from those before it."""

import gc
import weakref

import pytest
from fakes import tiny_target

from hambench.decoding import SamplingParams
from hambench.engine.loop import generate
from hambench.errors import HambenchError
from hambench.gating.baseline import default_methods, measure_exact
from hambench.methods.suffix import SuffixConfig, SuffixDrafter
from hambench.methods.vanilla import VanillaConfig

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
PARAMS = SamplingParams(max_new_tokens=40)


def test_an_earlier_answer_is_proposed_again_and_the_tokens_are_still_vanillas():
    target = tiny_target()
    expected = generate(VanillaConfig().build(target), PROMPT, PARAMS).token_ids
    method = SuffixConfig(earlier_answers=2, factor=4.0).build(target)
    first, second = (generate(method, PROMPT, PARAMS) for _ in range(2))
    assert first.token_ids == second.token_ids == expected
    # the same answer once more: almost every token was seen
    assert len(second.steps) < len(first.steps)
    alone = generate(SuffixConfig(factor=4.0).build(target), PROMPT, PARAMS)
    assert [len(step.tokens) for step in alone.steps] == [len(step.tokens) for step in first.steps]


def test_only_the_newest_answers_are_kept():
    target = tiny_target()
    method = SuffixConfig(earlier_answers=1, factor=4.0).build(target)
    for prompt in (PROMPT, [7, 7, 8], [9, 8, 7]):
        generate(method, prompt, PARAMS)
    assert method.earlier is not None
    assert [len(answer) for answer in method.earlier.answers] == [40]
    again = generate(method, PROMPT, PARAMS)
    fresh = generate(SuffixConfig(factor=4.0).build(target), PROMPT, PARAMS)
    assert again.token_ids == fresh.token_ids


def test_an_answer_that_is_remembered_gives_its_cache_back():
    method = SuffixConfig(earlier_answers=2).build(tiny_target())
    session = method.start(PROMPT, PARAMS)
    cache = weakref.ref(session.sequence.cache)
    del session
    gc.collect()
    assert cache() is None


def test_a_setting_that_remembers_answers_is_order_dependent_and_can_not_be_gated():
    assert SuffixConfig(earlier_answers=3).depends_on_order
    assert not SuffixConfig().depends_on_order
    assert SuffixConfig(earlier_answers=3).token_drafter() is None
    with pytest.raises(HambenchError, match=r"suffix\[cache=3\] can't be gated: what it counts depends on"):
        measure_exact(("suffix[cache=3]",))
    assert not [label for label in default_methods() if "cache" in label]


def test_a_drafter_takes_in_tokens_once_and_keeps_to_its_own_limit():
    drafter = SuffixDrafter(SuffixConfig(num_draft_tokens=2, factor=9.0))
    tokens = [1, 2, 3, 4, 5, 1, 2]
    drafter.update(tokens[:4])
    drafter.update(tokens)
    assert drafter.propose(tokens, 10) == [3, 4]
    assert drafter.propose(tokens, 1) == [3]
    assert drafter.propose(tokens, 0) == []


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"k": 0}, r"num_draft_tokens \(k\) must be >= 1, got 0"),
        ({"factor": 0.0}, r"factor must be in \(0, 1000\], got 0.0"),
        ({"p": 1.5}, r"min_probability \(p\) must be in \[0, 1\], got 1.5"),
        ({"cache": -1}, r"earlier_answers \(cache\) must be >= 0, got -1"),
    ],
)
def test_a_knob_out_of_range_is_one_line(knobs, message):
    with pytest.raises(HambenchError, match=message):
        SuffixConfig.from_knobs(knobs)
