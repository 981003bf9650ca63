import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner
from fakes import TINY_SHAPE, save_tiny_model
from fakes_hamburger import TINY_ARCHITECTURE, hf_twin, tiny_grafts, with_shape
from torch.utils.flop_counter import FlopCounterMode

from hambench.bench import training
from hambench.cli.bench.training import _lines, command
from hambench.methods.hamburger.architecture import Architecture
from hambench.methods.hamburger.base import tokenizer_of
from hambench.methods.hamburger.data.prompts import build_prompts
from hambench.methods.hamburger.data.self_distill import prompt_ids
from hambench.methods.hamburger.training import micro_stage
from hambench.methods.hamburger.training.losses import micro_loss
from hambench.methods.hamburger.training.merged_forward import collate, fuse
from hambench.methods.hamburger.training.objectives import Student
from hambench.methods.hamburger.training.packed_base import packed_layers
from hambench.methods.hamburger.training.recipes import SMALL

SHAPE = with_shape(tie_embeddings=True, max_positions=1024)
NUM_STEPS, NUM_WINDOWS = 2, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("bench") / "tiny", SHAPE)


@pytest.fixture(scope="module")
def bench(folder):
    """What the command tells, the macro-steps in each step that it took, and what ``reader`` compared tokens over."""
    sizes = ["--answers", "2", "--tokens", "2", "--windows", str(NUM_WINDOWS), "--repeats", "2"]
    arguments = ["--model", str(folder), *sizes, "--steps", str(NUM_STEPS), "--json"]
    taken, parts = [], []
    next_tokens = Student._next_tokens

    def loss(grafts, features, targets, **options):
        taken.append(len(features))
        return micro_loss(grafts, features, targets, **options)

    def compared(student, hidden, targets, weights, vocabulary):
        parts.append(vocabulary)
        return next_tokens(student, hidden, targets, weights, vocabulary)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(micro_stage, "micro_loss", loss)
        patch.setattr(Student, "_next_tokens", compared)
        result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    return json.loads(result.stdout), taken, parts


@pytest.fixture(scope="module")
def told(bench):
    return bench[0]


def test_every_stage_is_timed_next_to_the_peak(bench):
    told, taken, _ = bench
    paces = {pace["stage"]: pace for pace in told["paces"]}
    assert list(paces) == ["answering", "reading", "micro", "reader", "student"]
    assert all(len(pace["seconds"]) == 2 and min(pace["seconds"]) > 0 for pace in paces.values())
    assert told["peak"] > 0
    assert told["peak_dtype"] in ("bfloat16", "float32")
    # windows have 256 tokens; one step has a batch of macro-steps, or of sequences
    assert paces["reading"]["count"] == NUM_WINDOWS * 256
    assert paces["micro"]["count"] == sum(taken[-2 * NUM_STEPS : -NUM_STEPS]) == NUM_STEPS * SMALL.micro_batch
    assert paces["reader"]["count"] == SMALL.batch_size * 256
    assert 2 <= paces["answering"]["count"] <= 4
    # the windows have fewer macro-steps than a batch
    assert paces["student"]["count"] == sum(taken[-NUM_STEPS:]) < NUM_STEPS * SMALL.micro_batch


def test_the_reader_compares_tokens_over_a_shortlist_as_in_training(bench):
    _, _, parts = bench
    assert len(parts) == 3, "one step in each of three repeats"
    assert all(part is not None for part in parts), "the whole vocabulary is another stage's cost"


def test_the_operations_of_a_stage_are_those_of_its_tokens_and_macro_steps(told, folder):
    architecture = Architecture.for_base(SHAPE.num_layers, num_micro_layers=SMALL.num_micro_layers)
    counts = {pace["stage"]: pace["count"] for pace in told["paces"]}
    operations = {pace["stage"]: pace["operations"] for pace in told["paces"]}
    forward = training.forward_operations(SHAPE)
    head = training.head_operations(SHAPE.vocab_size, SHAPE)
    # an answer's last token is not read
    tokenizer, _ = tokenizer_of(folder)
    lengths = [len(prompt_ids(tokenizer, prompt)) for prompt in build_prompts(8, seed=0)]
    read = sum([length for length in lengths if length <= 512][:2]) + counts["answering"] - 2
    assert operations["answering"] == read * forward + counts["answering"] * head
    rows = (operations["reading"] - counts["reading"] * forward) / head
    assert 0.7 * counts["reading"] < rows < counts["reading"]
    micro = training.micro_operations(SHAPE, architecture, SMALL)
    assert operations["micro"] == counts["micro"] * micro
    # the base reads each macro-step once, and some tokens before the first
    base = operations["student"] / counts["student"] - micro
    assert forward < base < 2 * forward
    # slots are fewer than tokens, all layers run, and a distribution is compared after some of the slots
    slot = training.reading_operations(SHAPE, SHAPE.num_layers, 1, 1)
    part = 2 * training.head_operations(SMALL.shortlist, SHAPE)
    compared = [n for n in range(counts["reader"]) if (operations["reader"] - n * part) % slot == 0]
    passes = [(operations["reader"] - n * part) / slot for n in compared]
    assert any(
        counts["reader"] / 4 < each / 2 < counts["reader"] and 0 < n < each / 2
        for n, each in zip(compared, passes, strict=True)
    )
    assert operations["reader"] > counts["reader"] / 4 * 2 * slot


def test_seconds_and_peaks_are_those_of_the_repeats_after_the_warm_up(folder, monkeypatch):
    now, repeats = [0.0], []

    def run(stages):
        now[0] += 100.0 if len(repeats) == 1 else 2.0 * len(repeats)
        return training.Work(7, 30.0)

    def peaks(*_, clock):
        repeats.append(clock())
        number = len(repeats)
        return {"bfloat16": [500.0, 3.0, 5.0][number - 1], "float32": [1.0, 7.0, 9.0][number - 1]}

    for name in ("_answer", "_read", "_micro", "_reader", "_student"):
        monkeypatch.setattr(training._Stages, name, run)
    monkeypatch.setattr(training, "matrix_peaks", peaks)
    result = training.benchmark_training(
        str(folder), num_answers=2, num_windows=2, repeats=2, clock=lambda: now[0]
    )
    assert (result.peak, result.peak_dtype) == (8.0, "float32")
    assert [pace.seconds for pace in result.paces] == [(4.0, 6.0)] * 5
    assert {result.peak_share(pace) for pace in result.paces} == {30.0 / 5.0 / 8.0}
    lines = _lines(result)
    assert [line.split()[:2] for line in lines[4:9]] == [[pace.stage, "1"] for pace in result.paces]
    assert all("75.0%  (1-2)" in line for line in lines[4:9])


def test_a_peak_is_of_the_fastest_product_of_2048_rows(monkeypatch):
    calls = []

    def clock():
        calls.append(1)
        return float(len(calls))

    # each product takes a second by this clock, so that the largest is the fastest
    square = 2 * 2048 * 2048 * 2048
    assert training.matrix_peaks(SHAPE, "cpu", clock=clock) == {"bfloat16": square, "float32": square}
    assert len(calls) == 2 * 2 * training.PEAK_CALLS * 4
    monkeypatch.setattr(training, "PEAK_SQUARE", 1)
    largest = 2 * 2048 * SHAPE.hidden_size * SHAPE.intermediate_size
    assert training.matrix_peaks(SHAPE, "cpu", clock=clock)["float32"] == largest


def test_the_share_of_the_peak_is_of_the_median_repeat(told):
    for pace in told["paces"]:
        median = sum(pace["seconds"]) / 2
        assert pace["per_second"] == pytest.approx(pace["count"] / median)
        assert pace["peak_share"] == pytest.approx(pace["operations"] / median / told["peak"])


def test_the_operations_of_a_macro_step_are_the_products_that_training_makes():
    grafts = tiny_grafts().train()
    counter = FlopCounterMode(display=False)
    with counter:
        hidden = grafts.micro(torch.randn(5, 4, 64), torch.randn(5, 3, 64))
        grafts.stop_head(hidden).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(count for name, count in counts.items() if str(name) in ("aten.mm", "aten.addmm"))
    without_head = dataclasses.replace(TINY_SHAPE, vocab_size=0)
    recipe = dataclasses.replace(SMALL, shortlist=0)
    assert 5 * training.micro_operations(without_head, TINY_ARCHITECTURE, recipe) == products


def test_the_operations_of_a_forward_are_its_products():
    twin, counter = hf_twin(), FlopCounterMode(display=False)
    with counter, torch.no_grad():
        twin(torch.tensor([[1, 2, 3]]))
    counts = counter.get_flop_counts()["Global"]
    products = sum(count for name, count in counts.items() if str(name) in ("aten.mm", "aten.addmm"))
    expected = training.forward_operations(TINY_SHAPE) + training.head_operations(260, TINY_SHAPE)
    assert products == 3 * expected


@pytest.mark.parametrize("fixed", [0, 2])
def test_the_operations_of_reading_a_slot_are_the_products_forward_and_backward(fixed):
    model, grafts, batch = (
        hf_twin().requires_grad_(False),
        tiny_grafts(),
        collate([(list(range(1, 13)), 2, [2] * 5)], 4),
    )
    inputs, counter = (
        fuse(batch, model.get_input_embeddings().weight, grafts.embedder)[0],
        FlopCounterMode(display=False),
    )
    with counter:
        (stream,) = packed_layers(
            model, (1,), inputs, lengths=[7], positions=batch.positions[0], fixed=[fixed] if fixed else None
        )
        stream.sum().backward(inputs=[inputs])
    counts = counter.get_flop_counts()["Global"]
    products = sum(count for name, count in counts.items() if str(name) in ("aten.mm", "aten.addmm"))
    assert products == training.reading_operations(TINY_SHAPE, 2, 7, fixed)
