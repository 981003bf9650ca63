"""Forced steps: real sessions of a toy model, whose lengths and checks are tested; no figure is looked at."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from fake_launches import Replayed

from hambench.bench import forced
from hambench.bench.forced import Amount, ForcedPace, Stopwatch, markdown
from hambench.bench.forced_checks import check_against_torch, check_loop
from hambench.bench.regimes import random_llama, walk
from hambench.engine.cuda.early_exit import GRAPH_LOOPS
from hambench.engine.cuda.fused_llama import FusedLlama
from hambench.errors import HambenchError
from hambench.kernels.tools.shapes import TOY
from hambench.methods.hamburger.model import HamburgerModel

PROMPT = list(range(1, 25))


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    return random_llama(TOY, torch.device("cpu"), torch.float32)


def engine(model, regime, kernels):
    if kernels == "reference":
        return model
    return FusedLlama(model, impl="reference", launches=Replayed() if regime == "graph" else None)


@pytest.fixture(scope="module")
def paces(plain):
    told = []
    found = forced.run(
        plain, TOY, engine=engine, context=24, amount=lambda regime: Amount(2, 2), progress=told.append
    )
    return list(found), told


def test_every_method_and_loop_is_timed_at_every_forced_length(paces):
    found, _ = paces
    rows = {(p.method, p.regime, p.kernels, p.loop, p.lengths) for p in found}
    ways = [("eager", "reference", None), ("eager", "fused", "stepwise")]
    ways += [("graph", "fused", loop) for loop in GRAPH_LOOPS]
    for regime, kernels, loop in ways:
        for lengths in ((1,), (2,), (3,), (4,), (1, 3), (2, 4)):
            assert ("hamburger", regime, kernels, loop, lengths) in rows
        for length in (1, 3, 5):
            assert ("speculative", regime, kernels, None, (length,)) in rows
        assert ("vanilla", regime, kernels, None, (1,)) in rows
    assert all(len(p.seconds) == 2 and min(p.seconds) > 0 for p in found)


def test_macro_steps_are_checked_before_they_are_timed(paces):
    _, told = paces
    assert told.index("macro-steps: kernels against torch") < told.index(
        "hamburger, eager, fused, stepwise, forced to 1 tokens per step"
    )
    for loop in GRAPH_LOOPS:
        assert told.index(f"macro-steps: {loop} against direct launches") < told.index(
            f"hamburger, graph, fused, {loop}, forced to 1 tokens per step"
        )


def models(plain, other):
    checkpoint = forced.random_grafts(plain, merge_heads=4)
    return HamburgerModel(engine(plain, "eager", "fused"), checkpoint), HamburgerModel(
        engine(other, "graph", "fused"), checkpoint
    )


def test_macro_steps_that_differ_stop_the_benchmark(plain):
    other = random_llama(TOY, torch.device("cpu"), torch.float32)
    same = models(plain, plain)
    check_loop(*same, PROMPT, "run-ahead")
    with pytest.raises(HambenchError, match=r"in the run-ahead loop and .*: no speed is given"):
        check_loop(*models(plain, other), PROMPT, "run-ahead")
    torchs = HamburgerModel(plain, forced.random_grafts(plain, merge_heads=4))
    with pytest.raises(HambenchError, match=r"P\(continue\) after token 1 is"):
        check_against_torch(_shifted(torchs), same[1], PROMPT)


def _shifted(model):
    class Shifted(HamburgerModel):
        def __init__(self):
            self.__dict__.update(model.__dict__)

        def continue_probability(self, hidden):
            return super().continue_probability(hidden) + 0.5

    return Shifted()


def test_a_step_that_is_not_as_long_as_forced_stops_the_benchmark(plain):
    @dataclasses.dataclass
    class Two:
        def prefill(self):
            return self.step()

        def step(self):
            from hambench.decoding import Step

            return Step(tokens=(1, 2))

    watch = Stopwatch(plain, Amount(2, 1), PROMPT)
    assert len(watch.time(lambda: (Two(), lambda n: None), (2,))) == 1
    with pytest.raises(HambenchError, match="a step was forced to 3 tokens and emitted 2"):
        watch.time(lambda: (Two(), lambda n: None), (3,))


def test_the_table_gives_ratios_in_the_same_regime_and_says_forced():
    def pace(method, regime, lengths, seconds, predicted):
        loop = "run-ahead" if method == "hamburger" else None
        return ForcedPace(method, regime, "fused", loop, lengths, predicted, (seconds,) * 3)

    lines = markdown(
        [
            pace("vanilla", "eager", (1,), 9e-3, 1.0),
            pace("vanilla", "graph", (1,), 1e-3, 1.0),
            pace("hamburger", "graph", (1, 3), 0.8e-3, 1.39),
        ]
    )
    assert lines[0].startswith("Forced: ")
    assert lines[-1] == (
        "| hamburger | graph | fused | run-ahead | 1, 3 | 2 | 800.0 | 1.25× | 1.39× | 90 % |"
    )


def test_the_byte_models_ratios_are_the_known_ones():
    from hambench.kernels.tools.shapes import SHAPES
    from hambench.methods.hamburger.byte_rule import HamburgerBytes

    rule = HamburgerBytes(forced._byte_model(SHAPES["llama-3.2-1b"]))
    assert [round(rule.speedup(m), 2) for m in (2, 3, 4)] == [1.39, 1.62, 1.76]


def test_a_dry_run_has_no_figures_and_says_so():
    from hambench.bench.regimes import markdown as page

    report = walk(lambda text: None)
    assert report.dry_run
    assert report.forced
    assert not any(pace.seconds for pace in report.forced)
    text = page(report)
    assert "nothing was measured" in text
    assert "| hamburger | eager | fused | stepwise | 2 | 2 | – | – |" in text
