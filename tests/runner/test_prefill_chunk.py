"""``--prefill-chunk``: whoever reads a prompt in a run reads it in the pieces that the run was asked for."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict

import pytest
import torch
from fakes import TINY_SHAPE, random_weights, save_tiny_model, tiny_target
from fakes_hamburger import save_tiny_hamburger, tiny_checkpoint

from hambench.engine.llama import DecoderStack
from hambench.engine.transformers_adapter import TransformersAdapter, load_causal_lm
from hambench.machine.load import CpuLoadMeter
from hambench.methods.hamburger.architecture import BaseReference
from hambench.methods.hamburger.checkpoint import sizes_of
from hambench.models.target import load
from hambench.records import Cell, Sample
from hambench.runner.generator import DecodingOptions, Generator, Job
from hambench.runner.judge import judge
from hambench.runner.request import RunRequest
from hambench.runner.start import start_run
from hambench.runner.sweep import Sweep

PROMPT = "abcdefghij"


@contextlib.contextmanager
def rows_read(kind=DecoderStack):
    """Rows of each forward meanwhile, by the stack of layers that ran it."""
    read, original = defaultdict(list), kind.forward

    def forward(self, inputs, cache, **options):
        read[id(self)].append(inputs.shape[0])
        return original(self, inputs, cache, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "forward", forward)
        yield read


def read_by(target, method, chunk, **knobs):
    """The pieces of the prompt, by model."""
    cell = Cell(method=method, label=method, knobs=knobs, model="m", dtype="float32")
    asked = Sample(
        sample_id="s/t/0",
        suite="s",
        task="t",
        category="c",
        doc_id=0,
        prompt=PROMPT,
        stop=(),
        max_new_tokens=1,
    )
    with rows_read(type(target.llama) if target.llama.reference is None else DecoderStack) as read:
        generator = Generator(target, (cell,), DecodingOptions(prefill_chunk=chunk))
        assert generator.record(Job(cell, asked, 0), CpuLoadMeter()).error is None
    # a grafted decoder reads features, not the prompt
    return [rows for rows in read.values() if sum(rows) >= len(PROMPT)]


def test_drafts_read_in_the_targets_pieces(tiny_model, tmp_path):
    """A draft loaded by name read its prompt whole."""
    target = load(str(tiny_model), dtype="float32", device="cpu")
    for draft in ("int8", str(save_tiny_model(tmp_path / "other", seed=3))):
        assert read_by(target, "speculative", 4, draft=draft) == 2 * [[4, 4, 2]]
        # the next run of the same model is not bound to it
        assert read_by(target, "speculative", None, draft=draft) == 2 * [[10]]


def test_a_base_that_a_checkpoint_brings_reads_in_the_targets_pieces(tmp_path):
    base = BaseReference(name="tiny-random", fingerprint=None, sizes=sizes_of(TINY_SHAPE))
    weights = {f"base.{name}": tensor for name, tensor in random_weights(TINY_SHAPE, seed=5).items()}
    tensors = {**tiny_checkpoint().tensors, **weights}
    folder = str(save_tiny_hamburger(tmp_path, base=base, base_weights="full", tensors=tensors))
    for chunk, pieces in ((4, [4, 4, 2]), (None, [10])):
        assert read_by(tiny_target(), "hamburger", chunk, checkpoint=folder, confidence=1.1) == [pieces]


def test_the_adapter_reads_in_these_pieces_too(tmp_path):
    """It took 512 rows whatever was asked for."""
    model, _ = load_causal_lm(save_tiny_model(tmp_path / "model"), torch.float32)
    target = dataclasses.replace(tiny_target(), llama=TransformersAdapter(model))
    assert target.llama.bytes_per_slot > 0  # measured once, by a row of its own
    for chunk, pieces in ((4, [4, 4, 2]), (None, [10])):
        assert read_by(target, "vanilla", chunk) == [pieces]


def test_a_stored_run_is_judged_on_prompts_read_as_it_read_them(tiny_model, rows, tmp_path):
    """In bfloat16 other pieces give other bits: an answer would leave the target where it did not."""
    request = RunRequest(
        sweep=Sweep(model=str(tiny_model), methods=("vanilla",), dtype="float32"),
        suite="longbench",
        tasks=("lcc",),
        data=rows,
        limit=1,
        max_new_tokens=2,
        fidelity=False,
        decoding=DecodingOptions(prefill_chunk=16),
    )
    start_run(request, tmp_path / "run")
    with rows_read() as read:
        run = judge(tmp_path / "run", device="cpu")
    (record,) = run.measured
    assert run.judged(record) is not None
    (pieces,) = read.values()
    assert record.trace.prompt_tokens > 16
    assert max(pieces) == 16
