"""Knobs of speculative decoding that decide how long drafts are and what is kept of them."""

import dataclasses
import itertools

import pytest
import torch
from fakes import tiny_target

from hambench.decoding import SamplingParams
from hambench.engine.int8 import quantize_int8
from hambench.engine.loop import generate
from hambench.engine.norm import RMSNorm
from hambench.engine.requests.forwards import Greedy, GreedyChain
from hambench.engine.requests.rows import ChainStop
from hambench.errors import HambenchError
from hambench.methods.common import draft_timing
from hambench.methods.common.draft_length import DraftCosts
from hambench.methods.common.draft_timing import measure_costs
from hambench.methods.prompt_lookup import PromptLookupConfig
from hambench.methods.speculative import Speculative, SpeculativeConfig
from hambench.methods.suffix import SuffixConfig
from hambench.methods.vanilla import VanillaConfig
from hambench.runner.judge import read_answers
from hambench.runner.work import torch_threads

PROMPT = [1, 2, 3, 1, 2, 3, 1, 2]
PARAMS = SamplingParams(max_new_tokens=40)


@pytest.fixture(scope="module")
def target():
    return tiny_target()


def doubtful(config, target):
    """The method with a draft that often disagrees."""
    draft = quantize_int8(target.llama)
    noise = 1 + 0.5 * torch.randn(draft.norm.weight.shape, generator=torch.Generator().manual_seed(1))
    draft.norm = RMSNorm(draft.norm.weight * noise, draft.norm.eps)
    return Speculative(config.label, config, target, draft)


def lengths(trace):
    """Drafted tokens of the steps that are far from the answer's end, where there is room for every draft."""
    ends = itertools.accumulate(len(step.tokens) for step in trace.steps)
    total = len(trace.token_ids)
    return [step.drafted for step, end in zip(trace.steps, ends, strict=True) if total - end >= 12][1:]


@pytest.mark.parametrize("kv", ["separate", "shared"])
def test_a_higher_confidence_drafts_less_and_changes_no_token(target, kv):
    expected = generate(VanillaConfig().build(target), PROMPT, PARAMS).token_ids
    drafted = []
    for confidence in (0.0, 0.02, 0.05, 1.0):
        config = SpeculativeConfig(num_draft_tokens=6, confidence=confidence, kv=kv)
        trace = generate(doubtful(config, target), PROMPT, PARAMS)
        assert trace.token_ids == expected
        assert all(step.draft_forwards == step.drafted for step in trace.steps[1:])
        drafted.append(sum(lengths(trace)) / len(lengths(trace)))
    assert drafted == sorted(drafted, reverse=True)
    # nothing ends a draft at 0, and the first token is always drafted
    assert drafted[0] == 6
    assert drafted[-1] == 1


def requests_of(asking):
    """Answers what a step asks for; returns the requests and the step."""
    requests, answer = [], None
    try:
        while True:
            requests.append(asking.send(answer))
            answer = requests[-1].answer()
    except StopIteration as end:
        return requests, end.value


@pytest.mark.parametrize("kv", ["separate", "shared"])
@pytest.mark.parametrize(("rule", "gamma"), [("product", 0.05), ("each", 0.15)])
def test_a_greedy_draft_that_ends_by_confidence_is_one_request(target, kv, rule, gamma):
    """Each of its tokens was a forward whose logits came to the host, so such a draft looked dearer than it is."""
    config = SpeculativeConfig(num_draft_tokens=6, draft_stop=rule, gamma=gamma, kv=kv)
    session = doubtful(config, target).start(PROMPT, PARAMS)
    with torch.inference_mode():
        requests_of(session.prefill())
        drafted = []
        while session.sequence.num_left > 6:
            requests, step = requests_of(session.step())
            assert [type(request) for request in requests] == [GreedyChain, Greedy]
            assert requests[0].stop == ChainStop(gamma, rule == "product")
            drafted.append(step.drafted)
    # by the rule, not by the length
    assert 1 <= min(drafted) < max(drafted)


def test_goodput_drafts_shorter_where_drafts_are_rejected(target):
    config = SpeculativeConfig(num_draft_tokens=8, draft_stop="goodput")
    agreed = generate(config.build(target), PROMPT, SamplingParams(max_new_tokens=120))
    rejected = doubtful(config, target)
    refused = generate(rejected, PROMPT, SamplingParams(max_new_tokens=120))
    assert agreed.token_ids == refused.token_ids
    assert lengths(agreed)[-1] > lengths(refused)[-1]


def test_the_warm_up_times_what_goodput_weighs_and_nothing_else(target):
    goodput = SpeculativeConfig(draft_stop="goodput", num_draft_tokens=5).build(target)
    by_bytes = goodput.costs
    assert by_bytes.verify == (1.0,)
    goodput.warmup()
    assert len(goodput.costs.verify) == 6
    assert goodput.costs.draft > 0
    plain = SpeculativeConfig().build(target)
    plain.warmup()
    assert plain.measured == []


def test_cells_with_other_threads_weigh_costs_of_their_own(monkeypatch):
    """The first cell's were every cell's, whatever its threads."""
    measured = []

    def measure(target, draft, most):
        measured.append(torch.get_num_threads())
        return DraftCosts(1 / torch.get_num_threads())

    monkeypatch.setattr(draft_timing, "measure_costs", measure)
    target = tiny_target()
    costs = []
    for threads in (1, 2, 2):
        method = SpeculativeConfig(draft_stop="goodput").build(target)
        with torch_threads(threads):
            method.warmup()
        costs.append(method.costs.draft)
    assert costs == [1, 0.5, 0.5]
    assert measured == [1, 2]


def test_costs_never_fall_with_more_rows(target):
    costs = measure_costs(target, target.llama, 9)
    assert list(costs.verify) == sorted(costs.verify)
    assert costs.verify[0] == 1
    assert len(costs.verify) == 10


@pytest.mark.parametrize(
    "config",
    [
        SpeculativeConfig(num_draft_tokens=4, accept="relative", confidence=0.02),
        PromptLookupConfig(confidence=0.0),
        SuffixConfig(confidence=0.0, factor=8.0, min_probability=0.0),
    ],
    ids=lambda config: config.label,
)
def test_relaxed_tokens_are_counted_and_the_control_keeps_none(target, config):
    def decode(config):
        method = config.build(target)
        if isinstance(method, Speculative):
            method = doubtful(config, target)
        assert method.lossless == config.is_lossless
        return generate(method, prompt, SamplingParams(max_new_tokens=80))

    # a prompt that holds whatever the model says: something is always proposed, and mostly wrong
    prompt = list(range(260))
    expected = generate(VanillaConfig().build(target), prompt, SamplingParams(max_new_tokens=80)).token_ids
    relaxed = decode(config)
    kept = sum(step.relaxed for step in relaxed.steps)
    assert kept > 0
    assert relaxed.token_ids != expected
    assert not config.is_lossless
    control = dataclasses.replace(config, confidence=1.0)
    exact = dataclasses.replace(config, confidence=None, accept="exact")
    assert control.is_lossless
    one, other = decode(control), decode(exact)
    # bit-identical: tokens, and every count
    assert one.token_ids == other.token_ids == expected
    assert [(s.drafted, s.accepted, s.relaxed) for s in one.steps] == [
        (s.drafted, s.accepted, s.relaxed) for s in other.steps
    ]
    assert sum(step.relaxed for step in one.steps) == 0


def test_relaxed_tokens_past_the_end_of_an_answer_are_not_counted(target):
    """Every accepted draft of the last step counted that fitted into what was left of it."""
    prompt, params = list(range(260)), SamplingParams(max_new_tokens=80)
    config = SpeculativeConfig(accept="relative", confidence=0.0, num_draft_tokens=6)
    method = doubtful(config, target)
    whole = generate(method, prompt, params).token_ids
    cut_inside = 0
    for eos in sorted(set(whole)):
        trace = generate(method, prompt, params, eos_ids={eos})
        (reading,) = read_answers(target, prompt, [trace.token_ids])
        num_foreign = sum(regret > 0 for regret in reading.regrets)
        assert sum(step.relaxed for step in trace.steps) == num_foreign
        cut_inside += trace.steps[-1].discarded > 0
    assert cut_inside > 5


def test_the_control_is_the_exact_method_when_sampling_too(target):
    params = SamplingParams(max_new_tokens=40, temperature=1.0, seed=5)
    tokens = {
        config.label: generate(config.build(target), PROMPT, params).token_ids
        for config in (
            PromptLookupConfig(),
            PromptLookupConfig(confidence=1.0),
            PromptLookupConfig(accept="typical", confidence=1.0),
        )
    }
    assert len(set(tokens.values())) == 1


def test_first_tokens_are_kept_exact(target):
    expected = generate(VanillaConfig().build(target), PROMPT, PARAMS).token_ids
    config = SpeculativeConfig(accept="relative", confidence=0.0, exact_first=12)
    trace = generate(doubtful(config, target), PROMPT, PARAMS)
    assert trace.token_ids[:12] == expected[:12]
    assert trace.token_ids != expected


def test_a_confidence_means_the_draft_where_acceptance_is_exact_and_the_rule_where_it_is_relaxed():
    exact = SpeculativeConfig(confidence=0.4)
    assert (exact.stop_rule, exact.stop_confidence, exact.relaxed) == ("product", 0.4, None)
    relaxed = SpeculativeConfig(confidence=0.4, accept="relative")
    assert (relaxed.stop_rule, relaxed.relaxed.threshold) == ("none", 0.4)
    both = SpeculativeConfig(confidence=0.4, accept="relative", draft_stop="each", gamma=0.2)
    assert (both.stop_rule, both.stop_confidence, both.relaxed.threshold) == ("each", 0.2, 0.4)
    assert PromptLookupConfig(confidence=0.4).relaxed.kind == "relative"
    assert PromptLookupConfig(accept="exact", confidence=0.4).relaxed is None


def test_a_sweep_over_confidence_has_one_draft_length():
    assert [config.label for config in SpeculativeConfig.sweep()] == ["speculative[k=2]", "speculative[k=4]"]
    assert [config.label for config in SpeculativeConfig.sweep({"confidence": 0.5})] == [
        "speculative[c=0.5,k=4]"
    ]
    assert len(SpeculativeConfig.sweep({"c": 0.5, "k": 8})) == 1


@pytest.mark.parametrize(
    ("config", "knobs", "message"),
    [
        (SpeculativeConfig, {"confidence": 1.2}, r"confidence must be in \[0, 1\], got 1.2"),
        (SpeculativeConfig, {"gamma": -0.1}, r"gamma must be in \[0, 1\], got -0.1"),
        (SpeculativeConfig, {"draft_stop": "prodct"}, "got 'prodct'; did you mean 'product'"),
        (PromptLookupConfig, {"accept": "relativ"}, "got 'relativ'; did you mean 'relative'"),
        (SuffixConfig, {"exact_first": -1}, "exact_first must be >= 0, got -1"),
        (SpeculativeConfig, {"verification": "blok"}, "got 'blok'; did you mean 'block'"),
        (
            SpeculativeConfig,
            {"verification": "block", "accept": "relative"},
            "verification='block' is exact, got accept='relative'",
        ),
    ],
)
def test_a_knob_out_of_range_is_one_line(config, knobs, message):
    with pytest.raises(HambenchError, match=message):
        config.from_knobs(knobs)


@pytest.mark.parametrize("config", [SpeculativeConfig, PromptLookupConfig, SuffixConfig])
def test_typical_acceptance_of_greedy_answers_is_refused_before_any_work(target, config):
    method = config(accept="typical", confidence=0.3).build(target)
    with pytest.raises(HambenchError, match="accept='typical' needs sampling"):
        method.start(PROMPT, PARAMS)
    assert method.start(PROMPT, SamplingParams(max_new_tokens=4, temperature=0.7))
