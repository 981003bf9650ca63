"""When a draft ends: by confidence, and by the length of most tokens per second."""

import pytest

from hambench.methods.common.draft_length import (
    DraftCosts,
    DraftLength,
    Goodput,
    best_length,
    expected_emitted,
)


def test_expected_tokens_of_a_round_are_the_sum_of_products_and_the_bonus():
    assert expected_emitted([]) == 1
    assert expected_emitted([0.5, 0.5]) == pytest.approx(1.75)
    assert expected_emitted([1.0, 1.0, 0.0, 1.0]) == 3


@pytest.mark.parametrize(
    ("acceptance", "costs", "best"),
    [
        # a free draft: as long as possible
        ([0.9] * 8, DraftCosts(0.0), 8),
        # a draft as dear as the target: as short as possible
        ([0.9] * 8, DraftCosts(1.0), 1),
        # rows that cost: where the next one no longer pays
        ([1.0, 1.0, 0.1, 0.1], DraftCosts(0.1, (1.0, 1.1, 1.2, 1.3, 1.4)), 2),
    ],
)
def test_the_best_length_weighs_tokens_against_their_cost(acceptance, costs, best):
    assert best_length(acceptance, costs) == best
    speeds = [expected_emitted(acceptance[:k]) / costs.of_round(k) for k in range(1, len(acceptance) + 1)]
    assert speeds[best - 1] == max(speeds)


def test_goodput_learns_from_rounds_and_always_tries_one():
    rule = Goodput(8, DraftCosts(0.3))
    before = rule.length()
    for _ in range(60):
        rule.learn(rule.length(), 0)
    assert rule.length() == 1 <= before
    for _ in range(200):
        drafted = rule.length()
        rule.learn(drafted, drafted)
    assert rule.length() == 8


def test_only_places_that_a_round_decided_are_learnt_from():
    rule = Goodput(4, DraftCosts(0.1))
    rule.learn(4, 1)
    # places 1 and 2 were decided: accepted, rejected; the later two were not asked
    assert len(rule.acceptance) == 2
    assert rule.acceptance[0] > 0.8 > rule.acceptance[1]
    rule.learn(2, 2)
    assert len(rule.acceptance) == 2


def test_a_product_falls_with_every_token_and_each_token_is_asked_alone():
    product, each = DraftLength(8, "product", 0.5), DraftLength(8, "each", 0.5)
    for rule in (product, each):
        assert rule.begin() == 8
    assert [product.goes_on(0.8) for _ in range(4)] == [True, True, True, False]
    assert [each.goes_on(0.8) for _ in range(4)] == [True] * 4
    assert not each.goes_on(0.4)
    product.begin()
    assert product.goes_on(0.8)


def test_without_a_rule_nothing_ends_a_draft():
    rule = DraftLength(3)
    assert rule.begin() == 3
    assert not rule.asks
    assert rule.goes_on(0.0)
