"""Texts that the weights write themselves: decoding's own slots, the base's lessons on them, and who trains on them."""

import dataclasses
import hashlib
import json

import msgspec
import pytest
import torch
from fakes import save_tiny_model
from fakes_hamburger import with_shape
from safetensors.torch import load_file, save_file

from hambench.decoding import KVUsage, SamplingParams
from hambench.engine.loop import generate
from hambench.errors import DataError
from hambench.methods.hamburger import HamburgerConfig
from hambench.methods.hamburger.checkpoint import load, save
from hambench.methods.hamburger.data.corpus_file import CORPUS_NAME, describe, load_corpus, read_notes
from hambench.methods.hamburger.data.overlap import Protected
from hambench.methods.hamburger.data.pipeline import DataSource, train
from hambench.methods.hamburger.data.written import MAX_NEW_TOKENS, WRITTEN_NAME, write_texts
from hambench.methods.hamburger.training.budget import RunOptions
from hambench.methods.hamburger.training.lessons import Lessons
from hambench.methods.hamburger.training.recipes import CONTINUED, PAPER, SMALL
from hambench.methods.hamburger.training.teacher import Corpus
from hambench.methods.hamburger.training.trainer import Trainer
from hambench.models import target as models

# untied: a tied random base repeats its last token, and texts of one token would hide a shift
SHAPE = with_shape(tie_embeddings=False, max_positions=256)
RECIPE = dataclasses.replace(SMALL, micro_batch=16, batch_size=4, lora_rank=2, thresholds=(0.7, 0.9))
ON_POLICY = dataclasses.replace(
    CONTINUED,
    name="on-policy",
    micro_batch=16,
    lora_rank=2,
    written_share=0.2,
    written_confidences=(0.0, 0.5),
)
STEPS = {"reader": 2, "student": 1}
EOS = {257}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("written") / "tiny", SHAPE)


@pytest.fixture(scope="module")
def first(folder, tmp_path_factory):
    """The folder of a run that makes a corpus and weights."""
    base = tmp_path_factory.mktemp("first")
    rows = [{"prompt_ids": [1, 2, i], "response_ids": [10, 20, 30, 40, 50 + i]} for i in range(8)]
    (base / "rows").write_text("\n".join(map(json.dumps, rows)))
    options = RunOptions(
        out=base / "weights", steps={"micro": 3, "reader": 2, "student": 1}, held_out_share=0.25
    )
    train(str(folder), RECIPE, options, sources=[DataSource(path=base / "rows")])
    return base / "weights"


@pytest.fixture(scope="module")
def weights(first, tmp_path_factory):
    """Weights of the same architecture whose stop head changes its mind from token to token."""
    checkpoint, generator = load(first), torch.Generator().manual_seed(1)
    tensors = dict(checkpoint.tensors)
    for name, tensor in tensors.items():
        if name.startswith("stop_head.") and tensor.ndim > 1:
            tensors[name] = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
    out = tmp_path_factory.mktemp("live") / "weights"
    save(dataclasses.replace(checkpoint, tensors=tensors), out)
    return out


@pytest.fixture(scope="module")
def target(folder):
    return models.load(str(folder), dtype="float32", device="cpu")


@pytest.fixture
def continued(folder, first, weights, target):
    def run(out, *, recipe=ON_POLICY, engine=lambda: target, corpus=first, protected=None, **changes):
        options = RunOptions(**{"out": out, "steps": STEPS, "start_from": weights, **changes})
        return train(str(folder), recipe, options, corpus_folder=corpus, engine=engine, protected=protected)

    return run


def configs(weights):
    return [HamburgerConfig(checkpoint=str(weights), confidence=c) for c in ON_POLICY.written_confidences]


def alone(config, target, prompt, limit, eos_ids=frozenset()):
    """Tokens and slots of decoding one prompt by itself."""
    params = SamplingParams(max_new_tokens=limit)
    trace = generate(config.build(target), prompt, params, eos_ids=eos_ids)
    tokens = [token for step in trace.steps for token in step.tokens]
    return [*prompt, *tokens], [len(step.tokens) for step in trace.steps]


def test_texts_and_slots_are_those_of_decoding_alone(target, weights):
    both = configs(weights)
    prompts = [[[1, 2, 3 + i] for i in range(5)], [[4, 5, 6 + i] for i in range(4)]]
    methods = [(config.build(target), own) for config, own in zip(both, prompts, strict=True)]
    texts = {tuple(t.ids[: t.num_prompt_tokens]): t for t in write_texts(methods, max_new_tokens=11, batch=2)}
    assert len(texts) == 9
    for config, own in zip(both, prompts, strict=True):
        for prompt in own:
            text = texts[tuple(prompt)]
            assert (text.ids, text.segments) == alone(config, target, prompt, 11)
    # the laws above would hold for one token over and over in slots of one size
    assert len({token for text in texts.values() for token in text.ids[3:]}) > 5
    assert {size for prompt in prompts[1] for size in texts[tuple(prompt)].segments} >= {1, 2}


def test_no_prompt_begins_when_time_is_over_but_those_that_have_are_finished(target, weights):
    method = configs(weights)[0].build(target)
    asked = []

    def may_begin():
        asked.append(None)
        return len(asked) < 4

    prompts = [[1, 2, i] for i in range(20)]
    texts = list(write_texts([(method, prompts)], max_new_tokens=8, batch=3, may_begin=may_begin))
    # the first begins unasked
    assert sorted(text.ids[2] for text in texts) == [0, 1, 2, 3]
    assert all(sum(text.segments) == 8 == len(text.ids) - 3 for text in texts)
    never = list(write_texts([(method, prompts)], max_new_tokens=8, may_begin=lambda: False))
    assert len(never) == 1
    assert not list(write_texts([(method, [])]))


def test_an_end_of_sequence_ends_a_text_and_is_part_of_it(target, weights):
    config = configs(weights)[0]
    ids, _ = alone(config, target, [1, 2, 3], 9)
    (text,) = write_texts([(config.build(target), [[1, 2, 3]])], max_new_tokens=9, eos_ids={ids[5]})
    end = ids.index(ids[5], 3)
    assert text.ids == ids[: end + 1]
    assert sum(text.segments) == end - 2


def test_a_sequence_that_fails_is_an_error(target, weights):
    class Broken:
        kv = KVUsage(0, 0)

        def prefill(self):
            raise ZeroDivisionError("a fault in a step")
            yield

    class Method:
        def start(self, prompt_ids, params):
            return Broken()

    with pytest.raises(ZeroDivisionError, match="a fault in a step"):
        list(write_texts([(Method(), [[1, 2]])]))


def test_a_run_trains_on_what_its_weights_wrote_in_their_slots(
    continued, first, weights, target, tmp_path, monkeypatch
):
    seen = []
    original = Trainer.train_corpus
    monkeypatch.setattr(Trainer, "train_corpus", lambda run, *data: (seen.append(data), original(run, *data)))
    trainer = continued(tmp_path / "out")
    ((corpus, notes),) = seen
    before, kept = load_corpus(first), read_notes(first)
    # each of the six training answers' prompts once, and no held-out one's
    assert (notes.num_written, notes.num_answers, notes.held_out) == (6, 8, kept.held_out)
    asked = [before.sequence(i)[0][:3].tolist() for i in range(8) if i not in kept.held_out]
    assert sorted(corpus.sequence(i)[0][:3].tolist() for i in range(8, 14)) == sorted(asked)
    assert notes.train(14, written_times=2)[-12:] == 2 * [*range(8, 14)]
    lessons = Lessons(corpus, ON_POLICY, 4, train=[], held=[], written=notes.written(14))
    sizes = set()
    for index in range(8, 14):
        ids, num_prompt = corpus.sequence(index)
        segments = lessons.segments(index, 0.5)
        assert (ids.tolist(), segments) in [
            alone(config, target, ids[:num_prompt].tolist(), MAX_NEW_TOKENS, EOS)
            for config in configs(weights)
        ]
        sizes.update(segments)
    assert sizes >= {1, 4}
    assert not corpus.joins[: int(corpus.row_offsets[8])].any()
    for name in ("ids", "features", "top_ids", "entropies"):
        own = getattr(before, name)
        assert torch.equal(getattr(corpus, name)[: len(own)], own), name
    data = load(tmp_path / "out").provenance["data"]
    assert (data["answers"], data["windows"], data["written"]) == (8, 0, 6)
    assert data["written_tokens"] == corpus.num_rows - before.num_rows
    assert data["answer_tokens"] == before.num_rows
    assert (tmp_path / "out" / "held_out.jsonl").read_text() == (first / "held_out.jsonl").read_text()
    assert trainer.recipe.data_share == 0


def test_the_lesson_on_a_written_text_is_the_base_s_own_distribution_behind_it(continued, target, tmp_path):
    continued(tmp_path / "out")
    corpus = Corpus.load(tmp_path / "out" / WRITTEN_NAME)
    for index in range(corpus.num_sequences):
        ids, num_prompt = corpus.sequence(index)
        cache = target.llama.new_cache(len(ids))
        with torch.inference_mode():
            out = target.llama.forward(ids[:-1], cache, num_logits=len(ids) - num_prompt)
        rows = slice(*corpus.row_offsets[index : index + 2].tolist())
        shares = torch.softmax(out.logits.float(), -1)
        best = shares.gather(1, corpus.top_ids[rows].long())
        torch.testing.assert_close(
            corpus.top_probs[rows].float(), best / best.sum(1, keepdim=True), rtol=0.1, atol=0.02
        )


def test_a_run_that_is_resumed_finds_its_texts_and_no_other_run_takes_them(
    continued, first, weights, tmp_path
):
    out = tmp_path / "out"
    once = continued(out, minutes=10.0).data
    again = continued(out, resume=True, minutes=10.0, engine=lambda: pytest.fail("loaded again"))
    assert again.data == once
    # a run that starts from these weights writes texts of its own
    third = continued(tmp_path / "third", start_from=out)
    assert third.data["corpus"] != once["corpus"]
    with pytest.raises(DataError, match=r"written.safetensors has texts of another run \(its weights "):
        continued(out, resume=True, start_from=first)
    (out / WRITTEN_NAME).write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"written.safetensors is truncated or damaged: .*remove it"):
        continued(out, resume=True)


def test_with_a_time_limit_every_prompt_is_decoded_at_every_confidence(continued, tmp_path):
    assert continued(tmp_path / "out", minutes=10.0).data["written"] == 12


class OneTextIsARow(Protected):
    """Finds words of a suite in every second text."""

    def __init__(self):
        super().__init__()
        self.names, self.asked = ["suite/1"], 0

    def shared(self, text):
        self.asked += 1
        return self.asked % 2 == 1


def test_what_shares_words_with_a_suite_s_row_is_left_out_and_counted(continued, tmp_path):
    data = continued(tmp_path / "out", protected=OneTextIsARow).data
    assert (data["written"], data["overlapping_written_texts"], data["suite_rows"]) == (3, 3, 1)


def test_a_recipe_that_needs_weights_to_write_refuses_to_begin_without(continued, tmp_path):
    with pytest.raises(
        DataError, match=r"recipe 'on-policy' learns .* \(written_share = 0.2\); give --start-from"
    ):
        continued(tmp_path / "out", start_from=None, engine=lambda: pytest.fail("loaded"))
    with pytest.raises(DataError, match="engine must load the base"):
        continued(tmp_path / "out", engine=None)
    assert not (tmp_path / "out").exists()


def test_prompts_without_room_for_an_answer_are_one_clear_line(continued, target, tmp_path):
    short = dataclasses.replace(target, context_length=MAX_NEW_TOKENS + 2)
    with pytest.raises(DataError, match="no answer of the corpus has a prompt of at most 2 tokens"):
        continued(tmp_path / "out", engine=lambda: short)


def test_recipes_refuse_what_can_t_be_written():
    with pytest.raises(ValueError, match="written_share must be 0 for the objective published"):
        dataclasses.replace(PAPER, written_share=0.1)
    with pytest.raises(ValueError, match=r"written_confidences must be at least one number >= 0, got \(\)"):
        dataclasses.replace(SMALL, written_confidences=())
    with pytest.raises(ValueError, match="written_confidences must be"):
        dataclasses.replace(SMALL, written_confidences=(0.5, -1.0))
    with pytest.raises(ValueError, match=r"after data_share \+ written_share \(0.87\)"):
        dataclasses.replace(SMALL, written_share=0.6)


def test_a_ready_corpus_leaves_its_time_to_writing_and_to_the_stages():
    ready = ON_POLICY.without_data_share()
    stretch = 0.97 / (0.97 - ON_POLICY.data_share)
    assert ready.written_share == pytest.approx(0.2 * stretch)
    assert ready.data_ends == ready.written_share
    assert ready.stages[0][1] == pytest.approx((0.82 - ON_POLICY.data_share) * stretch)


def test_a_corpus_without_such_texts_keeps_the_identity_that_it_had(first):
    corpus, notes = load_corpus(first), read_notes(first)
    plain = {key: value for key, value in dataclasses.asdict(notes).items() if key != "num_written"}
    columns = (corpus.ids, corpus.offsets, corpus.row_offsets)
    parts = [*(column.numpy().tobytes() for column in columns), msgspec.json.encode(plain)]
    assert describe(corpus, notes)["corpus"] == hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def test_a_corpus_of_an_earlier_version_has_only_texts_whose_segments_are_cut(first, tmp_path):
    columns = load_file(first / CORPUS_NAME)
    del columns["joins"]
    save_file(columns, tmp_path / CORPUS_NAME)
    corpus = load_corpus(tmp_path)
    assert corpus.joins.shape == (corpus.num_rows,)
    assert not corpus.joins.any()
