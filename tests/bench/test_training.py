import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner
from fakes import TINY_SHAPE, save_tiny_model
from fakes_hamburger import TINY_ARCHITECTURE, hf_twin, tiny_grafts, with_shape
from torch.utils.flop_counter import FlopCounterMode

from hambench.bench import training
from hambench.cli.bench.training import command
from hambench.methods.hamburger.training.recipes import SMALL


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    shape = with_shape(tie_embeddings=True, max_positions=1024)
    folder = save_tiny_model(tmp_path_factory.mktemp("bench") / "tiny", shape)
    sizes = ["--answers", "2", "--tokens", "2", "--windows", "3", "--steps", "1", "--repeats", "2"]
    result = CliRunner().invoke(command, ["--model", str(folder), *sizes, "--json"], catch_exceptions=False)
    return json.loads(result.stdout)


def test_every_stage_is_timed_next_to_the_peak(told):
    paces = {pace["stage"]: pace for pace in told["paces"]}
    assert list(paces) == ["answering", "reading", "micro", "reader", "student"]
    assert all(len(pace["seconds"]) == 2 and min(pace["seconds"]) > 0 for pace in paces.values())
    assert told["peak"] > 0
    assert told["peak_dtype"] in ("bfloat16", "float32")
    # windows have 256 tokens; one step has a batch of macro-steps, or of sequences
    assert paces["reading"]["count"] == 3 * 256
    assert paces["micro"]["count"] == paces["student"]["count"] == SMALL.micro_batch
    assert paces["reader"]["count"] == SMALL.batch_size * 256
    assert 2 <= paces["answering"]["count"] <= 4


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
