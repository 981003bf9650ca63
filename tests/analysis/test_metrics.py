from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import write_run

from hambench.analysis import metrics
from hambench.analysis.arms import RATES
from hambench.analysis.measurements import Measurement, measure, measure_run, metric_value
from hambench.analysis.statistics.intervals import macro_average, proportion_interval
from hambench.groups import group_names
from hambench.records import GenerationTrace, Sample, SampleRecord, Score, StepRecord
from hambench.store import load_run


def step(num_tokens: int, seconds: float = 1.0, **counts: int) -> StepRecord:
    return StepRecord(tokens=tuple(range(num_tokens)), seconds=seconds, **counts)


def trace(*steps: StepRecord, prompt_tokens: int = 10) -> GenerationTrace:
    return GenerationTrace(prompt_tokens=prompt_tokens, steps=steps, finish="length")


def sample(doc_id: int, *, task: str = "t", suite: str = "s", category: str = "c") -> Sample:
    return Sample(
        sample_id=f"{suite}/{task}/{doc_id}",
        suite=suite,
        task=task,
        category=category,
        doc_id=doc_id,
        prompt="p",
        stop=(),
        max_new_tokens=8,
    )


def record(sample: Sample, trace: GenerationTrace | None, **fields: object) -> SampleRecord:
    error = None if trace else "context overflow"
    base = SampleRecord(
        cell="vanilla", sample_id=sample.sample_id, prompt_hash=sample.prompt_hash, trace=trace, error=error
    )
    return dataclasses.replace(base, **fields)  # type: ignore[arg-type]


def score(sample: Sample, value: float | None, **fields: object) -> Score:
    base = Score(cell="vanilla", sample_id=sample.sample_id, repeat=0, metric="exact", value=value)
    return dataclasses.replace(base, **fields)  # type: ignore[arg-type]


def measured(
    records: list[SampleRecord], scores: list[Score], samples: list[Sample], group: str = "all"
) -> Measurement:
    return measure(records, scores, {s.sample_id: s for s in samples}, cell="vanilla", group=group)


def test_an_answer_whose_prompt_was_copied_has_no_time_of_its_prefill() -> None:
    """Absent, never 0: the wait for a first token rests on the answers whose prompt the cell read itself."""
    copied = dataclasses.replace(step(1), seconds=None)
    timed, second = trace(step(1, seconds=3.0), step(1, seconds=1.0)), trace(copied, step(1, seconds=1.0))
    assert (timed.ttft_s, second.ttft_s) == (3.0, None)
    assert (timed.seconds, second.seconds) == (4.0, None)
    assert metrics.ttft_s([timed, second]) == 3.0
    assert metrics.prefill_tps([timed, second]) == pytest.approx(10 / 3)
    assert metrics.end_to_end_tps([timed, second]) == pytest.approx(2 / 4)
    assert metrics.tps([timed, second]) == pytest.approx(2 / 2)
    for metric in (metrics.ttft_s, metrics.prefill_tps, metrics.end_to_end_tps):
        assert metric([second]) is None
    with pytest.raises(ValueError, match="was not timed"):
        copied.timed_s  # noqa: B018
    samples = [sample(0), sample(1)]
    found = measured([record(samples[0], timed), record(samples[1], second)], [], samples)
    assert (found.num_samples, found.num_ttfts, found.ttft_s) == (2, 1, 3.0)
    for metric, parts in (("prefill_tps", (10, None)), ("end_to_end_tps", (2, None)), ("tps", (1, 1.0))):
        assert RATES[metric](second) == parts


def test_tps_is_a_ratio_of_sums_that_leaves_the_prefill_step_out() -> None:
    fast = trace(step(1, seconds=100.0), *[step(1, seconds=0.1)] * 9)
    slow = trace(step(4, seconds=100.0), step(1, seconds=1.0))
    assert metrics.tps([fast, slow]) == pytest.approx(10 / 1.9)
    # the mean of the two rates would be 5.5
    assert metrics.end_to_end_tps([fast, slow]) == pytest.approx(15 / 201.9)


def test_an_answer_without_decode_steps_has_a_ttft_but_no_tpot_and_no_tps() -> None:
    only_prefill = trace(step(3, seconds=0.5))
    assert metrics.ttft_s([only_prefill]) == 0.5
    assert metrics.tps([only_prefill]) is None
    assert metrics.tpot_p50_s([only_prefill]) is None
    assert metrics.tpots([only_prefill, trace(step(1), step(2, seconds=3.0))]) == [1.5]


def test_bursts_are_steps_and_tpot_is_tokens() -> None:
    bursty = trace(step(1), *[step(4, seconds=2.0)] * 5)
    assert metrics.burst_p50_s([bursty]) == 2.0
    assert metrics.tpot_p50_s([bursty]) == 0.5


def test_acceptance_is_summed_before_it_is_divided() -> None:
    long = trace(step(1), *[step(5, drafted=4, accepted=4)] * 9)
    short = trace(step(1), step(1, drafted=4, accepted=0))
    assert metrics.acceptance_rate([long, short]) == pytest.approx(36 / 40)
    assert metrics.mean_acceptance_length([long, short]) == pytest.approx(1 + 36 / 10)
    assert metrics.tokens_per_target_forward([long, short]) == pytest.approx(46 / 10)


def test_a_round_without_a_draft_is_no_round_and_nothing_drafted_is_no_rate() -> None:
    lookup = trace(step(1), step(1), step(3, drafted=2, accepted=2))
    assert metrics.mean_acceptance_length([lookup]) == 3
    assert metrics.acceptance_rate([trace(step(1), step(1))]) is None
    assert metrics.acceptance_rate([trace(step(1), step(1, drafted=2))]) == 0


def with_slots(*emitted: int, slots_per_step: list[int], prompt: int = 10) -> GenerationTrace:
    steps, slots = [step(emitted[0], kv_slots=prompt)], prompt
    for tokens, added in zip(emitted[1:], slots_per_step, strict=True):
        slots += added
        steps.append(step(tokens, kv_slots=slots))
    return trace(*steps, prompt_tokens=prompt)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=30), st.integers(1, 100))
def test_one_slot_per_token_compresses_nothing_and_one_slot_per_step_compresses_by_m(
    emitted: list[int], prompt: int
) -> None:
    per_token = with_slots(1, *emitted, slots_per_step=emitted, prompt=prompt)
    assert metrics.kv_compression_output([per_token]) == 1
    assert metrics.kv_compression_total([per_token]) == 1
    smashed = with_slots(1, *emitted, slots_per_step=[1] * len(emitted), prompt=prompt)
    assert metrics.kv_compression_output([smashed]) == metrics.tokens_per_target_forward([smashed])
    total = metrics.kv_compression_total([smashed])
    assert total == pytest.approx((prompt + sum(emitted)) / (prompt + len(emitted)))


def test_kv_bytes_is_the_mean_over_answers_of_the_peak_of_each() -> None:
    rolled_back = trace(step(1, kv_bytes=10), step(1, kv_bytes=70), step(1, kv_bytes=50))
    assert metrics.kv_bytes([rolled_back, trace(step(1, kv_bytes=30))]) == 50


def test_failed_samples_are_counted_and_never_scored_as_zero() -> None:
    samples = [sample(0), sample(1), sample(2)]
    records = [
        record(samples[0], trace(step(1), step(2))),
        record(samples[1], trace(step(1))),
        record(samples[2], None),
    ]
    scores = [
        score(samples[0], 1.0),
        score(samples[1], None, error="no tokenizer data"),
        score(samples[2], 0.0),
    ]
    result = measured(records, scores, samples)
    assert (result.num_samples, result.num_errors, result.num_score_errors) == (2, 1, 1)
    assert result.accuracy is not None
    assert (result.accuracy.value, result.accuracy.n) == (100.0, 1)


def test_warm_ups_and_other_cells_are_left_out() -> None:
    one = sample(0)
    kept = record(one, trace(step(1), step(1, seconds=2.0)))
    warm = record(one, trace(step(1), step(1, seconds=99.0)), warmup=True, repeat=1)
    other = record(one, trace(step(1), step(1, seconds=99.0)), cell="other")
    assert measured([kept, warm, other], [], [one]).tps == 0.5


def test_nothing_measured_is_none_everywhere_and_not_zero() -> None:
    empty = measured([], [], [sample(0)])
    numbers = {name: metric_value(empty, name) for name in metrics.METRICS}
    assert all(value is None or (value == 0 and name.startswith("num_")) for name, value in numbers.items())


def test_accuracy_is_the_macro_average_over_tasks_and_repeats_are_averaged_first() -> None:
    easy, hard = [sample(i, task="easy") for i in range(9)], [sample(0, task="hard")]
    scores = [score(s, 50.0, scale=50.0) for s in easy]
    scores += [score(hard[0], value, repeat=i) for i, value in enumerate([1.0, 0.0, 0.0, 0.0])]
    scores += [score(hard[0], 1.0, metric="secondary", primary=False)]
    records = [record(s, trace(step(1))) for s in easy] + [
        record(hard[0], trace(step(1)), repeat=i) for i in range(4)
    ]
    result = measured(records, scores, easy + hard)
    assert result.accuracy is not None
    assert result.accuracy.value == pytest.approx((100 + 25) / 2)
    assert result.accuracy.n == 10


def test_groups_cover_suites_categories_and_tasks_and_partition_the_tokens() -> None:
    samples = [
        sample(i, suite=s, task=t, category=t[0])
        for i in range(2)
        for s, t in [("a", "x1"), ("a", "y1"), ("b", "x1")]
    ]
    records = [record(s, trace(step(1), step(i + 1))) for i, s in enumerate(samples)]
    names = group_names(samples)
    assert len(names) == len(set(names)) == 1 + 2 + 3 + 3
    for kind in ("suite", "category", "task"):
        parts = [measured(records, [], samples, group=name) for name in names if name.startswith(kind)]
        assert sum(p.num_tokens for p in parts) == measured(records, [], samples).num_tokens
        assert sum(p.num_samples for p in parts) == len(samples)


@given(st.floats(0, 1), st.integers(1, 500))
def test_an_interval_of_a_proportion_holds_its_estimate_and_stays_in_bounds(rate: float, n: int) -> None:
    low, high = proportion_interval(rate * n, n)
    assert 0 <= low <= rate + 1e-9
    assert rate - 1e-9 <= high <= 1
    assert high - low > 0


@pytest.mark.parametrize("points", [{"a": [100.0] * 5}, {"a": [0.0], "b": [100.0]}, {"a": [37.5, 37.5]}])
def test_an_accuracy_interval_is_never_of_zero_width_at_small_n(points: dict[str, list[float]]) -> None:
    estimate = macro_average(points)
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.high - estimate.low > 5


@pytest.mark.parametrize("rates", [(0.1,), (0.9,), (0.05, 0.5, 0.95), (0.3, 0.3)])
def test_accuracy_intervals_cover_at_their_nominal_rate(rates: tuple[float, ...]) -> None:
    import numpy as np

    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(1000):
        estimate = macro_average(
            {str(i): list(100.0 * (rng.random(20) < rate)) for i, rate in enumerate(rates)}
        )
        assert estimate is not None
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= 100 * np.mean(rates) <= estimate.high
    assert covered >= 930


def test_every_metric_is_a_field_with_a_definition_and_a_unit() -> None:
    fields = {field.name for field in dataclasses.fields(Measurement)}
    for name, metric in metrics.METRICS.items():
        assert name in fields
        assert len(metric.definition) > 20
        assert metric.unit


def test_a_definition_says_over_what_in_the_paragraph_that_is_printed() -> None:
    assert metrics.METRICS["tps"].definition.endswith("in a batch, of all sequences.")
    assert metrics.METRICS["ttft_s"].definition.endswith("over answers that every cell timed.")


def test_a_count_of_accepted_tokens_that_was_not_cut_with_them_is_cut_when_it_is_read() -> None:
    steps = (
        StepRecord(tokens=(1,), seconds=1.0),
        StepRecord(tokens=(2, 3, 4), seconds=1.0, drafted=2, accepted=2),
        StepRecord(tokens=(5,), seconds=1.0, drafted=4, accepted=4, discarded=4),
    )
    old = GenerationTrace(prompt_tokens=3, steps=steps, finish="eos")
    new = dataclasses.replace(old, steps=(*steps[:2], dataclasses.replace(steps[2], accepted=1)))
    assert metrics.num_accepted([old]) == metrics.num_accepted([new]) == 3
    assert metrics.acceptance_rate([old]) == metrics.acceptance_rate([new]) == 0.5


def test_the_peak_of_a_process_is_no_cells_peak(tmp_path) -> None:
    run = load_run(write_run(tmp_path / "run"))
    records = tuple(dataclasses.replace(record, peak_memory_bytes=2**30) for record in run.records)
    run = dataclasses.replace(run, records=records)
    for device, peak in (("cpu", None), ("cuda", 2**30)):
        header = dataclasses.replace(run.header, model={**run.header.model, "device": device})
        measured = measure_run(dataclasses.replace(run, header=header))
        assert {m.peak_memory_bytes for m in measured} == {peak}
