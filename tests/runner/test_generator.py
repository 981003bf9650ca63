"""What belongs to one answer alone: its noise, and its peak of memory."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import torch

from hambench.machine import load
from hambench.machine.load import CpuLoadMeter
from hambench.methods.common.sampling import choose, generator_for
from hambench.records import Cell, Sample
from hambench.runner.generator import DecodingOptions, Generator, Job, noise_seed


def sample(doc_id: int) -> Sample:
    return Sample(
        sample_id=f"s/t/{doc_id}",
        suite="s",
        task="t",
        category="c",
        doc_id=doc_id,
        prompt="abcd",
        stop=(),
        max_new_tokens=4,
    )


def test_forty_questions_with_four_equal_answers_are_not_all_answered_alike() -> None:
    options = DecodingOptions(temperature=1.0)
    logits = torch.zeros(4)
    for repeat in range(8):
        drawn = Counter()
        for doc_id in range(40):
            params = options.params(sample(doc_id), repeat)
            drawn[choose(logits, params, generator_for(params, torch.device("cpu")))] += 1
        # 40 draws of four letters: the commonest is seen 25 times or more in one of 100,000
        assert max(drawn.values()) < 25


def test_noise_differs_by_seed_sample_and_repeat_and_is_the_same_for_every_method() -> None:
    seeds = {noise_seed(seed, f"s/{i}", repeat) for seed in (0, 1) for i in range(50) for repeat in range(3)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert noise_seed(3, "s/1", 2) == noise_seed(3, "s/1", 2)


def test_a_peak_of_memory_is_that_of_its_answer_and_a_cpu_has_none(target, monkeypatch) -> None:
    cell = Cell(method="vanilla", label="vanilla", knobs={}, model="m", dtype="float32")
    generator = Generator(target, (cell,), DecodingOptions())
    assert generator.record(Job(cell, sample(0), 0), CpuLoadMeter()).peak_memory_bytes is None

    # an allocator whose peak only falls when it is reset, as a GPU's
    allocator = SimpleNamespace(peak=10_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: setattr(allocator, "peak", 500))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: allocator.peak)
    reset, peak = load.reset_peak_memory, load.allocator_peak_bytes
    monkeypatch.setattr("hambench.runner.generator.reset_peak_memory", lambda device: reset("cuda"))
    monkeypatch.setattr("hambench.runner.generator.allocator_peak_bytes", lambda device: peak("cuda"))
    assert generator.record(Job(cell, sample(0), 0), CpuLoadMeter()).peak_memory_bytes == 500
