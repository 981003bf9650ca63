"""A target of twelve tokens, and the chi-square test of what a sampled method makes of it."""

from __future__ import annotations

import torch
from fakes import tiny_target
from scipy.stats import chisquare

from hambench.decoding import SamplingParams, answered
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

    ``open_session`` takes the sampling parameters.
    """
    counts, steps = torch.zeros(SMALL_SHAPE.vocab_size, SMALL_SHAPE.vocab_size), []
    for seed in range(num_draws):
        params = SamplingParams(max_new_tokens=8, temperature=SHARP.temperature, seed=seed)
        session = open_session(params)
        with torch.inference_mode():
            tokens = list(answered(session.prefill()).tokens)
            while len(tokens) < 3:
                steps.append(answered(session.step()))
                tokens += steps[-1].tokens
        counts[tokens[1], tokens[2]] += 1
    return counts, steps


def chance(counts, expected):
    """The chi-square test's p-value of counts against a distribution."""
    observed, wanted = counts.flatten(), (expected * counts.sum()).flatten()
    # cells expected less than five times are pooled, as the chi-square approximation asks
    rare = wanted < 5
    observed = torch.cat([observed[~rare], observed[rare].sum()[None]]).double()
    wanted = torch.cat([wanted[~rare], wanted[rare].sum()[None]]).double()
    return chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue
