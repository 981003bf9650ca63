"""The suffix automaton against plain search over the text."""

import random

import pytest

from hambench.methods.common.suffix_automaton import SEPARATOR, Match, SuffixAutomaton

FULL = {"factor": 100.0, "min_probability": 0.0}


def texts():
    """Texts of few and many kinds of token, long and short, with the depth of their automaton."""
    draws = random.Random(5)
    for size in (1, 2, 3, 9):
        for depth in (1, 2, 5, 32):
            for length in (1, 7, 40):
                yield [draws.randrange(size) for _ in range(length)], depth


def occurrences(text, part):
    return sum(text[start : start + len(part)] == part for start in range(len(text) - len(part) + 1))


def longest_suffix(of, inside, *, most):
    """The longest suffix of one text, of up to ``most`` tokens, that another holds."""
    return max(n for n in range(min(most, len(of)) + 1) if n == 0 or occurrences(inside, of[-n:]))


@pytest.mark.parametrize(("text", "depth"), texts())
def test_counts_and_the_repeated_suffix_are_those_of_a_plain_search(text, depth):
    automaton = SuffixAutomaton(depth)
    for end, token in enumerate(text, start=1):
        automaton.add(token)
        so_far = text[:end]
        assert automaton.repeated_suffix().length == longest_suffix(so_far, so_far[:-1], most=end - 1)
    for length in range(1, min(depth, len(text)) + 1):
        for start in range(len(text) - length + 1):
            part = text[start : start + length]
            assert automaton.occurrences(part) == occurrences(text, part)


@pytest.mark.parametrize("depth", [1, 3, 32])
def test_another_text_is_followed_while_the_automaton_grows(depth):
    draws = random.Random(depth)
    text, other = [], []
    automaton, match = SuffixAutomaton(depth), Match(0, 0)
    for _ in range(200):
        for _ in range(draws.randrange(3)):
            text.append(draws.randrange(3))
            automaton.add(text[-1])
        other.append(draws.randrange(3))
        match = automaton.follow(match, other[-1])
        # the match was longest in the text as it was: it may be longer in the text as it is
        assert match.length <= longest_suffix(other, text, most=depth)
        assert match.length == 0 or occurrences(text, other[-match.length :])
    fixed, match = SuffixAutomaton(depth), Match(0, 0)
    for token in text:
        fixed.add(token)
    for end, token in enumerate(other, start=1):
        match = fixed.follow(match, token)
        assert match.length == longest_suffix(other[:end], text, most=depth)


def proposed(text, num_tokens=8, **kwargs):
    automaton = SuffixAutomaton(kwargs.pop("depth", 32))
    for token in text:
        automaton.add(token)
    return automaton.continuation(automaton.repeated_suffix(), num_tokens, **{**FULL, **kwargs})


def test_the_most_frequent_continuation_is_taken_and_of_equals_the_most_recent():
    assert proposed([5, 1, 8, 5, 2, 8, 5, 1, 9, 5], 1).tokens == [1]
    assert proposed([5, 1, 8, 5, 2, 8, 5], 1).tokens == [2]


def test_a_longer_match_allows_more_tokens_and_a_surer_one_wins():
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]
    assert proposed(text, factor=1.0).tokens == [4, 5, 6]
    assert proposed(text, factor=2.0).tokens == [4, 5, 6, 7, 8, 9]
    assert proposed(text, 2, factor=2.0).tokens == [4, 5]
    # after 2 3 came 7 once; after 3 alone 4 came three times of four: less sure, so the longer match wins
    assert proposed([3, 4, 0, 3, 4, 0, 3, 4, 0, 2, 3, 7, 2, 3], 1).tokens == [7]


def test_proposals_end_where_the_product_of_shares_falls_under_the_least_probability():
    text = [5, 1, 0, 5, 1, 0, 5, 2, 0, 5]
    share = 2 / 3
    assert proposed(text, 3, min_probability=share - 0.01).tokens[:1] == [1]
    assert proposed(text, 3, min_probability=share + 0.01).tokens == []
    assert proposed(text, 1).expected == pytest.approx(share)


def test_nothing_is_proposed_without_a_match_or_over_a_separator():
    assert proposed([1, 2, 3, 4]).tokens == []
    assert proposed([]).tokens == []
    assert proposed([1, 2, SEPARATOR, 7, 1]).tokens == [2]


def test_a_text_of_one_token_costs_no_more_per_token_than_any_other():
    """Counts of all its suffixes once grew with its length."""
    automaton = SuffixAutomaton(4)
    visited = 0
    original = automaton._count_suffixes

    def counted():
        nonlocal visited
        before = sum(automaton._count)
        original()
        visited += sum(automaton._count) - before

    automaton._count_suffixes = counted
    for _ in range(500):
        automaton.add(7)
    assert visited <= 4 * 500


def test_a_depth_or_a_substring_that_can_not_be_counted_is_refused():
    with pytest.raises(ValueError, match="depth must be >= 1, got 0"):
        SuffixAutomaton(0)
    with pytest.raises(ValueError, match=r"tokens must be 1 to 2 \(depth\), got 3"):
        SuffixAutomaton(2).occurrences([1, 2, 3])
