"""The stage that learns to read merged slots: which parts its objectives reach, and what they are."""

import dataclasses
import json

import pytest
import torch
from fakes import save_tiny_model
from fakes_hamburger import TINY_ARCHITECTURE, hf_twin, tiny_grafts, with_shape
from native_fixtures import compiler, library  # noqa: F401

from hambench.decoding import SamplingParams
from hambench.engine.loop import generate
from hambench.methods.hamburger import HamburgerConfig
from hambench.methods.hamburger.base import add_low_rank, gate_low_rank
from hambench.methods.hamburger.checkpoint import load
from hambench.methods.hamburger.config import ONE_TOKEN_CONTROL
from hambench.methods.hamburger.data.pipeline import DataSource, train
from hambench.methods.hamburger.training.budget import RunOptions
from hambench.methods.hamburger.training.lessons import Lessons
from hambench.methods.hamburger.training.merged_forward import merged_layers
from hambench.methods.hamburger.training.objectives import Student
from hambench.methods.hamburger.training.recipes import SMALL
from hambench.methods.hamburger.training.teacher import Corpus, study
from hambench.methods.hamburger.training.vocabulary import Shortlist
from hambench.methods.vanilla import VanillaConfig
from hambench.models import target as models
from hambench.runner.backend import run_by

# the second feature is after the third layer, so that "the first layers" are two of four
ARCHITECTURE = dataclasses.replace(TINY_ARCHITECTURE, feature_layers=(1, 2, 3))
OBJECTIVES = {
    "features": {"reader_feature_weight": 1.0, "reader_token_weight": 0.0},
    "tokens": {"reader_feature_weight": 0.0, "reader_token_weight": 1.0},
    "both": {"reader_feature_weight": 0.5, "reader_token_weight": 2.0},
}


def reader(*, first_only, objective):
    """A student with fresh changes, and a batch of merged sequences with its lesson."""
    recipe = dataclasses.replace(
        SMALL, adapt_first_layers_only=first_only, lora_rank=2, **OBJECTIVES[objective]
    )
    twin = hf_twin()
    generator = torch.Generator().manual_seed(0)
    sequences = [
        (torch.randint(1, 250, (length,), generator=generator).tolist(), 4) for length in (24, 31, 19)
    ]
    studied = dict(study(twin, sequences, feature_layers=ARCHITECTURE.feature_layers))
    corpus = Corpus.of(sequences, [studied[i] for i in range(3)])
    lessons = Lessons(corpus, recipe, 4, train=[0, 1, 2], held=[])
    adapted = add_low_rank(twin, 2, num_layers=2 if first_only else None)
    student = Student(adapted, tiny_grafts(ARCHITECTURE), recipe, gate_low_rank(adapted))
    # entropies of a random base are far above this recipe's thresholds; these cut segments of several tokens
    lessons.recipe = dataclasses.replace(
        recipe, strategy=dataclasses.replace(recipe.strategy, threshold=5.0), thresholds=None
    )
    batch, lesson = lessons.batch_of([0, 1, 2], None)
    assert (batch.lengths > 1).any()
    return student, batch, lesson


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("first_only", [True, False])
def test_its_gradients_reach_the_embedder_and_every_change_and_nothing_else(first_only, objective):
    student, batch, lesson = reader(first_only=first_only, objective=objective)
    student.train()
    losses = student(batch, lesson, is_reading=True)
    losses["loss"].backward()
    layers = set()
    for name, parameter in student.named_parameters():
        moves = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        if ".lora_B." in name:
            layers.add(int(name.partition(".layers.")[2].split(".")[0]))
            assert moves, name
        elif ".lora_A." in name:
            assert not moves, f"{name}: the other matrix is zero"
        elif name.startswith("grafts.embedder."):
            # a key's bias raises every score alike, but for rounding
            assert moves or name.endswith("k_proj.bias"), name
        else:
            assert not moves, name
    assert layers == ({0, 1} if first_only else {0, 1, 2, 3})
    named = {"features": {"features"}, "tokens": {"tokens", "accuracy"}}
    assert set(losses) == {"loss"}.union(*(named[each] for each in named if objective in (each, "both")))


def test_it_runs_no_more_of_the_base_than_its_objective_needs():
    def layers(first_only, objective):
        return reader(first_only=first_only, objective=objective)[0].reader_layers

    assert layers(True, "features") == 2
    assert layers(False, "features") == layers(True, "tokens") == layers(False, "both") == 4


@pytest.mark.parametrize("first_only", [True, False])
def test_its_losses_are_distance_and_divergence_weighted_by_slots(first_only):
    student, batch, lesson = reader(first_only=first_only, objective="both")
    losses = student(batch, lesson, is_reading=True)
    at, slot = batch.sources.T
    weights = torch.where(batch.lengths[at, slot] > 1, 3.0, 1.0)
    with torch.no_grad():
        streams = merged_layers(student.model, student.grafts, batch, (1, 2, 3), student.gate)
    num = 1 if first_only else 3
    distance = (torch.stack(streams, 1) - lesson.features.float()) / lesson.spread
    errors = distance[:, :num].clamp(-10, 10).square().mean((1, 2))
    features = (weights * errors).sum() / weights.sum()
    logs = torch.log_softmax(streams[-1] @ student.model.get_output_embeddings().weight.T, -1)
    wanted = lesson.targets.top_probs[:, 0].float()
    own = logs.gather(1, lesson.targets.top_ids[:, 0].long())
    divergences = (wanted * (wanted.log() - own)).sum(-1)
    tokens = (weights * divergences).sum() / weights.sum()
    torch.testing.assert_close(losses["features"], features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["tokens"], tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["loss"].detach(), 0.5 * features + 2 * tokens, rtol=1e-4, atol=1e-5)
    same = logs.argmax(-1) == lesson.targets.top_ids[:, 0, 0]
    assert losses["accuracy"] == same.float().mean()


def test_over_a_shortlist_of_everything_its_loss_is_that_of_the_whole_vocabulary():
    student, batch, lesson = reader(first_only=False, objective="tokens")
    head = student.model.get_output_embeddings().weight.detach()
    targets = lesson.targets
    part = Shortlist(head, targets.top_ids, targets.top_probs, size=len(head)).draw()
    short = student(batch, lesson, is_reading=True, vocabulary=part)
    whole = student(batch, lesson, is_reading=True)
    torch.testing.assert_close(short, whole)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("first_only", [True, False])
def test_its_loss_falls(first_only, objective):
    student, batch, lesson = reader(first_only=first_only, objective=objective)
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=1e-2)
    seen = []
    for _ in range(30):
        loss = student(batch, lesson, is_reading=True)["loss"]
        seen.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert min(seen[-5:]) < 0.8 * seen[0]


def test_an_objective_of_nothing_is_refused_where_there_is_a_reader():
    nothing = {"reader_feature_weight": 0.0, "reader_token_weight": 0.0}
    with pytest.raises(ValueError, match="reader_feature_weight or reader_token_weight must be > 0"):
        dataclasses.replace(SMALL, **nothing)
    assert dataclasses.replace(SMALL, stages=(("micro", 0.9),), **nothing).reader_token_weight == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny base, and weights whose changes of every layer were trained by the reader on both objectives."""
    base = tmp_path_factory.mktemp("reader")
    folder = save_tiny_model(base / "tiny", with_shape(max_positions=256))
    rows = [{"prompt_ids": [1, 2, i], "response_ids": [10, 20, 30, 40, 50 + i] * 3} for i in range(8)]
    (base / "rows").write_text("\n".join(map(json.dumps, rows)))
    recipe = dataclasses.replace(
        SMALL,
        **{"adapt_first_layers_only": False, "lora_rank": 4, "batch_size": 4, "micro_batch": 16},
        **{"thresholds": (0.7, 0.9), "base_lr": 3e-2, "warmup_steps": 0, "shortlist": 100},
        **OBJECTIVES["both"],
    )
    steps = {"micro": 3, "reader": 25, "student": 2}
    train(
        str(folder),
        recipe,
        RunOptions(out=base / "weights", steps=steps),
        sources=[DataSource(path=base / "rows")],
    )
    return folder, base / "weights"


def test_a_run_trains_the_changes_of_every_layer(trained):
    checkpoint = load(trained[1])
    assert checkpoint.base_weights == "fused_lora"
    changed = {n.split(".")[3] for n, t in checkpoint.tensors.items() if n.endswith(".B") and t.any()}
    assert changed == {"0", "1", "2", "3"}
    curve = [json.loads(line) for line in (trained[1] / "curve.jsonl").read_text().splitlines()]
    steps = [line for line in curve if line["stage"] == "reader"]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[-1]["tokens"] < steps[0]["tokens"]


@pytest.mark.parametrize("kernels", ["reference", "native"])
def test_with_changes_in_every_layer_one_token_decoding_is_vanilla(trained, kernels, request):
    if kernels == "native":
        request.getfixturevalue("compiler")
    folder, weights = trained
    target = run_by(models.load(str(folder), dtype="float32", device="cpu"), kernels=kernels)

    def decode(config):
        return generate(config.build(target), [1, 2, 3], SamplingParams(max_new_tokens=24))

    control = decode(HamburgerConfig(checkpoint=str(weights), confidence=ONE_TOKEN_CONTROL))
    assert control.token_ids == decode(VanillaConfig()).token_ids
    assert decode(HamburgerConfig(checkpoint=str(weights), confidence=0.0)).token_ids != control.token_ids


def test_with_changes_in_every_layer_the_native_engine_decodes_the_tokens_of_the_plain_one(trained, compiler):  # noqa: F811
    folder, weights = trained

    def decode(kernels):
        target = run_by(models.load(str(folder), dtype="float32", device="cpu"), kernels=kernels)
        method = HamburgerConfig(checkpoint=str(weights), confidence=0.3).build(target)
        trace = generate(method, [1, 2, 3], SamplingParams(max_new_tokens=60))
        return [step.tokens for step in trace.steps]

    plain = decode("reference")
    assert max(map(len, plain)) > 1
    assert decode("native") == plain
