"""Simulated answers whose fidelity is compared, and settings of which the best is chosen, for ``interval_coverage``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hambench.analysis.regret import UNSEEN_REGRET
from hambench.analysis.statistics.intervals import log_ratio_interval, ratio_of_sums
from hambench.analysis.statistics.paired_tests import MIN_BLOCKS, RATIO
from hambench.analysis.statistics.ratio_difference import difference_of_ratios
from hambench.analysis.verdicts import best_of
from hambench.records import Comparison, Estimate

Array = NDArray[Any]
Bounds = tuple[Array, Array]
"""Low and high of every simulated data set; NaN where no interval is printed."""
Experiment = Callable[[np.random.Generator, int, int], tuple[Bounds, float]]
"""From a generator, samples per task and tasks, to the intervals and the truth."""
NUM_RUNS = 2_000


def regrets(*, zeros: float, spread: float) -> Experiment:
    """Nats that answers give up, nothing at all in a share ``zeros`` of them.

    Args:
        zeros: Share of answers without any.
        spread: Standard deviation of the logarithm of the others' nats per token.
    """

    def experiment(rng: np.random.Generator, samples: int, tasks: int) -> tuple[Bounds, float]:
        shape = (NUM_RUNS, samples)
        tokens = np.exp(rng.normal(4, 0.7, shape))
        each = np.where(rng.random(shape) < zeros, 0.0, np.exp(rng.normal(-1, spread, shape)))
        estimates = [ratio_of_sums(above, below) for above, below in zip(tokens * each, tokens, strict=True)]
        low, high = (
            np.array([np.nan if end is None else end for end in ends])
            for ends in zip(*((estimate.low, estimate.high) for estimate in estimates), strict=True)
        )
        return (low, high), float((1 - zeros) * np.exp(-1 + spread**2 / 2))

    return experiment


PerToken = Callable[[np.random.Generator, Array], Array]
"""Nats per token that answers of given lengths give up more than the baseline's."""


def differences_of_regret() -> dict[str, list[Experiment]]:
    shares = (0.1, 0.2, 0.3, 0.5, 0.7)
    some = [regret_difference(per_token(share, 1.0, 0.0)) for share in shares]
    return {
        "all answers": [regret_difference(per_token(1.0, 0.5, 0.0)), regret_difference(on_both_sides)],
        "some answers": some,
        "some, a few tokens": [regret_difference(per_token(share, 1.0, 0.0), length=3.0) for share in shares],
        "heavy tails": [
            regret_difference(per_token(1.0, 0.2, 1.2)),
            regret_difference(per_token(0.5, 0.2, 1.2)),
            regret_difference(lambda rng, tokens: rng.exponential(0.5, tokens.shape) * tokens / 40),
        ],
    }


def per_token(share: float, nats: float, spread: float) -> PerToken:
    """A share of the answers gives something up: exponential, or lognormal where there is a spread."""

    def draw(rng: np.random.Generator, tokens: Array) -> Array:
        lost = nats * (
            np.exp(spread * rng.standard_normal(tokens.shape))
            if spread
            else rng.exponential(1.0, tokens.shape)
        )
        return np.where(rng.random(tokens.shape) < share, lost, 0.0)

    return draw


def on_both_sides(rng: np.random.Generator, tokens: Array) -> Array:
    return rng.exponential(0.5, tokens.shape) - rng.exponential(0.3, tokens.shape)


def regret_difference(draw: PerToken, *, length: float = 40.0, few_may_differ: bool = False) -> Experiment:
    truths: list[float] = []

    def lengths(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return np.round(rng.lognormal(np.log(length), 0.6, shape).clip(1, 256))

    def experiment(rng: np.random.Generator, samples: int, tasks: int) -> tuple[Bounds, float]:
        if not truths:
            every = lengths(np.random.default_rng(0), (1_000_000,))
            truths.append(float((draw(np.random.default_rng(1), every) * every).sum() / every.sum()))
        tokens = lengths(rng, (NUM_RUNS, samples))
        nats = draw(rng, tokens) * tokens
        terms = np.stack([np.maximum(nats, 0), tokens, np.maximum(-nats, 0), tokens])
        interval = difference_of_ratios(terms, unseen=UNSEEN_REGRET, few_may_differ=few_may_differ)
        return (interval.low, interval.high), truths[0]

    return experiment


def best_setting(num_settings: int) -> Experiment:
    """The fastest of settings that are equally fast, each 1.3 times the baseline."""

    def experiment(rng: np.random.Generator, samples: int, tasks: int) -> tuple[Bounds, float]:
        nothing = np.full(NUM_RUNS, np.nan)
        # the best is chosen among those that were called faster
        if samples < MIN_BLOCKS:
            return (nothing, nothing), 0.0
        seconds = np.exp(rng.normal(0, 0.5, (NUM_RUNS, 1, samples)))
        ours = seconds / 1.3 / np.exp(rng.normal(0, 0.1, (NUM_RUNS, num_settings, samples)))
        terms = np.stack(np.broadcast_arrays(seconds, ours, seconds, seconds))
        interval = log_ratio_interval(terms, (*RATIO, *(-sign for sign in RATIO)))
        effects = np.log(terms[3].sum(axis=-1) / terms[1].sum(axis=-1))
        low, high = nothing.copy(), nothing.copy()
        for run, best in enumerate(effects.argmax(axis=-1)):
            value, ends, degrees = (
                np.exp(effects[run, best]),
                np.exp([interval.low[run, best], interval.high[run, best]]),
                interval.degrees_of_freedom[run, best],
            )
            row = Comparison(
                candidate="a",
                baseline="b",
                group="all",
                metric="tps",
                verdict="better",
                effect=Estimate(value=float(value), low=float(ends[0]), high=float(ends[1])),
                degrees_of_freedom=float(degrees),
            )
            widened = best_of(row, num_settings)
            assert widened is not None
            low[run], high[run] = np.log([widened.low or 0.0, widened.high or 0.0])
        return (low, high), float(np.log(1.3))

    return experiment
