import copy
import dataclasses

import pytest
import torch
from fakes import TINY_SHAPE, save_tiny_model, swap_tokens, tiny_target

from hambench.decoding import SamplingParams
from hambench.engine.loop import generate
from hambench.engine.text import answer_text
from hambench.errors import ModelError
from hambench.methods.common.vocabulary import check_tokens, with_rows
from hambench.methods.speculative import SpeculativeConfig
from hambench.methods.vanilla import VanillaConfig
from hambench.models.target import load
from hambench.serving.answer_text import AnswerText

PROMPT = list(range(40, 60))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = save_tiny_model(tmp_path_factory.mktemp("target"), TINY_SHAPE)
    return load(str(folder), dtype="float32", device="cpu")


def saved_draft(folder, *, num_rows=260, seed=0):
    return str(save_tiny_model(folder, dataclasses.replace(TINY_SHAPE, vocab_size=num_rows), seed=seed))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("num_rows", [256 + 4, 264, 300])
def test_a_draft_padded_otherwise_is_used_and_changes_no_token(loaded, tmp_path, num_rows, temperature):
    draft = saved_draft(tmp_path / "draft", num_rows=num_rows, seed=1)
    config = SpeculativeConfig(draft=draft, num_draft_tokens=3)
    params = SamplingParams(max_new_tokens=20, temperature=temperature, seed=3)
    trace = generate(config.build(loaded), PROMPT, params)
    if temperature == 0:
        assert trace.token_ids == generate(VanillaConfig().build(loaded), PROMPT, params).token_ids
    assert len(trace.token_ids) == 20
    assert loaded.companions[f"draft {draft}"] == load(draft, dtype="float32").identity.sha256


def test_a_draft_of_the_same_weights_with_rows_more_is_always_accepted(loaded, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_tiny_model(tmp_path / "draft", dataclasses.replace(TINY_SHAPE, vocab_size=264))
    weights, wide = load_file(f"{loaded.name}/model.safetensors"), load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        # a padded row that would win if it were let
        weights[name] = torch.cat([weights[name], 9 * wide[name][260:]])
    save_file(weights, folder / "model.safetensors")
    config = SpeculativeConfig(draft=str(folder), num_draft_tokens=3)
    trace = generate(config.build(loaded), PROMPT, SamplingParams(max_new_tokens=24))
    assert all(step.accepted == step.drafted for step in trace.steps)


def test_a_draft_with_rows_less_than_a_padded_target_fits(tmp_path):
    shape = dataclasses.replace(TINY_SHAPE, vocab_size=272)
    target = load(str(save_tiny_model(tmp_path / "target", shape)), dtype="float32", device="cpu")
    config = SpeculativeConfig(draft=saved_draft(tmp_path / "draft"), num_draft_tokens=3)
    params = SamplingParams(max_new_tokens=30)
    vanilla = generate(VanillaConfig().build(target), [265, 70, 271], params)
    assert generate(config.build(target), [265, 70, 271], params).token_ids == vanilla.token_ids


@pytest.mark.parametrize("config", [VanillaConfig(), SpeculativeConfig(num_draft_tokens=3)])
def test_ids_that_the_tokenizer_lacks_are_no_text_and_end_nothing(tmp_path, config):
    from safetensors.torch import load_file, save_file

    folder = save_tiny_model(tmp_path / "wide", dataclasses.replace(TINY_SHAPE, vocab_size=300))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][:260] *= 0.3
    save_file(weights, folder / "model.safetensors")
    target = load(str(folder), dtype="float32", device="cpu")
    params, decode_text = SamplingParams(max_new_tokens=24), target.tokenizer.decode
    trace = generate(config.build(target), PROMPT, params, stop=["never"], decode_text=decode_text)
    beyond = [token for token in trace.token_ids if token >= 260]
    assert (trace.finish, len(beyond) > 0) == ("length", True)
    known = [token for token in trace.token_ids if token < 260]
    served = AnswerText(target.tokenizer, ["never"])
    pieces = [served.add(step.tokens) for step in trace.steps]
    assert answer_text(trace, target.tokenizer, ["never"]) == decode_text(known, skip_special_tokens=True)
    assert "".join(pieces) + served.rest() == decode_text(known, skip_special_tokens=True)


def test_as_many_tokens_of_another_tokenizer_are_refused(loaded, tmp_path):
    draft = saved_draft(tmp_path / "draft")
    swap_tokens(tmp_path / "draft")
    with pytest.raises(ModelError, match=r"another tokenizer than .*: token 70 is"):
        SpeculativeConfig(draft=draft).build(loaded)


def test_markers_that_were_added_may_differ(loaded):
    target = dataclasses.replace(loaded, tokenizer=copy.deepcopy(loaded.tokenizer))
    target.tokenizer.add_tokens(["<here>"], special_tokens=True)
    draft = copy.deepcopy(loaded.tokenizer)
    draft.add_tokens(["<there>", "<and there>"], special_tokens=True)
    check_tokens("d", draft, 262, target)


def test_without_tokenizers_the_rows_must_be_as_many():
    target = dataclasses.replace(tiny_target(), tokenizer=None)
    check_tokens("d", None, 260, target)
    with pytest.raises(ModelError, match="264 tokens"):
        check_tokens("d", None, 264, target)


def test_a_draft_with_fewer_rows_than_tokens_is_damaged(loaded):
    with pytest.raises(ModelError, match="100 rows"):
        check_tokens("d", loaded.tokenizer, 100, loaded)


def test_rows_are_cut_or_filled_and_the_rest_is_shared(target):
    wide, narrow = with_rows(target.llama, 300), with_rows(target.llama, 200)
    ids = torch.arange(5)
    plain = target.llama.prefill(ids, target.llama.new_cache(8)).logits
    assert torch.equal(narrow.prefill(ids, narrow.new_cache(8)).logits, plain[:, :200])
    padded = wide.prefill(ids, wide.new_cache(8)).logits
    assert torch.allclose(padded[:, :260], plain, atol=1e-5)
    assert torch.allclose(padded[:, 260:], plain[:, :1].expand(-1, 40), atol=1e-5)
    assert wide.stack is target.llama.stack
