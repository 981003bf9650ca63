"""A target of twelve tokens, and the chi-square test of what a sampled method makes of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from fakes import tiny_target
from scipy.stats import chisquare

from hambench.decoding import SamplingParams
from hambench.engine.requests.forwards import Prefill
from hambench.engine.requests.rows import Rows
from hambench.engine.shape import LlamaShape
from hambench.methods.common.sampling import probabilities

SMALL_SHAPE = LlamaShape(
    vocab_size=12,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_positions=64,
    tie_embeddings=False,
)
SHARP = SamplingParams(max_new_tokens=8, temperature=1.3, seed=0)


def small_target():
    """A target whose pairs of tokens are few enough for a chi-square test."""
    return tiny_target(seed=5, shape=SMALL_SHAPE)


def pair_distribution(target, prompt):
    """Exact distribution of the second and third token, by enumeration."""
    size = target.llama.shape.vocab_size

    def next_probs(tokens):
        cache = target.llama.new_cache(len(tokens))
        return probabilities(target.llama.prefill(torch.tensor(tokens), cache).logits, SHARP)[-1].double()

    pairs = torch.zeros(size, size, dtype=torch.float64)
    first = next_probs(prompt)
    for a in range(size):
        second = next_probs([*prompt, a])
        for b in range(size):
            pairs[b] += first[a] * second[b] * next_probs([*prompt, a, b])
    return pairs


def draw_pairs(open_session, num_draws):
    """Counts of the second and third token over seeds, and the steps that gave them.

    ``open_session`` takes the sampling parameters. Sessions of many seeds share their forwards: one row of a tiny model
    costs as much as a hundred. So the counts are of forwards over many sequences, never of the path of one sequence
    alone; test_conformance's law of batches, at temperature 0.9, says that both give the same tokens.
    """
    counts, steps = torch.zeros(SMALL_SHAPE.vocab_size, SMALL_SHAPE.vocab_size), []
    for start in range(0, num_draws, 100):
        seeds = range(start, min(start + 100, num_draws))
        sessions = [
            open_session(SamplingParams(max_new_tokens=8, temperature=SHARP.temperature, seed=seed))
            for seed in seeds
        ]
        with torch.inference_mode():
            answers = [list(step.tokens) for step in _together([each.prefill() for each in sessions])]
            while short := [index for index, tokens in enumerate(answers) if len(tokens) < 3]:
                taken = _together([sessions[index].step() for index in short])
                for index, step in zip(short, taken, strict=True):
                    answers[index] += step.tokens
                steps += taken
        for _, second, third, *_ in answers:
            counts[second, third] += 1
    return counts, steps


def _together(askings):
    """The steps of these sessions; of their requests those that can share a forward do, as in a batch."""
    steps, waiting = [None] * len(askings), {}

    def go_on(index, answer):
        try:
            waiting[index] = askings[index].send(answer)
        except StopIteration as end:
            waiting.pop(index, None)
            steps[index] = end.value

    for index in range(len(askings)):
        go_on(index, None)
    while waiting:
        # the kind that most wait for, so that those who need other forwards first can join
        ((kind, _),) = Counter(map(_kind_of, waiting.values())).most_common(1)
        group = [index for index, request in waiting.items() if _kind_of(request) == kind]
        for index, answer in zip(group, answer_all([waiting[index] for index in group]), strict=True):
            go_on(index, answer)
    return steps


def _kind_of(request):
    return type(request), id(request.model) if isinstance(request, Prefill) else request.together


def answer_all(requests):
    """The answers of requests of one kind, by one forward if they can share it."""
    first = requests[0]
    if not isinstance(first, Prefill):
        if first.together is None:
            return [request.answer() for request in requests]
        return type(first).answer_together(requests)
    # the same rows that a prefill of one piece runs, which returns the last only
    outs = first.model.forward_together(
        [Rows(request.ids, request.cache) for request in requests], feature_layers=first.feature_layers
    )
    return [replace(out, hidden=out.hidden[-1:], features=out.features[:, -1:]) for out in outs]


def chance(counts, expected):
    """The chi-square test's p-value of counts against a distribution."""
    observed, wanted = counts.flatten(), (expected * counts.sum()).flatten()
    # cells expected less than five times are pooled, as the chi-square approximation asks
    rare = wanted < 5
    observed = torch.cat([observed[~rare], observed[rare].sum()[None]]).double()
    wanted = torch.cat([wanted[~rare], wanted[rare].sum()[None]]).double()
    return chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue
