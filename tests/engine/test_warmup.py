from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from hambench.decoding import Step
from hambench.engine import warmup
from hambench.engine.kvcache import KVCache
from hambench.methods.speculative import SpeculativeConfig


@dataclass
class Slow:
    """A method whose passes take the scripted seconds of a fake clock."""

    passes: list[float]
    name: str = "slow"
    lossless: bool = True
    extra_weight_bytes: int = 0
    now: float = 0.0
    started: int = 0
    warmed: int = 0

    def warmup(self):
        self.warmed += 1

    def start(self, prompt_ids, params):
        self.now += self.passes[self.started]
        self.started += 1
        return self

    def prefill(self):
        return Step(tokens=(1,))

    step = prefill


def test_a_method_whose_models_are_warm_needs_one_pass(monkeypatch):
    method = Slow([1.0, 1.0, 1.0])
    monkeypatch.setattr(warmup, "time", SimpleNamespace(perf_counter=lambda: method.now))
    asked = []
    result = warmup.warm_up(method, context_length=512, is_warm=lambda used: asked.append(used) or True)
    assert (len(result.passes_s), result.settled, asked) == (1, False, [frozenset()])


def test_what_a_pass_used_is_what_its_requests_name(target):
    method, asked = SpeculativeConfig().build(target), []
    warmup.warm_up(method, target.context_length, is_warm=lambda used: asked.append(used) or True)
    assert asked == [{(id(target.llama), KVCache), (id(method.draft), KVCache)}]


@pytest.mark.parametrize(
    ("passes", "num_passes", "settled"),
    [
        ([9, 5, 1.0, 1.01, 1.0, 7], 5, True),
        ([1.0, 1.0, 1.0], 3, True),
        ([1, 2, 1, 2, 1, 2, 1, 1, 1], 6, False),
    ],
)
def test_passes_go_on_until_three_in_a_row_agree_within_bounds(monkeypatch, passes, num_passes, settled):
    method = Slow(passes)
    monkeypatch.setattr(warmup, "time", SimpleNamespace(perf_counter=lambda: method.now))
    result = warmup.warm_up(method, context_length=512)
    assert (len(result.passes_s), result.settled, method.warmed) == (num_passes, settled, 1)
    assert result.passes_s == pytest.approx(passes[:num_passes])
    assert result.cold_s == pytest.approx(passes[0])
