"""Runs that share one corpus: the same lessons, the same held-out answers, steps that are counted, and no idle time."""

import dataclasses
import itertools
import json
import shutil
import weakref

import pytest
import torch
from click.testing import CliRunner
from fakes import save_tiny_model
from fakes_hamburger import hf_twin, with_shape
from safetensors.torch import load_file, save_file

from hambench.cli.hamburger import command
from hambench.errors import DataError, HambenchError, ModelError, UnknownNameError
from hambench.methods.hamburger.checkpoint import load
from hambench.methods.hamburger.data import pipeline
from hambench.methods.hamburger.data.corpus_file import CORPUS_NAME, CorpusNotes, read_notes
from hambench.methods.hamburger.data.pipeline import ANSWERS_NAME, DataSource, train
from hambench.methods.hamburger.data.self_distill import SelfDistillation
from hambench.methods.hamburger.training import trainer
from hambench.methods.hamburger.training.budget import Clock, RunOptions, parse_steps
from hambench.methods.hamburger.training.recipes import CONTINUED, PAPER, RECIPES, SMALL
from hambench.methods.hamburger.training.teacher import CorpusRoom, study

SHAPE = with_shape(tie_embeddings=True, max_positions=256)
RECIPE = dataclasses.replace(SMALL, micro_batch=16, batch_size=4, lora_rank=2, thresholds=(0.7, 0.9))
STEPS = {"micro": 3, "reader": 2, "student": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("corpus") / "tiny", SHAPE)


@pytest.fixture(scope="module")
def first(folder, tmp_path_factory):
    """The folder of a run that makes its corpus, some of whose answers are trained on twice."""
    base = tmp_path_factory.mktemp("first")
    paths = []
    for name, first, times in (("a", 10, 1), ("b", 30, 2)):
        rows = [{"prompt_ids": [1, 2, i], "response_ids": [first, 20, 30, 40, 50 + i]} for i in range(8)]
        (base / name).write_text("\n".join(map(json.dumps, rows)))
        paths.append(DataSource(path=base / name, times=times))
    out = base / "weights"
    train(str(folder), RECIPE, RunOptions(out=out, steps=STEPS, held_out_share=0.25, seed=5), sources=paths)
    return out


def curve(out):
    return [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]


def test_a_run_on_the_corpus_of_another_is_the_run_that_made_it(folder, first, tmp_path):
    out = tmp_path / "second"
    train(str(folder), RECIPE, RunOptions(out=out, steps=STEPS, seed=5), corpus_folder=first)
    one, two = load(first), load(out)
    assert set(one.tensors) == set(two.tensors)
    for name, tensor in one.tensors.items():
        assert torch.equal(two.tensors[name], tensor), name
    assert one.provenance["data"] == two.provenance["data"]
    assert one.provenance["held_out"] == two.provenance["held_out"]
    assert one.provenance["data"]["answers"] == 16
    assert one.provenance["data"]["held_out"] == 4
    assert not (out / CORPUS_NAME).exists()


def test_every_run_on_a_corpus_holds_out_the_same_answers_and_no_other(folder, first, tmp_path):
    out = tmp_path / "second"
    options = RunOptions(out=out, steps=STEPS, seed=6, held_out_share=0.5)
    train(str(folder), RECIPE, options, corpus_folder=first)
    assert (out / "held_out.jsonl").read_text() == (first / "held_out.jsonl").read_text()
    assert not torch.equal(
        load(out).tensors["embedder.q_proj.weight"], load(first).tensors["embedder.q_proj.weight"]
    ), "another seed must be another run"


def test_notes_train_on_what_is_not_held_out_as_often_as_they_say():
    notes = CorpusNotes(
        base=None, feature_layers=(0,), num_answers=4, held_out=(1,), replication=(1, 2, 3, 1)
    )
    assert notes.train(6) == [0, 2, 2, 2, 3, 4, 5]
    assert dataclasses.replace(notes, replication=()).train(6) == [0, 2, 3, 4, 5]


def test_steps_bound_every_stage_and_its_learning_rate_follows_them(folder, first, tmp_path, monkeypatch):
    asked = []
    original = trainer.learning_rate_share

    def share(recipe, step, done):
        asked.append((step, done))
        return original(recipe, step, done)

    monkeypatch.setattr(trainer, "learning_rate_share", share)
    out, steps = tmp_path / "out", {"micro": 4, "reader": 3, "student": 2}
    train(str(folder), RECIPE, RunOptions(out=out, steps=steps), corpus_folder=first)
    assert load(out).provenance["steps"] == steps
    assert load(out).provenance["steps_asked"] == steps
    assert asked == [(i, i / n) for n in steps.values() for i in range(n)]


def test_a_stage_without_a_number_of_steps_takes_its_epochs():
    options = RunOptions(out=None, steps={"reader": 3})
    assert (options.steps_of("micro"), options.steps_of("reader"), options.steps_of("student")) == (
        None,
        3,
        None,
    )
    everywhere = RunOptions(out=None, steps=3)
    assert (everywhere.steps_of("micro"), everywhere.steps_of("reader")) == (None, 3)
    assert RunOptions(out=None).steps_of("reader") is None


def test_steps_are_one_number_or_one_for_each_stage():
    assert parse_steps("50", SMALL) == 50
    assert parse_steps("micro=800, reader=200,student=0", SMALL) == {
        "micro": 800,
        "reader": 200,
        "student": 0,
    }
    with pytest.raises(
        UnknownNameError,
        match=r"unknown stage of recipe continued in --steps 'micro'; known: reader, student",
    ):
        parse_steps("micro=800", CONTINUED)
    for text in ("", "micro", "micro=", "micro=-1", "micro=1.5", "1,2", "micro=٣", "٣"):
        with pytest.raises(
            HambenchError, match=r"steps must be a number, or numbers by stage such as micro=50,reader=50"
        ):
            parse_steps(text, SMALL)
    with pytest.raises(HambenchError, match="each stage once"):
        parse_steps("micro=1,micro=2", SMALL)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_ready_corpus_leaves_the_time_for_data_to_the_stages(recipe):
    ready = recipe.without_data_share()
    assert ready.data_share == 0
    assert ready.stages[-1] == recipe.stages[-1], "what follows the stages keeps its time"
    before = [recipe.data_share, *(end for _, end in recipe.stages)]
    after = [0.0, *(end for _, end in ready.stages)]
    lengths = [[b - a for a, b in itertools.pairwise(ends)] for ends in (before, after)]
    stretch = recipe.stages[-1][1] / (recipe.stages[-1][1] - recipe.data_share)
    assert lengths[1] == pytest.approx([stretch * length for length in lengths[0]])
    assert ready.without_data_share() == ready


def test_a_run_on_a_corpus_has_no_time_for_data(folder, first, tmp_path):
    run = train(str(folder), RECIPE, RunOptions(out=tmp_path / "o", steps=STEPS), corpus_folder=first)
    assert run.recipe == RECIPE.without_data_share()


def test_a_corpus_is_refused_for_another_base_or_other_layers(folder, first, tmp_path):
    other = save_tiny_model(tmp_path / "other", SHAPE, seed=5)
    with pytest.raises(
        ModelError, match=r"corpus.safetensors has the lessons of another base \(fingerprint "
    ):
        train(str(other), RECIPE, RunOptions(out=tmp_path / "o"), corpus_folder=first)
    deeper = save_tiny_model(tmp_path / "deeper", dataclasses.replace(SHAPE, num_layers=8))
    with pytest.raises(
        ModelError, match=r"features of layers 0, 1, 2, 3, and this run reads layers 1, 3, 5, 7; "
    ):
        train(str(deeper), RECIPE, RunOptions(out=tmp_path / "o"), corpus_folder=first)


def test_a_folder_without_a_whole_corpus_is_refused_before_a_model_is_loaded(first, tmp_path):
    def refused(message):
        with pytest.raises(DataError, match=message) as error:
            train("no-such-model", RECIPE, RunOptions(out=tmp_path / "o"), corpus_folder=tmp_path)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "o").exists()

    refused(r"has no corpus.safetensors; give the --out folder of a run")
    path = tmp_path / CORPUS_NAME
    save_file(load_file(first / CORPUS_NAME), path)
    refused("written by an earlier hambench, without notes; make it again")
    save_file(load_file(first / CORPUS_NAME), path, {"notes": '{"base": 3}'})
    refused("its notes are damaged: ")
    path.write_bytes((first / CORPUS_NAME).read_bytes()[:-1])
    refused("is truncated or damaged: ")


def test_a_corpus_is_for_recipes_that_distil_and_brings_its_own_windows(first, tmp_path):
    with pytest.raises(DataError, match="give --data instead of --corpus"):
        train("no-such-model", PAPER, RunOptions(out=tmp_path / "o"), corpus_folder=first)
    with pytest.raises(DataError, match="leave --read out"):
        train("no-such-model", RECIPE, RunOptions(out=tmp_path / "o"), corpus_folder=first, num_windows=3)
    with pytest.raises(DataError, match="exactly one of"):
        train(
            "no-such-model",
            RECIPE,
            RunOptions(out=tmp_path / "o"),
            corpus_folder=first,
            sources=[DataSource(path=first / "held_out.jsonl")],
        )


def test_a_run_is_resumed_on_the_corpus_that_it_began_with_only(folder, first, tmp_path):
    out = tmp_path / "out"
    train(str(folder), RECIPE, RunOptions(out=out, steps=STEPS), corpus_folder=first)
    other = tmp_path / "other"
    rows = [{"prompt_ids": [1, 2, i], "response_ids": [9, 8, 7]} for i in range(4)]
    (tmp_path / "rows").write_text("\n".join(map(json.dumps, rows)))
    train(
        str(folder), RECIPE, RunOptions(out=other, steps=STEPS), sources=[DataSource(path=tmp_path / "rows")]
    )
    more = RunOptions(out=out, steps={**STEPS, "student": 3}, resume=True)
    with pytest.raises(ModelError, match=r"holds a run on other data .* resume it with the options"):
        train(str(folder), RECIPE, more, corpus_folder=other)
    assert train(str(folder), RECIPE, more, corpus_folder=first).step == 3


def test_a_run_of_no_steps_makes_a_corpus_only(folder, first, tmp_path):
    out, data = tmp_path / "out", DataSource(path=first / "held_out.jsonl", times=1)
    options = RunOptions(out=out, steps=dict.fromkeys(STEPS, 0), held_out_share=0.5)
    train(str(folder), RECIPE, options, sources=[data])
    assert read_notes(out).num_answers == 2
    assert load(out).provenance["steps"] == dict.fromkeys(STEPS, 0)


def test_the_command_trains_a_recipe_file_on_a_corpus(folder, first, tmp_path):
    recipe, out = tmp_path / "thin.toml", tmp_path / "out"
    recipe.write_text('from = "small"\nlora_rank = 1\nmicro_batch = 8\nbatch_size = 2\n')
    arguments = ["train", "--model", str(folder), "--corpus", str(first), "--out", str(out)]
    arguments += ["--recipe", str(recipe), "--steps", "micro=2,reader=1,student=1"]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    provenance = load(out).provenance
    assert (provenance["recipe"]["name"], provenance["recipe"]["lora_rank"]) == ("thin", 1)
    assert provenance["steps"] == {"micro": 2, "reader": 1, "student": 1}
    assert provenance["data"]["corpus"] == load(first).provenance["data"]["corpus"]
    refused = CliRunner().invoke(command, [*arguments, "--held-out", "0.5"])
    assert "leave --held-out 0.5 out" in str(refused.exception)
    refused = CliRunner().invoke(command, [*arguments, "--steps", "fused=3"])
    assert "unknown stage of recipe thin" in str(refused.exception)


def test_notes_are_read_as_they_were_written(first):
    notes = read_notes(first)
    assert (notes.num_answers, len(notes.held_out), notes.feature_layers) == (16, 4, (0, 1, 2, 3))
    assert notes.replication == (1,) * 8 + (2,) * 8


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows"
    lines = [{"prompt_ids": [1, 2, i], "response_ids": [10, 20, 30, 40, 50 + i]} for i in range(8)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return [DataSource(path=path)]


def stop(*_):
    raise KeyboardInterrupt


def test_a_run_that_is_stopped_while_it_makes_its_data_goes_on_with_what_is_ready(
    folder, rows, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "describe", stop)
        with pytest.raises(KeyboardInterrupt):
            train(str(folder), RECIPE, RunOptions(out=out, steps=STEPS), sources=rows)
    assert not (out / "state.pt").exists()
    monkeypatch.setattr(pipeline, "study", stop)
    resumed = train(str(folder), RECIPE, RunOptions(out=out, steps=STEPS, resume=True), sources=rows)
    assert resumed.checkpoint().provenance["steps"] == STEPS


def test_a_run_that_is_stopped_before_its_first_save_has_used_its_time_for_data(
    folder, rows, tmp_path, monkeypatch
):
    class Late(Clock):
        def __init__(self, minutes):
            super().__init__(minutes)
            self.resume(100.0)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "Clock", Late)
        patch.setattr(trainer, "micro_stage", stop)
        with pytest.raises(KeyboardInterrupt):
            train(str(folder), RECIPE, RunOptions(out=out, steps=STEPS), sources=rows)
    resumed = train(str(folder), RECIPE, RunOptions(out=out, steps=STEPS, resume=True), sources=rows)
    assert resumed.clock.seconds > 100
    assert resumed.checkpoint().provenance["steps"] == STEPS


def test_a_folder_in_use_and_one_without_a_run_are_refused_before_anything_is_loaded_or_replaced(
    folder, first, rows, tmp_path
):
    before = (first / CORPUS_NAME).read_bytes()
    with pytest.raises(ModelError, match="holds a training run; give --resume"):
        train("no-such-model", RECIPE, RunOptions(out=first, steps=STEPS), sources=rows)
    assert (first / CORPUS_NAME).read_bytes() == before
    out = tmp_path / "new"
    with pytest.raises(ModelError, match="holds no training run to resume; leave --resume out"):
        train("no-such-model", RECIPE, RunOptions(out=out, resume=True), sources=rows)
    assert not out.exists()


def test_a_run_with_changes_of_another_rank_is_not_resumed(folder, rows, tmp_path):
    out = tmp_path / "out"
    train(str(folder), RECIPE, RunOptions(out=out, steps=STEPS), sources=rows)
    wider = dataclasses.replace(RECIPE, lora_rank=3)
    with pytest.raises(ModelError, match="belongs to a run with another recipe or base"):
        train(str(folder), wider, RunOptions(out=out, steps=STEPS, resume=True), sources=rows)


def test_no_lesson_is_kept_next_to_the_corpus_that_it_is_copied_to(folder, rows, tmp_path, monkeypatch):
    lessons, kept = [], []

    def counted(*arguments, **options):
        for index, lesson in study(*arguments, **options):
            lessons.append(weakref.ref(lesson))
            kept.append(sum(each() is not None for each in lessons))
            yield index, lesson

    monkeypatch.setattr(pipeline, "study", counted)
    train(str(folder), RECIPE, RunOptions(out=tmp_path / "out", steps=dict.fromkeys(STEPS, 0)), sources=rows)
    assert len(kept) == 8
    # the one before may live until its name is used again
    assert max(kept) <= 2


def test_lessons_that_come_in_any_order_are_in_the_order_of_their_sequences():
    sequences = [([1, 2, 3, 4, 5], 2), ([7, 8, 9], 1), ([3, 4, 5, 6], 2), ([1, 2], 1)]
    studied = dict(study(hf_twin(), sequences, feature_layers=(1, 3)))
    room = CorpusRoom(sequences)
    for index in (2, 0, 1):
        room.add(index, studied[index])
    corpus = room.first(3)
    assert corpus.row_offsets.tolist() == [0, 3, 5, 7]
    assert corpus.response_ids().tolist() == [3, 4, 5, 8, 9, 5, 6]
    for name in ("features", "top_ids", "top_probs", "entropies", "probabilities"):
        expected = torch.cat([getattr(studied[index], name) for index in range(3)])
        assert torch.equal(getattr(corpus, name), expected), name


def test_a_stage_whose_time_is_over_before_it_begins_is_named(folder, first, tmp_path):
    def said_of(steps, minutes):
        lines = []
        options = RunOptions(out=tmp_path / f"{minutes}", steps=steps, minutes=minutes)
        train(str(folder), RECIPE, options, corpus_folder=first, report=lines.append)
        return [line for line in lines if "took no step" in line]

    assert said_of({**STEPS, "reader": 0}, 60.0) == []
    # over before the first stage begins
    assert said_of({**STEPS, "reader": 0}, 1e-6) == [
        f"stage {stage} took no step: its time was over before it began; give more --minutes"
        for stage in ("micro", "student")
    ]


@pytest.mark.parametrize("resume", [True, False])
def test_answers_that_lie_in_a_folder_are_used_only_by_a_run_that_is_resumed(
    folder, rows, tmp_path, monkeypatch, resume
):
    out, own = tmp_path / "out", tmp_path / "own"
    lines = [{"prompt_ids": [1, 2, i], "response_ids": [7, 7, 60 + i]} for i in range(4)]
    own.write_text("\n".join(map(json.dumps, lines)))
    out.mkdir()
    shutil.copy(rows[0].path, out / ANSWERS_NAME)
    monkeypatch.setattr(
        pipeline, "answer_prompts", lambda trainer, base, settings, path, report: shutil.copy(own, path)
    )
    options = RunOptions(out=out, steps=dict.fromkeys(STEPS, 0), resume=resume)
    train(str(folder), RECIPE, options, self_distillation=SelfDistillation())
    assert read_notes(out).num_answers == (8 if resume else 4)
