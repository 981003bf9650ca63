"""Laws of what a verification keeps: exact rules give the target's distribution, relaxed ones what they say."""

import itertools

import pytest
import torch
from scipy.stats import chisquare

from hambench.methods.common.acceptance import (
    accept_block,
    accept_greedy,
    accept_greedy_relaxed,
    accept_sampled,
    accept_sampled_relaxed,
    block_acceptance,
    keeps,
)
from hambench.methods.common.verification_rules import Relaxed, check_rule, check_share, relaxed_rule

V = 3


def tables(seed, *, length=2):
    """Random target and draft distributions after every prefix of up to ``length`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    prefixes = [p for n in range(length + 1) for p in itertools.product(range(V), repeat=n)]

    def rows():
        return {
            prefix: torch.softmax(1.5 * torch.randn(V, generator=generator).double(), 0)
            for prefix in prefixes
        }

    return rows(), rows()


def emitted_by_blocks(target, draft, goes_on, *, least=0.0):
    """Exact distribution of the first ``length + 1`` tokens, by enumeration of drafts and of kept lengths.

    ``goes_on(prefix)`` says whether the draft goes on after a prefix; a token drawn with a probability under ``least``
    is dropped and ends it.
    """
    total = {}

    def drafts(prefix, probability):
        if not goes_on(prefix):
            yield prefix, probability
            return
        for token in range(V):
            share = float(draft[prefix][token])
            if share < least:
                yield prefix, probability * share
            else:
                yield from drafts((*prefix, token), probability * share)

    longest = max(len(path) for path, _ in drafts((), 1.0))
    for path, probability in drafts((), 1.0):
        k = len(path)
        p = torch.stack([target[path[:i]] for i in range(k + 1)])
        q = torch.stack([draft[path[:i]] for i in range(k)]) if k else torch.empty(0, V)
        weights, keep = block_acceptance(p, q, list(path))
        for kept in range(k + 1):
            chance = keep[kept - 1] if kept else 1.0
            for later in keep[kept:]:
                chance *= 1 - later
            if kept == k:
                row = p[k]
            else:
                rest = (weights[kept] * p[kept] - q[kept]).clamp(min=0)
                row = rest / rest.sum() if rest.sum() > 0 else p[kept]
            for token in range(V):
                add(
                    total,
                    target,
                    (*path[:kept], token),
                    probability * chance * float(row[token]),
                    longest + 1,
                )
    return total


def add(total, target, tokens, probability, length):
    """Adds an outcome; the target itself continues it to the full length."""
    if len(tokens) == length:
        total[tokens] = total.get(tokens, 0.0) + probability
        return
    for token in range(V):
        following = target.get(tokens)
        if following is None:
            return
        add(total, target, (*tokens, token), probability * float(following[token]), length)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("early", [False, True], ids=["fixed length", "length by prefix"])
def test_block_verification_is_exactly_the_target_by_enumeration(seed, early):
    target, draft = tables(seed, length=3)

    def goes_on(prefix):
        # a rule of the highest probabilities: it does not ask the last token
        sure = all(float(draft[prefix[:i]].max()) >= 0.6 for i in range(len(prefix)))
        return len(prefix) < 2 and (not early or not prefix or sure)

    outcome = emitted_by_blocks(target, draft, goes_on)
    for tokens, probability in outcome.items():
        wanted = 1.0
        for place, token in enumerate(tokens):
            wanted *= float(target[tokens[:place]][token])
        assert probability == pytest.approx(wanted, abs=1e-12)
    assert sum(outcome.values()) == pytest.approx(1)


def test_the_enumeration_finds_a_rule_that_drops_improbable_tokens():
    """Dropping a token because it was improbable changes what is proposed: the law must notice."""
    target, draft = tables(3, length=3)
    outcome = emitted_by_blocks(target, draft, lambda prefix: len(prefix) < 2, least=0.3)
    gaps = []
    for tokens, probability in outcome.items():
        wanted = 1.0
        for place, token in enumerate(tokens):
            wanted *= float(target[tokens[:place]][token])
        gaps.append(abs(probability - wanted))
    assert max(gaps) > 1e-3


@pytest.mark.parametrize("seed", range(8))
def test_blocks_keep_at_least_as_many_tokens_as_single_tokens_do(seed):
    target, draft = tables(seed)
    by_block = by_token = 0.0
    for path in itertools.product(range(V), repeat=2):
        probability = float(draft[()][path[0]] * draft[path[:1]][path[1]])
        p = torch.stack([target[path[:i]] for i in range(3)])
        q = torch.stack([draft[path[:i]] for i in range(2)])
        _, (one, two) = block_acceptance(p, q, list(path))
        by_block += probability * (2 * two + (1 - two) * one)
        single = [min(1.0, float(p[i, path[i]] / q[i, path[i]])) for i in range(2)]
        by_token += probability * (single[0] + single[0] * single[1])
    assert by_block >= by_token - 1e-12


def draws_of(accept, *, num_draws=6000, seed=0):
    """Counts of the first two tokens of a round, its draft drawn each time; the target continues a short one."""
    target, draft = tables(7)
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(V, V)
    for _ in range(num_draws):
        path = []
        for _ in range(2):
            path.append(int(torch.multinomial(draft[tuple(path)], 1, generator=generator)))
        p = torch.stack([target[tuple(path[:i])] for i in range(3)])
        q = torch.stack([draft[tuple(path[:i])] for i in range(2)])
        kept = accept(p, q, path, generator)
        tokens = [*path[: kept.num_accepted], kept.next_token]
        if len(tokens) == 1:
            tokens.append(int(torch.multinomial(target[tuple(tokens)], 1, generator=generator)))
        counts[tokens[0], tokens[1]] += 1
    wanted = torch.stack([target[()][a] * target[(a,)] for a in range(V)])
    return counts, wanted * num_draws


@pytest.mark.parametrize("accept", [accept_block, accept_sampled], ids=["block", "token"])
def test_exact_verification_is_distributed_as_the_target(accept):
    counts, wanted = draws_of(accept)
    assert chisquare(counts.flatten().double(), wanted.flatten()).pvalue > 1e-3


def test_the_chi_square_test_finds_relaxed_acceptance():
    def accept(p, q, path, generator):
        return accept_sampled_relaxed(p, q, path, generator, Relaxed("relative", 0.05), num_emitted=0)

    counts, wanted = draws_of(accept)
    assert chisquare(counts.flatten().double(), wanted.flatten()).pvalue < 1e-6


LOGITS = torch.log(torch.tensor([[0.5, 0.4, 0.1], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]))


@pytest.mark.parametrize(
    ("drafted", "threshold", "expected"),
    [
        ([0, 2], 0.5, (2, 0, ())),
        ([1, 2], 0.79, (2, 0, (0,))),
        ([1, 2], 0.81, (0, 0, ())),
        ([1, 1], 0.28, (2, 0, (0, 1))),
        ([1, 1], 0.5, (1, 2, (0,))),
        ([2, 0], 0.0, (2, 0, (0, 1))),
        ([], 0.5, (0, 0, ())),
    ],
)
def test_a_greedy_draft_is_kept_while_it_is_nearly_the_best(drafted, threshold, expected):
    logits = LOGITS[: len(drafted) + 1]
    assert accept_greedy_relaxed(logits, drafted, Relaxed("relative", threshold), num_emitted=0) == expected


def test_the_first_tokens_of_an_answer_can_be_kept_exact():
    rule = Relaxed("relative", 0.1, exact_first=5)
    assert accept_greedy_relaxed(LOGITS, [1, 1], rule, num_emitted=4) == (0, 0, ())
    assert accept_greedy_relaxed(LOGITS, [0, 1], rule, num_emitted=4) == (2, 0, (1,))
    assert accept_greedy_relaxed(LOGITS, [1, 1], rule, num_emitted=5) == (2, 0, (0, 1))


def test_of_equally_probable_tokens_the_lowest_is_the_targets_own_and_the_other_is_relaxed():
    logits = torch.tensor([[2.0, 2.0, 0.0], [0.0, 1.0, 0.0]])
    kept = accept_greedy_relaxed(logits, [1], Relaxed("relative", 0.999), num_emitted=0)
    assert kept == (1, 1, (0,))
    # confidence 1 is no rule at all: a tie is then decided as greedy decoding decides it
    assert relaxed_rule("relative", 1.0, 0) is None
    assert accept_greedy([0, 1], [1]) == (0, 0, ())


@pytest.mark.parametrize("kind", ["relative", "typical"])
def test_where_a_rule_keeps_nothing_more_sampled_tokens_are_those_of_exact_acceptance(kind):
    target, draft = tables(4)
    rule = Relaxed(kind, 0.0 if kind == "typical" else 0.5, exact_first=100)
    for seed in range(50):
        p = torch.stack([target[()], target[(0,)], target[(0, 1)]])
        q = torch.stack([draft[()], draft[(0,)]])
        exact = accept_sampled(p, q, [0, 1], torch.Generator().manual_seed(seed))
        relaxed = accept_sampled_relaxed(
            p, q, [0, 1], torch.Generator().manual_seed(seed), rule, num_emitted=0
        )
        assert relaxed == exact


def test_a_typical_token_is_more_probable_than_the_entropy_asks():
    even, sure = torch.tensor([0.25, 0.25, 0.25, 0.25]), torch.tensor([0.9, 0.06, 0.03, 0.01])
    # exp(-H) of four even tokens is 1/4: sqrt(0.09) / 4 = 0.075
    assert keeps(Relaxed("typical", 0.09), even, 3)
    assert not keeps(Relaxed("typical", 0.09), sure, 1)
    assert keeps(Relaxed("relative", 0.06), sure, 1)
    assert not keeps(Relaxed("relative", 0.07), sure, 1)


def test_a_greedy_draft_can_not_be_typical():
    with pytest.raises(
        ValueError, match="rule must be 'relative' where tokens are not sampled, got 'typical'"
    ):
        accept_greedy_relaxed(LOGITS, [0, 1], Relaxed("typical", 0.3), num_emitted=0)


def test_unknown_rules_and_confidences_that_are_no_shares_are_refused():
    with pytest.raises(ValueError, match=r"accept must be one of .*, got 'typicl'; did you mean 'typical'"):
        check_rule("accept", "typicl", ("exact", "typical"))
    with pytest.raises(ValueError, match=r"confidence must be in \[0, 1\], got 1.5"):
        check_share("confidence", 1.5)
    check_share("confidence", None)
