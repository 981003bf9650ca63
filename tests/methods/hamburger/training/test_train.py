import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner
from fakes import save_tiny_model
from fakes_hamburger import hf_twin, tiny_grafts, with_shape

from hambench.cli.hamburger import command
from hambench.decoding import SamplingParams
from hambench.engine.loop import generate
from hambench.errors import DataError, ModelError
from hambench.methods.hamburger import HamburgerConfig
from hambench.methods.hamburger.checkpoint import digest, load
from hambench.methods.hamburger.data.pipeline import DataSource, train
from hambench.methods.hamburger.data.segment import Segmented, write_segments
from hambench.methods.hamburger.training.budget import RunOptions
from hambench.methods.hamburger.training.losses import frozen_head_loss
from hambench.methods.hamburger.training.recipes import PAPER, SMALL
from hambench.methods.hamburger.training.teacher import TOP_TOKENS, Corpus, study
from hambench.methods.hamburger.training.trainer import split_held_out
from hambench.models import target as models

SHAPE = with_shape(tie_embeddings=True, max_positions=256)
PROMPT, ANSWER = [1, 2, 3], [10, 20, 30, 40, 50, 60, 70, 80] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("train") / "tiny", SHAPE)


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    rows = [{"prompt_ids": [1, 2, i], "response_ids": [10, 20, 30, 40, 50 + i]} for i in range(12)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_trained_model_folds_a_repetitive_corpus_and_is_exact_on_it(folder, tmp_path):
    rows = [Segmented(ids=(*PROMPT, *ANSWER), prompt_tokens=3, segments=(4,) * 6)] * 8
    write_segments(tmp_path / "segments.jsonl", rows)
    recipe = dataclasses.replace(
        PAPER,
        base_lr=3e-3,
        graft_lr=3e-3,
        batch_size=4,
        accumulate=1,
        start_from_base=True,
        micro_norm=True,
        merge_residual="last",
    )
    out = tmp_path / "weights"
    train(str(folder), recipe, RunOptions(out=out, steps=120), segments=tmp_path / "segments.jsonl")
    target = models.load(str(folder), dtype="float32", device="cpu")
    method = HamburgerConfig(checkpoint=str(out), confidence=0.5).build(target)
    trace = generate(method, PROMPT, SamplingParams(max_new_tokens=len(ANSWER)))
    emitted = [token for step in trace.steps for token in step.tokens]
    assert emitted == ANSWER
    assert len(emitted) / len(trace.steps) > 2
    assert trace.steps[-1].kv_slots == len(PROMPT) + len(trace.steps) - 1


def test_the_distilling_recipe_trains_resumes_and_saves_what_decodes(folder, conversations, tmp_path):
    recipe = dataclasses.replace(
        # thresholds at which the stop head, which starts at one half, lets something be fused
        SMALL,
        micro_epochs=1,
        micro_batch=16,
        batch_size=4,
        lora_rank=2,
        thresholds=(0.7, 0.9),
    )
    out = tmp_path / "weights"

    def run(steps, resume):
        return train(
            str(folder),
            recipe,
            RunOptions(out=out, steps=steps, resume=resume, held_out_share=0.2),
            sources=[DataSource(path=conversations)],
        )

    first = run(3, resume=False)
    with pytest.raises(ModelError, match="give --resume"):
        run(3, resume=False)
    second = run(5, resume=True)
    assert (first.step, second.step) == (3, 5)
    curve = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in curve} == {"micro", "reader", "student"}
    checkpoint = load(out)
    assert checkpoint.base_weights == "fused_lora"
    assert checkpoint.provenance["held_out"]["loss"] > 0
    assert any(tensor.abs().max() > 0 for name, tensor in checkpoint.tensors.items() if name.endswith(".B"))
    target = models.load(str(folder), dtype="float32", device="cpu")
    method = HamburgerConfig(checkpoint=str(out)).build(target)
    assert generate(method, PROMPT, SamplingParams(max_new_tokens=8)).steps


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("objective", ["distil", "published"])
def test_a_run_that_had_ended_changes_no_file_when_it_is_resumed_and_one_without_its_figures_ends(
    objective, folder, conversations, tmp_path, monkeypatch
):
    small = dataclasses.replace(SMALL, micro_epochs=1, micro_batch=16, batch_size=4, lora_rank=2)
    recipe = small if objective == "distil" else dataclasses.replace(PAPER, batch_size=4, accumulate=1)
    out = tmp_path / "weights"

    def run(*, resume, steps=2):
        options = RunOptions(out=out, steps=steps, resume=resume, held_out_share=0.2)
        return train(str(folder), recipe, options, sources=[DataSource(path=conversations)])

    def stop(*_):
        raise KeyboardInterrupt

    if objective == "distil":
        with monkeypatch.context() as patch:
            # all steps are taken and saved
            patch.setattr("hambench.methods.hamburger.training.trainer.held_out_losses", stop)
            with pytest.raises(KeyboardInterrupt):
                run(resume=False)
        assert not load(out).provenance["held_out"]
    ended = run(resume=objective == "distil")
    before = contents(out)
    assert (ended.was_finished, load(out).provenance["held_out"]) == (False, ended.held_out)
    again = run(resume=True)
    assert (again.was_finished, again.step, again.held_out) == (True, ended.step, ended.held_out)
    assert contents(out) == before
    more = run(resume=True, steps=3)
    assert (more.was_finished, more.step) == (False, 3)
    assert contents(out)["hamburger.json"] != before["hamburger.json"]


@pytest.mark.parametrize("provenance", [{}, {"provenance": None}, {"provenance": ["?"]}])
def test_weights_without_a_provenance_are_trained_on_when_their_run_is_resumed(
    provenance, folder, conversations, tmp_path
):
    recipe = dataclasses.replace(SMALL, micro_epochs=0, batch_size=4, lora_rank=2)
    out = tmp_path / "weights"

    def run(*, resume):
        options = RunOptions(out=out, steps=1, resume=resume, held_out_share=0.2)
        return train(str(folder), recipe, options, sources=[DataSource(path=conversations)])

    run(resume=False)
    path = out / "hamburger.json"
    config = json.loads(path.read_text())
    del config["provenance"]
    path.write_text(json.dumps(config | provenance))
    assert not run(resume=True).was_finished
    assert load(out).provenance["held_out"]


@pytest.fixture
def fresh_accelerate(monkeypatch):
    """Accelerate as in a new process without a configuration; afterwards it is as it was."""
    from accelerate.state import AcceleratorState

    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    before = dict(AcceleratorState._shared_state)
    AcceleratorState._reset_state()
    yield AcceleratorState
    AcceleratorState._reset_state()
    AcceleratorState._shared_state.update(before)


@pytest.fixture
def precision_of_the_process(fresh_accelerate):
    """Sets up Accelerate for the whole process, as another library would."""
    from accelerate import Accelerator

    def set_up(precision):
        fresh_accelerate._reset_state()
        # the device is the one of every other test, because it is kept for the whole process too
        Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())

    return set_up


def test_the_precision_that_another_library_gave_accelerate_does_not_decide_how_weights_are_trained(
    folder, conversations, tmp_path, precision_of_the_process
):
    recipe = dataclasses.replace(SMALL, micro_batch=16, batch_size=4, lora_rank=2)
    trained = []
    for precision in ("no", "bf16"):
        precision_of_the_process(precision)
        options = RunOptions(out=tmp_path / precision, steps=2, held_out_share=0.2)
        train(str(folder), recipe, options, sources=[DataSource(path=conversations)])
        trained.append(load(options.out).tensors)
    for name, tensor in trained[0].items():
        assert torch.equal(tensor, trained[1][name]), name


def test_the_precision_of_an_accelerate_config_does_not_end_training(
    folder, conversations, tmp_path, fresh_accelerate, monkeypatch
):
    """`accelerate launch` hands a user's configuration to its processes in this variable."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    recipe = dataclasses.replace(SMALL, micro_epochs=0, micro_batch=16, batch_size=4, lora_rank=2)
    options = RunOptions(out=tmp_path / "weights", steps=1, held_out_share=0.2)
    ended = train(str(folder), recipe, options, sources=[DataSource(path=conversations)])
    assert (ended.accelerator.mixed_precision, ended.step) == ("no", 1)


def test_a_process_in_half_precision_is_refused_with_what_to_do(
    folder, conversations, tmp_path, precision_of_the_process
):
    precision_of_the_process("fp16")
    with pytest.raises(ModelError, match="set to 'fp16' in this process: train in a process of its own"):
        train(str(folder), SMALL, RunOptions(out=tmp_path / "out"), sources=[DataSource(path=conversations)])


def test_weights_trained_on_another_base_are_refused(folder, conversations, tmp_path):
    out = tmp_path / "weights"
    recipe = dataclasses.replace(SMALL, micro_epochs=0, lora_rank=2, batch_size=2)
    train(str(folder), recipe, RunOptions(out=out, steps=1), sources=[DataSource(path=conversations)])
    other = save_tiny_model(tmp_path / "other", SHAPE, seed=5)
    with pytest.raises(ModelError, match="trained on different weights"):
        HamburgerConfig(checkpoint=str(out)).build(models.load(str(other), dtype="float32", device="cpu"))


def test_a_run_starts_from_the_weights_of_another(folder, conversations, tmp_path):
    recipe = dataclasses.replace(SMALL, stages=(("fused", 1.0),), calibrate=False, lora_rank=2, batch_size=2)

    def run(name, **options):
        chosen = RunOptions(out=tmp_path / name, steps=1, held_out_share=0, **options)
        return train(str(folder), recipe, chosen, sources=[DataSource(path=conversations)])

    first = run("first").checkpoint()
    # no step is taken at a learning rate of zero, so that what comes out is what it started from
    recipe = dataclasses.replace(recipe, base_lr=0.0, graft_lr=0.0, weight_decay=0.0)
    second = run("second", start_from=tmp_path / "first").checkpoint()
    assert set(first.tensors) == set(second.tensors)
    for name, tensor in first.tensors.items():
        torch.testing.assert_close(second.tensors[name], tensor, msg=name)
    assert second.provenance["start_from"] == digest(tmp_path / "first")
    recipe = dataclasses.replace(recipe, lora_rank=3)
    with pytest.raises(ModelError, match="other low-rank changes"):
        run("third", start_from=tmp_path / "first")
    recipe = dataclasses.replace(recipe, num_micro_layers=1)
    with pytest.raises(ModelError, match="another architecture"):
        run("fourth", start_from=tmp_path / "first")


def test_held_out_rows_are_chosen_before_replication():
    train_rows, held = split_held_out(40, 0.1, seed=3)
    assert len(held) == 4
    assert not set(train_rows) & set(held)
    assert (train_rows, held) == split_held_out(40, 0.1, seed=3)
    assert held != split_held_out(40, 0.1, seed=4)[1]


def test_exactly_one_kind_of_data_is_wanted(tmp_path):
    with pytest.raises(DataError, match="exactly one"):
        train("smollm2-135m", SMALL, RunOptions(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["--self-distil", "1"], "must be >= 2"),
        (["--self-distil", "9", "--lora-rank", "-1"], "lora_rank must be >= 0"),
    ],
)
def test_the_command_refuses_bad_input_before_it_loads_a_model(arguments, message, tmp_path):
    result = CliRunner().invoke(command, ["train", "--out", str(tmp_path / "o"), *arguments])
    assert result.exit_code != 0
    assert message in str(result.exception)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--minutes", "0"),
        ("--minutes", "-5"),
        ("--save-minutes", "-1"),
        ("--held-out", "1.5"),
        ("--held-out", "-0.1"),
        ("--max-new-tokens", "0"),
    ],
)
def test_numbers_out_of_their_range_are_refused(option, value, tmp_path, monkeypatch):
    def reached(*_, **__):
        raise DataError("reached")

    monkeypatch.setattr("hambench.methods.hamburger.data.pipeline.train", reached)
    result = CliRunner().invoke(command, ["train", "--out", str(tmp_path / "o"), option, value])
    assert result.exit_code == 2, result.exception
    assert f"Invalid value for '{option}'" in result.output


@pytest.mark.parametrize(
    ("arguments", "prompts", "windows"),
    [
        (["--minutes", "60"], 4200, 2100),
        (["--minutes", "0.1"], 40, 20),
        (["--minutes", "60", "--read", "0"], 4200, 0),
        ([], 2000, 1000),
        (["--self-distil", "9"], 9, 0),
    ],
)
def test_a_run_without_data_takes_amounts_that_fit_its_minutes(
    arguments, prompts, windows, tmp_path, monkeypatch
):
    asked = {}

    def stop(*_, self_distillation, num_windows, **__):
        asked.update(prompts=self_distillation.num_prompts, windows=num_windows)
        raise DataError("seen")

    monkeypatch.setattr("hambench.methods.hamburger.data.pipeline.train", stop)
    result = CliRunner().invoke(command, ["train", "--out", str(tmp_path / "o"), *arguments])
    assert str(result.exception) == "seen"
    assert asked == {"prompts": prompts, "windows": windows}


def test_segmenting_a_file_reports_tokens_a_segment(folder, conversations, tmp_path):
    arguments = ["segment", str(conversations), "--out", str(tmp_path / "s.jsonl"), "--model", str(folder)]
    result = CliRunner().invoke(
        command, [*arguments, "--strategy", "sliding", "--threshold", "99"], catch_exceptions=False
    )
    assert "12 responses, 60 tokens, 24 segments, 2.500 tokens per segment" in result.output


@pytest.mark.parametrize("num_rows", [7, 1100])
@pytest.mark.parametrize("size", [1.0, 100.0])
@pytest.mark.parametrize("is_biased", [True, False])
def test_the_frozen_head_has_the_gradient_of_plain_cross_entropy(num_rows, size, is_biased):
    # more rows than a chunk has, and logits whose exponentials are not finite
    torch.manual_seed(0)
    hidden, head = (torch.randn(num_rows, 8) * size).requires_grad_(), torch.randn(30, 8)
    ids, probs = torch.randint(0, 30, (num_rows, 3)), torch.rand(num_rows, 3)
    weights, bias = torch.rand(num_rows), torch.randn(30) if is_biased else None
    out = frozen_head_loss(hidden, head, ids=ids, probs=probs, weights=weights, bias=bias)
    (mine,) = torch.autograd.grad(0.3 * out.loss, hidden)
    logs = torch.log_softmax(hidden @ head.T + (0 if bias is None else bias), -1)
    plain = -(weights[:, None] * probs * logs.gather(1, ids)).sum()
    (expected,) = torch.autograd.grad(0.3 * plain, hidden)
    torch.testing.assert_close(out.loss, plain)
    torch.testing.assert_close(mine, expected)
    assert out.argmax.tolist() == logs.argmax(-1).tolist()


def test_a_lesson_holds_what_the_base_says_of_each_response_token():
    model = hf_twin()
    # the last response is longer than what is worked out at a time
    long = torch.randint(256, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    sequences = [([1, 2, 3, 4, 5], 2), ([7, 8, 9], 1), (long, 10)]
    lessons = dict(study(model, sequences, feature_layers=(1, 3)))
    corpus = Corpus.of(sequences[:2], [lessons[0], lessons[1]])
    assert corpus.response_ids().tolist() == [3, 4, 5, 8, 9]
    assert corpus.remaining().tolist() == [3, 2, 1, 2, 1]
    for index, (ids, prompt) in enumerate(sequences):
        with torch.no_grad():
            logs = torch.log_softmax(model(torch.tensor([ids])).logits[0, prompt - 1 : -1], -1)
        lesson = lessons[index]
        expected = -(logs.exp() * logs).sum(-1)
        torch.testing.assert_close(lesson.entropies, expected, rtol=1e-3, atol=1e-3)
        said = logs.gather(1, torch.tensor(ids[prompt:])[:, None])[:, 0].exp()
        torch.testing.assert_close(lesson.probabilities, said, rtol=1e-3, atol=1e-6)
        top = logs.topk(TOP_TOKENS)
        assert lesson.top_ids[:, 0].tolist() == top.indices[:, 0].tolist()
        shares = top.values.exp() / top.values.exp().sum(-1, keepdim=True)
        torch.testing.assert_close(lesson.top_probs.float(), shares, rtol=2e-3, atol=1e-4)
    joined = Corpus.joined([corpus, corpus])
    assert joined.sequence(3)[0].tolist() == [7, 8, 9]
    assert joined.row_offsets.tolist() == [0, 3, 5, 8, 10]


def test_zeroed_branches_make_the_merged_vector_its_residual():
    from hambench.methods.hamburger.training.initial import start_sane

    twin = hf_twin()
    grafts = tiny_grafts()
    start_sane(grafts, dict(twin.state_dict()))
    embeddings = torch.randn(2, 4, 64)
    merged = grafts.embedder(embeddings, torch.tensor([3, 1]))
    torch.testing.assert_close(merged[0], embeddings[0, :3].mean(0))
    torch.testing.assert_close(merged[1], embeddings[1, 0])
    assert grafts.stop_head(torch.randn(3, 64)).abs().max() == 0
