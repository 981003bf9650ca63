import dataclasses

import pytest
import torch
from sampling_laws import answer_all, chance, draw_pairs, pair_distribution, small_target
from scipy.stats import chisquare

from hambench.decoding import SamplingParams, answered
from hambench.engine.int8 import quantize_int8
from hambench.engine.llama import Llama
from hambench.engine.norm import RMSNorm
from hambench.errors import NotFiniteError
from hambench.methods.common.acceptance import accept_greedy, accept_sampled
from hambench.methods.common.draft_length import DraftCosts, DraftLength
from hambench.methods.common.drafting import SeparateDrafter, SharedDrafter
from hambench.methods.common.sampling import choose, probabilities
from hambench.methods.common.sequence import TargetSequence
from hambench.methods.common.verification_rules import EXACT, Verification
from hambench.methods.prompt_lookup import NgramIndex
from hambench.methods.speculative import SpeculativeConfig, SpeculativeSession


def test_requests_that_cannot_share_a_forward_are_each_answered():
    class Lonely:
        together = None

        def __init__(self, number):
            self.number = number

        def answer(self):
            return self.number

    assert answer_all([Lonely(1), Lonely(2)]) == [1, 2]


def test_nucleus_is_the_smallest_set_that_reaches_top_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    params = SamplingParams(max_new_tokens=1, temperature=1.0, top_p=0.75)
    assert probabilities(logits, params)[0].tolist() == pytest.approx([0.625, 0.375, 0, 0])


@pytest.mark.parametrize("top_p", [0.01, 5e-324])
def test_nucleus_always_keeps_the_most_probable_token(top_p):
    params = SamplingParams(max_new_tokens=1, temperature=1.0, top_p=top_p)
    assert probabilities(torch.tensor([[0.0, 3.0, 1.0]]), params)[0].tolist() == [0, 1, 0]


@pytest.mark.parametrize("temperature", [1.1e-5, 1e306])
def test_any_temperature_gives_a_distribution(temperature):
    params = SamplingParams(max_new_tokens=1, temperature=temperature)
    probs = probabilities(torch.tensor([[-40.0, 90.0, 1.0]]), params)
    assert probs.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_never_drawn_from(wrong):
    logits, params = torch.tensor([[0.0, wrong, 1.0]]), SamplingParams(max_new_tokens=1, temperature=1.0)
    with pytest.raises(NotFiniteError):
        probabilities(logits, params)
    with pytest.raises(NotFiniteError):
        choose(logits[0], SamplingParams(max_new_tokens=1), None)
    impossible = torch.tensor([[0.0, -float("inf"), 1.0]])
    assert probabilities(impossible, params)[0, 1] == 0


def test_greedy_acceptance_stops_at_the_first_disagreement():
    wanted = [4, 5, 6, 7]
    assert accept_greedy(wanted, [4, 5, 6]) == (3, 7, ())
    assert accept_greedy(wanted, [4, 9, 6]) == (1, 5, ())
    assert accept_greedy(wanted[:1], []) == (0, 4, ())


def test_exact_rejection_sampling_gives_the_targets_distribution():
    p = torch.tensor([[0.5, 0.2, 0.2, 0.1, 0.0], [0.2] * 5])
    q = torch.tensor([[0.1, 0.4, 0.1, 0.2, 0.2]])
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(5)
    num_draws = 20_000
    for _ in range(num_draws):
        drafted = int(torch.multinomial(q[0], 1, generator=generator))
        accepted = accept_sampled(p, q, [drafted], generator)
        counts[drafted if accepted.num_accepted else accepted.next_token] += 1
    assert counts[4] == 0
    assert chisquare(counts[:4], p[0, :4] * num_draws).pvalue > 1e-3


@pytest.fixture(scope="module")
def small_vocabulary():
    """The target, and the exact distribution of its second and third token after the prompt."""
    target = small_target()
    return target, pair_distribution(target, [1, 7, 3])


def _noisy(llama: Llama) -> Llama:
    """A draft that often disagrees: rejections must happen for the residual to be tested."""
    draft = quantize_int8(llama)
    generator = torch.Generator().manual_seed(1)
    noise = 1 + 0.5 * torch.randn(draft.norm.weight.shape, generator=generator)
    draft.norm = RMSNorm(draft.norm.weight * noise, draft.norm.eps)
    return draft


@pytest.mark.parametrize(
    ("drafter", "length", "rules"),
    [
        (SeparateDrafter, DraftLength(2), EXACT),
        (SharedDrafter, DraftLength(4), EXACT),
        (SeparateDrafter, DraftLength(4, "product", 0.1), EXACT),
        (SharedDrafter, DraftLength(4, "each", 0.3), EXACT),
        (SharedDrafter, DraftLength(4, "goodput", costs=DraftCosts(0.2)), EXACT),
        (SharedDrafter, DraftLength(3), Verification(by_block=True)),
        (SeparateDrafter, DraftLength(4, "product", 0.1), Verification(by_block=True)),
    ],
    ids=["separate", "shared", "product", "each", "goodput", "block", "product and block"],
)
def test_sampled_speculation_is_distributed_as_the_target(small_vocabulary, drafter, length, rules):
    """Whatever ends a draft and however it is verified, the tokens follow the target's own distribution."""
    target, expected = small_vocabulary
    draft, num_draws = _noisy(target.llama), 1500

    def open_session(params):
        sequence = TargetSequence(target, [1, 7, 3], params)
        own = dataclasses.replace(length)
        return SpeculativeSession(own, sequence, drafter(draft, sequence), rules)

    counts, steps = draw_pairs(open_session, num_draws)
    assert sum(step.drafted - step.accepted for step in steps) > num_draws / 10
    assert not length.asks or len({step.drafted for step in steps}) > 1
    assert chance(counts, expected) > 1e-3


def test_full_acceptance_costs_no_extra_draft_forward(target):
    from hambench.engine.loop import generate

    method = SpeculativeConfig(num_draft_tokens=3).build(target)
    perfect = type(method)(method.name, method.config, target, target.llama)
    trace = generate(perfect, [1, 2, 3], SamplingParams(max_new_tokens=21))
    decode_steps = trace.steps[1:]
    assert all(step.accepted == step.drafted == 3 for step in decode_steps[:-1])
    assert all(step.draft_forwards == step.drafted for step in decode_steps)


def test_the_last_token_of_a_sampled_answer_is_sampled_too(target):
    # with nothing left to draft there are no draft distributions, and it once was the argmax
    method = SpeculativeConfig(num_draft_tokens=3).build(target)
    last = set()
    for seed in range(12):
        session = method.start([1, 2, 3], SamplingParams(max_new_tokens=2, temperature=3.0, seed=seed))
        first = answered(session.prefill()).tokens
        step = answered(session.step())
        assert step.drafted == 0
        last.add((*first, *step.tokens))
    assert len({token for *_, token in last}) > 6


def test_shared_cache_costs_no_memory_and_no_draft_prefill(target):
    params = SamplingParams(max_new_tokens=10)
    sessions = {}
    for kv in ("separate", "shared"):
        session = SpeculativeConfig(kv=kv).build(target).start([1, 2, 3, 4], params)
        first = answered(session.prefill())
        sessions[kv] = (first.draft_forwards, session.kv.bytes)
    assert sessions["shared"][0] == 0
    assert sessions["separate"] == (1, 2 * sessions["shared"][1])


def test_ngram_index_prefers_the_longest_and_the_latest_match():
    index = NgramIndex(3, 5)
    tokens = [1, 2, 3, 9, 2, 3, 8, 1, 2, 3]
    index.update(tokens)
    assert index.propose(tokens, 2) == [9, 2]  # 1 2 3 was followed by 9, though 2 3 was last followed by 8
    tokens += [8, 5, 2, 3]
    index.update(tokens)
    assert index.propose(tokens, 2) == [8, 5]
    assert index.propose([77, 78], 2) == []
