"""How often each 95 % interval of the program covers the truth, simulated: the table of ``docs/measuring.md``.

``python tests/interval_coverage.py`` writes the table anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from fidelity_coverage import (
    NUM_RUNS,
    Array,
    Bounds,
    Experiment,
    best_setting,
    differences_of_regret,
    per_token,
    regret_difference,
    regrets,
)

from hambench.analysis.statistics.intervals import (
    WIDEST,
    clustered_rate,
    difference_interval,
    log_ratio_interval,
    mean_score_interval,
    t_interval,
)
from hambench.analysis.statistics.paired_tests import MIN_BLOCKS, RATIO, RATIO_OF_RATIOS

SAMPLES = (1, 2, 3, 5, 8, 20)
TASKS = (1, 8, 21)
LEAST = 93.0
"""Percent that a printed interval must cover."""
DOCS = Path(__file__).parents[1] / "docs" / "measuring.md"
BEGIN, END = "<!-- coverage -->", "<!-- /coverage -->"


def table() -> dict[tuple[str, str], list[float | None]]:
    """Percent covered by (interval, kind of data), one number per :data:`SAMPLES`: the least over tasks and data sets.

    ``None`` where the interval is not printed.
    """
    rows: dict[tuple[str, str], list[float | None]] = {}
    for name, kind, of_tasks, experiments in intervals():
        rows[name, kind] = [
            least(
                [
                    covered(experiment, samples, tasks)
                    for experiment in experiments
                    for tasks in (TASKS if of_tasks else (1,))
                ]
            )
            for samples in SAMPLES
        ]
    return rows


def covered(experiment: Experiment, samples: int, tasks: int) -> float | None:
    (low, high), truth = experiment(np.random.default_rng([samples, tasks]), samples, tasks)
    printed = np.isfinite(low)
    if not printed.any():
        return None
    # what is not printed can't mislead, nor may it make up for what does
    return float(100 * ((low <= truth + 1e-9) & (truth - 1e-9 <= high))[printed].mean())


def least(shares: list[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return min(known) if known else None


def intervals() -> Iterator[tuple[str, str, bool, list[Experiment]]]:
    """Every interval with each kind of data, and whether its units are spread over tasks."""
    scores = {
        "0/1": [zero_one(0.05), zero_one(0.2), zero_one(0.5), zero_one(None)],
        "graded": [beta(0.21, 0.39), beta(3.0, 5.0)],
        "heavy tails": [rare_full_scores],
    }
    for kind, draws in scores.items():
        yield "accuracy of a cell", kind, True, [accuracy(draw) for draw in draws]
    changes = {
        "0/1": [flips(0.02, 0.0), flips(0.1, 0.0), flips(0.3, 0.3), flips(0.5, 0.5)],
        "graded": [graded_changes],
        "heavy tails": [rare_losses, rare_changes],
    }
    for kind, draws in changes.items():
        yield "difference of accuracy", kind, True, [difference(draw) for draw in draws]
    answers = {
        "two kinds": [speeds(size=0.7, gain=0.1, kinds=0.3)],
        "mild": [speeds(size=0.5, gain=0.1)],
        "heavy tails": [
            speeds(size=1.0, gain=0.2),
            speeds(size=1.5, gain=0.3),
            speeds(size=1.0, gain=0.6),
            speeds(size=1.0, gain=0.3, slope=0.3),
        ],
    }
    for kind, draws in answers.items():
        yield "ratio of speeds", kind, True, [ratio(draw, RATIO) for draw in draws]
    for kind, draws in answers.items():
        yield "ratio of two runs' ratios", kind, True, [ratio(draw, RATIO_OF_RATIOS) for draw in draws]
    for kind, draws in answers.items():
        yield "tokens per step by position", kind, False, [mean_ratio(draw) for draw in draws]
    losses = {
        "all answers": [regrets(zeros=0.0, spread=0.5)],
        "some answers": [regrets(zeros=0.3, spread=0.5), regrets(zeros=0.6, spread=0.5)],
        "heavy tails": [regrets(zeros=zeros, spread=1.0) for zeros in (0.0, 0.3, 0.6)],
    }
    for kind, experiments in losses.items():
        yield "regret per token", kind, False, experiments
    for kind, experiments in differences_of_regret().items():
        yield "difference of regret", kind, False, experiments
    near_ties = [regret_difference(per_token(share, 0.02, 0.5), few_may_differ=True) for share in (0.1, 0.5)]
    yield "difference of regret", "near-ties, lossless", False, near_ties
    for num in (2, 9, 18):
        yield "best of several settings", f"of {num}", False, [best_setting(num)]
    tokens = {
        "even": [clusters(spread=50.0, size=0.0)],
        "spread": [clusters(spread=4.0, size=0.5)],
        "heavy tails": [clusters(spread=4.0, size=1.0)],
    }
    for kind, experiments in tokens.items():
        yield "share of tokens (stop head)", kind, False, experiments
    blocks = {
        "two kinds": [gate(lambda rng, shape: rng.choice([-0.03, 0.03], shape) + rng.normal(0, 0.02, shape))],
        "mild": [gate(lambda rng, shape: rng.normal(0, 0.03, shape))],
        "heavy tails": [
            gate(lambda rng, shape: 0.03 * rng.standard_t(3, shape)),
            gate(lambda rng, shape: rng.laplace(0, 0.03, shape)),
        ],
    }
    for kind, experiments in blocks.items():
        yield "blocks of a gate", kind, False, experiments


Draw = Callable[[np.random.Generator, tuple[int, int, int]], tuple[Array, float]]
"""Scores or changes of shape (runs, tasks, samples), from 0 to 1, and their true mean."""


def zero_one(rate: float | None) -> Draw:
    """0/1 scores of one rate, or of rates from 0.05 to 0.9 over the tasks."""

    def draw(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[Array, float]:
        spread = np.linspace(0.05, 0.9, shape[1]) if shape[1] > 1 else np.array([0.3])
        rates = spread if rate is None else np.full(shape[1], rate)
        return (rng.random(shape) < rates[:, None]).astype(float), float(rates.mean())

    return draw


def beta(a: float, b: float) -> Draw:
    return lambda rng, shape: (rng.beta(a, b, shape), a / (a + b))


def rare_full_scores(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[Array, float]:
    """Nearly nothing, and once in 25 samples everything."""
    full = rng.random(shape) < 0.04
    return np.where(full, 1.0, rng.beta(1, 30, shape)), 0.04 + 0.96 / 31


def flips(rate: float, upwards: float) -> Draw:
    def draw(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[Array, float]:
        ways = np.where(rng.random(shape) < upwards, 1.0, -1.0)
        return np.where(rng.random(shape) < rate, ways, 0.0), rate * (2 * upwards - 1)

    return draw


def graded_changes(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[Array, float]:
    """Half of the scores change a little; tasks differ in how."""
    of_task = np.linspace(-0.1, 0.1, shape[1])[:, None] if shape[1] > 1 else 0.0
    return of_task + np.where(rng.random(shape) < 0.5, rng.normal(0, 0.15, shape), 0.0), 0.0


def rare_losses(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[Array, float]:
    """Scores that hardly change, and once in 25 samples are lost."""
    return np.where(rng.random(shape) < 0.04, -1.0, rng.normal(0, 0.02, shape)), -0.04


def rare_changes(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[Array, float]:
    sizes = rng.choice([-0.6, 0.2], shape, p=[0.25, 0.75])
    return np.where(rng.random(shape) < 0.1, sizes, 0.0), 0.0


def accuracy(draw: Draw) -> Experiment:
    def experiment(rng: np.random.Generator, samples: int, tasks: int) -> tuple[Bounds, float]:
        scores, truth = draw(rng, (NUM_RUNS, tasks, samples))
        _, low, high = mean_score_interval([scores[:, task] for task in range(tasks)])
        return (low, high), truth

    return experiment


def difference(draw: Draw) -> Experiment:
    def experiment(rng: np.random.Generator, samples: int, tasks: int) -> tuple[Bounds, float]:
        changes, truth = draw(rng, (NUM_RUNS, tasks, samples))
        num = tasks * samples
        interval = difference_interval(
            changes.reshape(NUM_RUNS, num), np.repeat(np.arange(tasks), samples), np.arange(num), scale=1.0
        )
        # past what is possible on both sides it is not printed
        says_nothing = (interval.low <= -1) & (interval.high >= 1)
        low = np.where(says_nothing, np.nan, np.maximum(interval.low, -1))
        return (low, np.minimum(interval.high, 1)), truth

    return experiment


Speeds = Callable[[np.random.Generator, int, int, int], tuple[Array, Array, Array, float]]
"""Tokens and seconds of two arms for (runs, tasks, samples), and the true log ratio of their sums."""


def speeds(*, size: float, gain: float, slope: float = 0.0, kinds: float = 0.0) -> Speeds:
    """Answers whose length is lognormal, faster by 1.3 with spread ``gain``; tasks differ in length and gain.

    Args:
        size: Standard deviation of the logarithm of an answer's length.
        gain: The same of its gain.
        slope: By how much the logarithm of the gain grows with one standard deviation of length.
        kinds: Distance of two kinds of answers, half of each, in the logarithm of their gain.
    """

    def draw(rng: np.random.Generator, runs: int, tasks: int, samples: int) -> tuple[Array, Array, Array]:
        at = np.repeat(np.linspace(-1, 1, tasks) if tasks > 1 else np.zeros(1), samples)
        shape = (runs, tasks * samples)
        long = rng.standard_normal(shape)
        tokens = np.exp(4 + at + size * long)
        pace = np.exp(rng.normal(-3.5, 0.05, shape))
        kind = rng.choice([-kinds / 2, kinds / 2], shape) if kinds else 0.0
        gains = np.log(1.3) + 0.15 * at + slope * long + kind + gain * rng.standard_normal(shape)
        return tokens, tokens * pace / np.exp(gains), tokens * pace

    def speeds_of(
        rng: np.random.Generator, runs: int, tasks: int, samples: int
    ) -> tuple[Array, Array, Array, float]:
        if tasks not in truths:
            every = draw(np.random.default_rng(0), 1, tasks, 600_000 // tasks)
            truths[tasks] = float(np.log(every[2].sum() / every[1].sum()))
        return *draw(rng, runs, tasks, samples), truths[tasks]

    truths: dict[int, float] = {}
    return speeds_of


def ratio(draw: Speeds, signs: tuple[int, ...]) -> Experiment:
    def experiment(rng: np.random.Generator, samples: int, tasks: int) -> tuple[Bounds, float]:
        tokens, ours, theirs, truth = draw(rng, NUM_RUNS, tasks, samples)
        if samples * tasks < 2:
            return (np.full(NUM_RUNS, np.nan), np.full(NUM_RUNS, np.nan)), truth
        arms = [tokens, ours, tokens, theirs]
        if signs == RATIO_OF_RATIOS:
            # another moment of the machine: both vanilla cells have noise of their own and no gain
            again = [theirs * np.exp(rng.normal(0, 0.05, theirs.shape)) for _ in range(2)]
            arms = [tokens, ours, tokens, again[0], tokens, theirs, tokens, again[1]]
        interval = log_ratio_interval(np.stack(arms), (*signs, *(-sign for sign in signs)))
        return (interval.low, interval.high), truth

    return experiment


def mean_ratio(draw: Speeds) -> Experiment:
    def experiment(rng: np.random.Generator, samples: int, tasks: int) -> tuple[Bounds, float]:
        _, ours, theirs, truth = draw(rng, NUM_RUNS, tasks, samples)
        if samples < 3:
            return (np.full(NUM_RUNS, np.nan), np.full(NUM_RUNS, np.nan)), truth
        # the ratio's own interval is this one's exponential
        interval = log_ratio_interval(np.stack([theirs, ours]), RATIO)
        effect = np.log(theirs.sum(axis=-1) / ours.sum(axis=-1))
        # past what says something it is not printed
        is_wide = np.maximum(interval.high - effect, effect - interval.low) > np.log(WIDEST)
        return (np.where(is_wide, np.nan, interval.low), interval.high), truth

    return experiment


def clusters(*, spread: float, size: float) -> Experiment:
    """Tokens that are right at a rate of their sample, 0.7 on average.

    Args:
        spread: How alike the samples' rates are (of their beta distribution).
        size: Standard deviation of the logarithm of a sample's tokens.
    """

    def experiment(rng: np.random.Generator, samples: int, tasks: int) -> tuple[Bounds, float]:
        shape = (NUM_RUNS, samples)
        told = 1 + rng.poisson(np.exp(2.5 + size * rng.standard_normal(shape)))
        right = rng.binomial(told, rng.beta(0.7 * spread, 0.3 * spread, shape))
        _, low, high = clustered_rate(right, told)
        return (low, high), 0.7

    return experiment


def gate(draw: Callable[[np.random.Generator, tuple[int, int]], Array]) -> Experiment:
    def experiment(rng: np.random.Generator, samples: int, tasks: int) -> tuple[Bounds, float]:
        if samples < MIN_BLOCKS:
            return (np.full(NUM_RUNS, np.nan), np.full(NUM_RUNS, np.nan)), 0.0
        low, high, _ = t_interval(draw(rng, (NUM_RUNS, samples)))
        return (low, high), 0.0

    return experiment


def markdown(rows: dict[tuple[str, str], list[float | None]]) -> str:
    """The table of the documentation."""
    lines = [
        f"| interval | data | {' | '.join(f'n = {n}' for n in SAMPLES)} |",
        f"|---|---|{'---:|' * len(SAMPLES)}",
    ]
    for (name, kind), shares in rows.items():
        cells = ["–" if share is None else f"{share:.1f}" for share in shares]
        lines.append(f"| {name} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def documented() -> dict[tuple[str, str], list[float | None]]:
    """The table as ``docs/measuring.md`` holds it."""
    text = DOCS.read_text(encoding="utf-8")
    rows = {}
    for line in text[text.index(BEGIN) : text.index(END)].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 2 + len(SAMPLES) and re.fullmatch(r"–|[\d.]+", cells[2]):
            rows[cells[0], cells[1]] = [None if cell == "–" else float(cell) for cell in cells[2:]]
    return rows


if __name__ == "__main__":
    content = DOCS.read_text(encoding="utf-8")
    before, after = content[: content.index(BEGIN)], content[content.index(END) :]
    DOCS.write_text(f"{before}{BEGIN}\n{markdown(table())}\n{after}", encoding="utf-8")
