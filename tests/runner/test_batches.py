"""Cells that decode several samples together: same answers, times that count a round once, runs that can be killed."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from fakes import tiny_target

from hambench.analysis.batches.figures import batch_kv_bytes, mean_batch, user_tps
from hambench.analysis.comparisons import compare_run
from hambench.analysis.metrics import decode_seconds, peak_kv_bytes, tpots, tps
from hambench.decoding import SamplingParams
from hambench.engine.requests.batch import Ask, Batch, SequenceFailed, StepTaken
from hambench.engine.transformers_adapter import TransformersAdapter, load_causal_lm
from hambench.errors import HambenchError
from hambench.machine.load import CpuLoadMeter
from hambench.methods.peers.base import PeerConfig
from hambench.methods.vanilla import VanillaConfig, VanillaSession
from hambench.records import Cell, Sample
from hambench.registry import BUILTIN, method_config
from hambench.runner import batches
from hambench.runner.batches import batch_records, refuse_too_large
from hambench.runner.budget import calibrate
from hambench.runner.generator import DecodingOptions, Generator
from hambench.runner.request import RunRequest
from hambench.runner.start import prepare, resume_run, start_run
from hambench.runner.sweep import Sweep
from hambench.runner.work import BLOCK_BATCHES, Job, schedule


def sample(doc_id, *, limit=6, prompt="abcd", **kwargs):
    return Sample(
        sample_id=f"s/t/{doc_id}",
        suite="s",
        task="t",
        category="c",
        doc_id=doc_id,
        prompt=prompt,
        stop=(),
        max_new_tokens=limit,
        **kwargs,
    )


def cell(batch=1, method="vanilla", **knobs):
    return Cell(
        method=method, label=f"{method}[batch={batch}]", knobs=knobs, model="m", dtype="float32", batch=batch
    )


def records_of(target, one_cell, samples, **options):
    generator = Generator(target, (one_cell,), DecodingOptions(**options))
    jobs = [Job(one_cell, each, 0) for each in samples]
    if one_cell.batch == 1:
        return {job.sample.sample_id: generator.record(job, CpuLoadMeter()) for job in jobs}
    made = batch_records(generator, generator.method(one_cell), jobs, device="cpu")
    return {job.sample.sample_id: record for job, record in made}


def ticking():
    """A clock that moves on by a second whenever it is read."""
    count = itertools.count()
    return lambda: float(next(count))


SAMPLES = [sample(i, limit=3 + 5 * (i % 3), prompt=f"ab{i} " * (1 + i % 4)) for i in range(7)]


@pytest.mark.parametrize("method", ["vanilla", "prompt_lookup", "speculative"])
def test_answers_of_a_batch_are_those_of_single_runs_each_with_its_own_steps(target, method):
    alone = records_of(target, cell(1, method), SAMPLES, ignore_eos=True)
    together = records_of(target, cell(3, method), SAMPLES, ignore_eos=True)
    assert together.keys() == alone.keys()
    for sample_id, record in together.items():
        assert record.trace.token_ids == alone[sample_id].trace.token_ids
        assert record.text == alone[sample_id].text
        assert all(step.share_s is not None and step.seconds is not None for step in record.trace.steps)
        assert all(1 <= step.in_round <= 3 for step in record.trace.steps)
        assert all(step.round_kv_bytes >= step.kv_bytes for step in record.trace.steps)


@pytest.mark.parametrize("method", ["prompt_lookup", "speculative"])
def test_memory_of_a_batch_counts_what_its_sequences_hold_during_a_step(target, method):
    alone = records_of(target, cell(1, method), SAMPLES, ignore_eos=True)
    peaks = {key: peak_kv_bytes(record.trace) for key, record in alone.items()}
    for each in SAMPLES[:3]:
        ((key, record),) = records_of(target, cell(2, method), [each], ignore_eos=True).items()
        assert any(step.peak_kv_bytes for step in record.trace.steps)
        for step in record.trace.steps:
            assert step.round_kv_bytes == max(step.kv_bytes, step.peak_kv_bytes or 0)
        assert batch_kv_bytes([record.trace]) == peaks[key] == batch_kv_bytes([alone[key].trace])
    together = records_of(target, cell(3, method), SAMPLES, ignore_eos=True)
    assert batch_kv_bytes([each.trace for each in together.values()]) <= 3 * max(peaks.values())


def test_shares_of_all_steps_add_up_to_the_time_of_all_rounds_and_a_user_waits_for_a_round(target):
    clock = ticking()
    batch = Batch(VanillaConfig().build(target), 3, clock=clock)
    for key, prompt in enumerate(([1, 2], [3, 4, 5], [6])):
        batch.add(key, Ask(prompt_ids=prompt, params=SamplingParams(max_new_tokens=4 + key)))
    steps, elapsed = [], 0.0
    while batch.num_sequences:
        began = clock()
        events = batch.round()
        # the two readings of the clock here are not the round's
        seconds = clock() - began - 1 - 1
        elapsed += seconds
        steps += [event.step for event in events]
        decoded = [event.step for event in events if event.step.in_round == len(events)]
        if len(decoded) > 1 and len({step.seconds for step in decoded}) == 1:
            # whoever takes part waits for the whole round
            assert decoded[0].seconds == pytest.approx(seconds)
    assert sum(step.share_s for step in steps) == pytest.approx(elapsed)
    assert sum(step.seconds for step in steps) > elapsed


def test_speeds_of_a_batch_count_a_round_once_and_a_users_speed_its_waiting(target):
    records = records_of(target, cell(4), SAMPLES, ignore_eos=True)
    traces = [record.trace for record in records.values()]
    num_tokens = sum(len(step.tokens) for trace in traces for step in trace.steps[1:])
    shares = math.fsum(step.share_s for trace in traces for step in trace.steps[1:])
    waited = math.fsum(step.seconds for trace in traces for step in trace.steps[1:])
    assert tps(traces) == pytest.approx(num_tokens / shares)
    assert user_tps(traces) == pytest.approx(num_tokens / waited)
    assert decode_seconds(traces) == pytest.approx(shares)
    assert 1 <= mean_batch(traces) <= 4
    assert tpots(traces)[0] == pytest.approx(
        sum(step.seconds for step in traces[0].steps[1:])
        / sum(len(step.tokens) for step in traces[0].steps[1:])
    )


def test_figures_of_batches_are_none_outside_one(target):
    traces = [record.trace for record in records_of(target, cell(1), SAMPLES[:2]).values()]
    assert user_tps(traces) is None
    assert mean_batch(traces) is None
    assert tps(traces) > 0


def test_a_sample_that_fails_leaves_its_place_and_the_others_go_on(target):
    too_long = sample(99, prompt="a" * 600)
    records = records_of(target, cell(2), [SAMPLES[0], too_long, *SAMPLES[1:4]])
    assert "exceed the context" in records["s/t/99"].error
    assert sum(record.error is None for record in records.values()) == 4


def test_a_sequence_that_fails_inside_a_round_fails_alone(target):
    method = VanillaConfig().build(target)
    batch = Batch(method, 3)
    for key in range(3):
        batch.add(key, Ask(prompt_ids=[1 + key, 2], params=SamplingParams(max_new_tokens=5)))
    ended = {}
    for number in itertools.count():
        if not batch.num_sequences:
            break
        if number == 3:
            session = batch._sequences[1].session
            session.sequence.cache.values.fill_(float("nan"))
        for event in batch.round():
            if isinstance(event, SequenceFailed):
                ended[event.key] = type(event.error).__name__
            elif event.finish is not None:
                ended[event.key] = event.finish
    assert ended == {0: "length", 1: "NotFiniteError", 2: "length"}


def test_a_sequence_whose_end_cannot_be_told_fails_alone(target):
    """A stop string needs the text so far: what raises there once raised out of the round, for everybody."""
    batch = Batch(VanillaConfig().build(target), 2)

    def no_text(ids):
        raise LookupError("no such token")

    params = SamplingParams(max_new_tokens=5)
    batch.add("good", Ask(prompt_ids=[1, 2], params=params))
    batch.add("bad", Ask(prompt_ids=[1, 3], params=params, stop=["x"], decode_text=no_text))
    tokens, errors = [], []
    while batch.num_sequences:
        for event in batch.round():
            if isinstance(event, SequenceFailed):
                errors.append((event.key, str(event.error)))
            else:
                assert event.key == "good"
                tokens += event.step.tokens
    assert len(tokens) == 5
    assert errors == [("bad", "no such token")]


def test_prompts_are_read_in_pieces_between_the_steps_of_others(target, monkeypatch):
    monkeypatch.setattr(target.llama, "prefill_chunk", 4)
    batch = Batch(VanillaConfig().build(target), 2)
    batch.add("short", Ask(prompt_ids=[1, 2], params=SamplingParams(max_new_tokens=12)))
    batch.round()
    batch.add("long", Ask(prompt_ids=list(range(1, 18)), params=SamplingParams(max_new_tokens=2)))
    seen = []
    while batch.num_sequences:
        seen.append(sorted(event.key for event in batch.round() if isinstance(event, StepTaken)))
    # five pieces of four rows: the other sequence takes a step with each
    assert seen[:5] == [["short"]] * 4 + [["long", "short"]]


def test_a_place_is_given_on_as_soon_as_a_sequence_ends(target):
    batch = Batch(VanillaConfig().build(target), 2)
    batch.add(0, Ask(prompt_ids=[1], params=SamplingParams(max_new_tokens=1)))
    batch.add(1, Ask(prompt_ids=[2], params=SamplingParams(max_new_tokens=9)))
    assert not batch.has_room
    with pytest.raises(ValueError, match="the batch is full"):
        batch.add(2, Ask(prompt_ids=[3], params=SamplingParams(max_new_tokens=2)))
    batch.round()
    assert batch.has_room
    batch.add(2, Ask(prompt_ids=[3], params=SamplingParams(max_new_tokens=2)))
    batch.drop(1)
    assert batch.num_sequences == 1


class EchoSession(VanillaSession):
    """A plugin's session: it extends ours and knows nothing of batches."""

    said = 0

    def step(self):
        type(self).said += 1
        return super().step()


def test_a_plugins_method_is_in_a_batch_without_a_change_in_it(target, monkeypatch):
    from hambench.methods import vanilla

    plain = records_of(target, cell(1), SAMPLES, ignore_eos=True)
    monkeypatch.setattr(vanilla, "VanillaSession", EchoSession)
    together = records_of(target, cell(3), SAMPLES, ignore_eos=True)
    assert {key: record.trace.token_ids for key, record in together.items()} == {
        key: record.trace.token_ids for key, record in plain.items()
    }
    assert EchoSession.said == sum(len(record.trace.steps) - 1 for record in together.values())


def test_turns_of_a_conversation_wait_for_the_answer_before(target):
    turns = [
        dataclasses.replace(
            sample(i, prompt=f"turn {i}"),
            conversation=f"c{i // 2}",
            turn=1 + i % 2,
            messages=({"role": "user", "content": f"question {i}"},),
        )
        for i in range(6)
    ]
    together = records_of(target, cell(4), turns)
    alone = records_of(target, cell(1), turns)
    assert {key: record.text for key, record in together.items()} == {
        key: record.text for key, record in alone.items()
    }
    assert all(record.error is None for record in together.values())


def test_cells_take_turns_per_block_of_samples_where_there_are_batches():
    cells, samples = (cell(1), cell(2)), [sample(i) for i in range(20)]
    jobs = list(schedule(cells, samples, 1))
    assert len({job.key for job in jobs}) == len(jobs) == 40
    turns = [
        (batch, len(list(turn))) for batch, turn in itertools.groupby(jobs, key=lambda job: job.cell.batch)
    ]
    block = BLOCK_BATCHES * 2
    # who came last in one block comes first in the next
    assert turns == [(1, block), (2, 2 * block), (1, block + 4), (2, 4)]


def test_a_batch_is_an_axis_and_each_cell_has_a_baseline_of_its_own_batch():
    cells = Sweep(model="m", methods=("vanilla", "prompt_lookup"), batches=(1, 4)).expand().cells
    assert [each.label for each in cells] == [
        "vanilla[batch=1]",
        "vanilla[batch=4]",
        "prompt_lookup[batch=1]",
        "prompt_lookup[batch=4]",
    ]
    assert cells[1].conditions == cells[3].conditions != cells[0].conditions
    (alone,) = Sweep(model="m", methods=("vanilla",)).expand().cells
    assert (alone.label, alone.batch) == ("vanilla", 1)


PEERS = [name for name in BUILTIN if issubclass(method_config(name), PeerConfig)]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        *(
            (peer, "an engine of its own, whose forwards a batch can't share: leave it out, or")
            for peer in PEERS
        ),
        ("suffix[cache=4]", "reads earlier answers, and in a batch none is the earlier one"),
    ],
)
def test_what_cannot_be_in_a_batch_is_refused_in_one_line(method, message):
    with pytest.raises(HambenchError, match=message):
        Sweep(model="m", methods=(method,), batches=(2,)).expand(ask_availability=False)
    assert Sweep(model="m", methods=(method,)).expand(ask_availability=False).cells


def built(target, *cells):
    generator = Generator(target, cells, DecodingOptions())
    return [(each, generator.method(each)) for each in cells]


def test_a_batch_that_does_not_fit_is_refused_with_the_largest_that_does(target, monkeypatch):
    samples = [sample(i, limit=100, prompt="a" * (10 + i)) for i in range(8)]
    slot = target.llama.new_cache(1).bytes_per_slot
    monkeypatch.setattr(batches, "free_memory_bytes", lambda device: slot * 345)
    with pytest.raises(HambenchError, match="the largest batch that fits is 2"):
        refuse_too_large(built(target, cell(1), cell(4)), samples, target, len)
    monkeypatch.setattr(batches, "free_memory_bytes", lambda device: slot * 50)
    with pytest.raises(HambenchError, match="not even one sequence fits"):
        refuse_too_large(built(target, cell(4)), samples, target, len)
    monkeypatch.setattr(batches, "free_memory_bytes", lambda device: slot * 1000)
    refuse_too_large(built(target, cell(4)), samples, target, len)


@pytest.mark.parametrize(
    ("method", "knobs", "num_fitting"),
    [
        ("vanilla", {}, 4),
        ("speculative", {}, 2),
        ("speculative", {"kv": "shared"}, 4),
        ("vanilla", {"kv_dtype": "int8"}, 14),
        ("prompt_lookup", {"kv_dtype": "int8"}, 14),
        ("kv_press", {"kv_dtype": "int8"}, 14),
        ("speculative", {"kv_dtype": "int8"}, 7),
    ],
)
def test_a_batch_needs_the_caches_of_its_method(target, monkeypatch, method, knobs, num_fitting):
    """A draft's cache was forgotten, and a rounded one counted as if it were not."""
    samples = [sample(i, limit=100, prompt="a" * 28) for i in range(20)]
    slot = target.llama.new_cache(1).bytes_per_slot
    # four answers in float32; int8 has a row of 18 bytes for 16 elements of 4
    monkeypatch.setattr(batches, "free_memory_bytes", lambda device: slot * 4 * 128 + 1)
    refuse_too_large(built(target, cell(num_fitting, method, **knobs)), samples, target, len)
    with pytest.raises(HambenchError, match=rf"batch=20\]: .* that fits is {num_fitting}$"):
        refuse_too_large(built(target, cell(20, method, **knobs)), samples, target, len)


def test_a_later_turn_needs_room_for_the_answers_before_it(target, monkeypatch):
    """It counted as the words that it adds; and of one conversation two turns are never asked at once."""
    turns = [
        dataclasses.replace(
            sample(10 * talk + turn, limit=20, prompt="a" * 10), conversation=f"t{talk}", turn=turn
        )
        for talk in range(3)
        for turn in (1, 2, 3)
    ]
    slot = target.llama.new_cache(1).bytes_per_slot
    # the third turn: its words, and twice a question with its answer
    monkeypatch.setattr(batches, "free_memory_bytes", lambda device: slot * 2 * 90)
    refuse_too_large(built(target, cell(2)), turns, target, len)
    with pytest.raises(HambenchError, match="the largest batch that fits is 2"):
        refuse_too_large(built(target, cell(3)), turns, target, len)


def run_of(tiny_model, rows, folder):
    sweep = Sweep(
        model=str(tiny_model), methods=("vanilla", "prompt_lookup"), dtype="float32", batches=(1, 2)
    )
    tasks = ("lcc", "multifieldqa_en")
    return start_run(
        RunRequest(
            sweep=sweep, suite="longbench", tasks=tasks, data=rows, limit=2, max_new_tokens=6, budget_s=600
        ),
        folder,
    )


def test_a_run_over_batches_is_resumed_like_any_other_and_compares_within_a_batch(tiny_model, rows, tmp_path):
    """The store is cut in the middle of a line, as a kill in the middle of a batch leaves it."""
    whole = run_of(tiny_model, rows, tmp_path / "whole")
    run_of(tiny_model, rows, tmp_path / "killed")
    records = tmp_path / "killed" / "records.jsonl"
    lines = records.read_bytes().splitlines(keepends=True)
    records.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    (tmp_path / "killed" / "scores.jsonl").unlink()
    resumed = resume_run(tmp_path / "killed")
    assert resumed.complete
    tokens = [
        {(r.cell, r.sample_id): r.trace.token_ids for r in run.measured if r.trace}
        for run in (whole, resumed)
    ]
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 4 * 4
    by_sample = {}
    for (label, sample_id), ids in tokens[0].items():
        by_sample.setdefault(sample_id, {})[label] = ids
    # lossless methods at any batch: one answer per sample
    assert all(len(set(answers.values())) == 1 for answers in by_sample.values())
    compared = {(c.candidate, c.baseline) for c in compare_run(whole) if c.metric == "tps"}
    assert compared >= {(f"prompt_lookup[batch={b}]", f"vanilla[batch={b}]") for b in (1, 2)}
    assert ("prompt_lookup[batch=2]", "vanilla[batch=1]") not in compared


def test_ray_and_the_adapter_take_no_batches(tiny_model, rows, tmp_path, monkeypatch):
    sweep = Sweep(model=str(tiny_model), methods=("vanilla",), dtype="float32", batches=(2,))
    request = RunRequest(sweep=sweep, suite="longbench", tasks=("lcc",), data=rows, limit=1, max_new_tokens=2)
    with pytest.raises(HambenchError, match="needs --executor local"):
        prepare(dataclasses.replace(request, executor="ray"))

    model, _ = load_causal_lm(tiny_model, torch.float32)
    adapted = dataclasses.replace(tiny_target(), llama=TransformersAdapter(model))
    monkeypatch.setattr("hambench.models.target.load", lambda *args, **options: adapted)
    with pytest.raises(HambenchError, match="runs through the transformers adapter: give --batch 1"):
        prepare(request)


def test_a_run_of_batches_is_not_finished_by_ray(tiny_model, rows, tmp_path):
    """Its workers decoded the rest sample by sample, and stored it under the batch's label."""
    sweep = Sweep(model=str(tiny_model), methods=("vanilla",), dtype="float32", batches=(1, 2))
    request = RunRequest(sweep=sweep, suite="longbench", tasks=("lcc",), data=rows, limit=2, max_new_tokens=2)
    start_run(request, tmp_path / "run")
    with pytest.raises(HambenchError, match="needs --executor local"):
        resume_run(tmp_path / "run", executor="ray")


def test_prompts_are_read_in_the_pieces_that_a_run_asks_for_in_every_cell(target):
    read = []
    stack = type(target.llama.stack)
    original = stack.forward

    def counting(self, hidden, cache, **options):
        read.append(hidden.shape[0])
        return original(self, hidden, cache, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack, "forward", counting)
        one = sample(0, prompt="abcdefghij", limit=1)
        for size in (1, 2):
            read.clear()
            records_of(target, cell(size), [one], prefill_chunk=4)
            assert read == [4, 4, 2]
        read.clear()
        # the next run of the same model is not bound to it
        records_of(target, cell(1), [one])
        assert read == [10]


def test_calibration_of_a_batch_counts_each_sequences_part(target):
    method = VanillaConfig().build(target)
    speed = calibrate(method, target.context_length, batch=4)
    assert speed.decode_s_per_token > 0
    assert speed.prefill_s_per_token > 0
