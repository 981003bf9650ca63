"""The parts that the stages of recipe ``small`` are made of."""

import dataclasses
import json
from contextlib import nullcontext

import pytest
import torch
from click.testing import CliRunner
from fakes import random_weights, save_tiny_model, tiny_target
from fakes_hamburger import TINY_ARCHITECTURE, hf_twin, tiny_checkpoint, tiny_grafts, with_shape
from torch.utils.flop_counter import FlopCounterMode

from hambench.cli.hamburger import command
from hambench.decoding import SamplingParams, answered
from hambench.engine.llama import Llama
from hambench.errors import DataError
from hambench.methods.hamburger.base import (
    LORA_SCALE,
    add_low_rank,
    first_layers,
    gate_low_rank,
    low_rank_tensors,
)
from hambench.methods.hamburger.cpu_training import rms_norm
from hambench.methods.hamburger.judging.agreement import joined, measure
from hambench.methods.hamburger.method import Hamburger, with_low_rank
from hambench.methods.hamburger.model import HamburgerModel
from hambench.methods.hamburger.session import HamburgerSession
from hambench.methods.hamburger.training import packed_base
from hambench.methods.hamburger.training.budget import Clock, learning_rate_share
from hambench.methods.hamburger.training.calibration import fit, fold
from hambench.methods.hamburger.training.lessons import Lessons
from hambench.methods.hamburger.training.losses import MicroTargets, frozen_head_loss, micro_loss
from hambench.methods.hamburger.training.merged_forward import collate, fuse, merged_layers, teacher_forced
from hambench.methods.hamburger.training.recipes import PAPER, SMALL
from hambench.methods.hamburger.training.teacher import Corpus, hidden_layers, study
from hambench.methods.hamburger.training.vocabulary import Shortlist

PROMPT = [5, 6, 7, 80, 9]


@pytest.fixture
def gated():
    """A base whose adapters count at fused slots only, its gate, and the model that decodes with the same weights."""
    twin = hf_twin()
    adapted = add_low_rank(twin, 2)
    gate = gate_low_rank(adapted)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.1)
    target = tiny_target()
    changes = {n.removeprefix("lora."): t for n, t in low_rank_tensors(adapted).items()}
    weights = with_low_rank(random_weights(target.llama.shape, 0), changes, scale=LORA_SCALE)
    fused_base = Llama(target.llama.shape, weights, target.dtype, target.device)
    return adapted, gate, HamburgerModel(target.llama, tiny_checkpoint(), fused_base=fused_base)


def session_of(model, confidence):
    return HamburgerSession(
        model, PROMPT, SamplingParams(max_new_tokens=48), confidence=confidence, position_convention="train"
    )


def test_gated_decoding_equals_the_gated_teacher_forced_forward(gated):
    adapted, gate, model = gated
    session = session_of(model, 0.4)
    with torch.inference_mode():
        steps = [answered(session.prefill())] + [answered(session.step()) for _ in range(11)]
    groups = [list(step.tokens) for step in steps]
    assert len({len(group) for group in groups}) > 1, "the case must hold macro-steps of several lengths"
    ids = PROMPT + [token for group in groups for token in group]
    batch = collate([(ids, len(PROMPT), [len(group) for group in groups])], 4)
    with torch.no_grad():
        hidden, stop_logits = teacher_forced(adapted, tiny_grafts(), batch, gate)
        logits = adapted.get_output_embeddings()(hidden)
        ungated, _ = teacher_forced(adapted, tiny_grafts(), batch)
    assert not torch.allclose(hidden, ungated, atol=1e-2), "the case must notice a gate that is always open"
    for row, step in enumerate(steps):
        assert logits[row, : len(step.tokens)].argmax(-1).tolist() == list(step.tokens)
        continued = torch.sigmoid(-stop_logits[row, : len(step.continue_probs)]).tolist()
        assert continued == pytest.approx(step.continue_probs, abs=1e-4)


def test_with_gated_changes_one_token_decoding_is_the_bases_own(gated):
    _, _, model = gated
    session, ids = session_of(model, 1.1), list(PROMPT)
    with torch.inference_mode():
        emitted = list(answered(session.prefill()).tokens) + [
            answered(session.step()).tokens[0] for _ in range(8)
        ]
        twin = hf_twin()
        for token in emitted:
            assert int(twin(torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)


def test_a_calibration_finds_the_scale_and_shift_that_made_the_labels():
    torch.manual_seed(0)
    logits = torch.randn(20_000)
    stops = torch.rand(20_000) < torch.sigmoid(2.0 * logits - 0.7)
    fitted = fit(logits, stops)
    assert (fitted.scale, fitted.shift) == pytest.approx((2.0, -0.7), abs=0.1)
    assert fitted.loss_after < fitted.loss_before


def test_a_folded_calibration_is_the_scaled_and_shifted_logit():
    head, hidden = tiny_grafts().stop_head, torch.randn(5, 64)
    before = head(hidden)
    fitted = dataclasses.replace(fit(torch.randn(50), torch.rand(50) < 0.5), scale=0.5, shift=1.5)
    fold(head, fitted)
    torch.testing.assert_close(head(hidden), 0.5 * before + 1.5)


def test_a_misleading_stop_head_is_flattened_rather_than_turned_round():
    logits = torch.randn(500)
    assert 0 < fit(logits, logits < 0).scale < 0.02


def test_a_shortlist_of_everything_gives_the_loss_of_the_whole_vocabulary():
    torch.manual_seed(0)
    hidden, head = torch.randn(7, 8), torch.randn(30, 8)
    top_ids, top_probs = torch.randint(0, 30, (7, 3)), torch.rand(7, 3)
    part = Shortlist(head, top_ids, top_probs, size=30).draw()
    ids, inside = part.find(top_ids)
    assert inside.all()
    weights = torch.ones(7)
    short = frozen_head_loss(hidden, part.head, ids=ids, probs=top_probs, weights=weights, bias=part.bias)
    whole = frozen_head_loss(hidden, head, ids=top_ids, probs=top_probs, weights=weights)
    torch.testing.assert_close(short.loss, whole.loss)


def test_the_negatives_of_a_shortlist_stand_for_the_rest_of_the_vocabulary():
    torch.manual_seed(0)
    hidden, head = torch.randn(1, 8), 0.3 * torch.randn(4000, 8)
    shortlist = Shortlist(
        head, torch.tensor([[3, 5]]), torch.tensor([[0.7, 0.2]]), size=100, num_negatives=64
    )
    assert shortlist.covered == pytest.approx(1.0)
    sums = []
    for _ in range(200):
        part = shortlist.draw()
        sums.append((hidden @ part.head.T + part.bias).exp().sum())
    assert float(torch.stack(sums).mean()) == pytest.approx(float((hidden @ head.T).exp().sum()), rel=0.03)
    ids, inside = part.find(torch.tensor([3, 5]))
    assert inside.all()
    torch.testing.assert_close(part.head[ids], head[[3, 5]])


def test_the_stop_head_is_asked_only_where_the_text_went_the_bases_way():
    torch.manual_seed(0)
    greedy = torch.tensor([[4, 5, 6, 7], [4, 5, 6, 7], [4, 5, 6, 7]])
    tokens = torch.tensor([[4, 5, 6, 7], [9, 5, 6, 7], [4, 5, 6, 7]])
    valid = torch.tensor([[True] * 4, [True] * 4, [True, False, False, False]])
    targets = MicroTargets(
        tokens=tokens, top_ids=greedy[..., None], top_probs=torch.ones(3, 4, 1), valid=valid
    )
    out = micro_loss(
        tiny_grafts().train(),
        torch.randn(3, 4, 64),
        targets,
        embedding=torch.randn(264, 64),
        head=torch.randn(264, 64),
    )
    assert out.asked[:, 0].tolist() == [True, False, False]
    assert out.num_stops == out.asked.sum()


def test_training_computes_the_hidden_states_and_gradients_of_the_published_order():
    grafts = tiny_grafts()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in grafts.micro.named_parameters():
            # norms begin as ones, under which a forgotten one would not show
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    features, embedded, slope = torch.randn(3, 4, 64), torch.randn(3, 3, 64), torch.randn(3, 4, 64)

    def run():
        inputs = features.clone().requires_grad_()
        hidden = grafts.micro(inputs, embedded)
        trained = dict(grafts.micro.named_parameters())
        gradients = torch.autograd.grad((hidden * slope).sum(), [inputs, *trained.values()])
        return hidden, dict(zip(["inputs", *trained], gradients, strict=True))

    grafts.eval()
    published, expected = run()
    grafts.train()
    trained, gradients = run()
    torch.testing.assert_close(trained, published)
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], msg=name, rtol=1e-4, atol=1e-4)


def test_a_rounded_norm_is_as_near_to_the_exact_one_as_torchs():
    torch.manual_seed(0)
    rows, weight = torch.randn(40, 64).bfloat16(), torch.randn(64)
    exact = torch.nn.functional.rms_norm(rows.double(), (64,), weight.double(), 1e-5)
    theirs = torch.nn.functional.rms_norm(rows, (64,), weight.bfloat16(), 1e-5)
    ours = rms_norm(rows, weight, 1e-5)
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).abs().mean() <= (theirs - exact).abs().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_the_gradients_of_a_norm_are_the_exact_ones_rounded_once_and_its_arguments_stay(dtype, wanted):
    torch.manual_seed(0)
    rows, weight, slope = (torch.randn(2, 20, 64) * 3).to(dtype), torch.randn(64), torch.randn(2, 20, 64)
    slope = slope.to(dtype)
    given = [each.clone() for each in (rows, weight, slope)]
    for tensor, is_wanted in zip((rows, weight), wanted, strict=True):
        tensor.requires_grad_(is_wanted)
    taken = [tensor for tensor in (rows, weight) if tensor.requires_grad]
    out = rms_norm(rows, weight, 0.5)
    gradients = torch.autograd.grad(out, taken, slope)
    exact = [tensor.detach().double().requires_grad_() for tensor in taken]
    wide = dict(zip(map(id, taken), exact, strict=True))
    expected = torch.nn.functional.rms_norm(
        wide.get(id(rows), rows.detach().double()), (64,), wide.get(id(weight), weight.detach().double()), 0.5
    )
    # half of bfloat16's distance between numbers is up to 2^-8 of them
    rounded = {torch.float32: 2e-5, torch.bfloat16: 1.02 * 2**-8}
    torch.testing.assert_close(out.double(), expected, rtol=rounded[dtype], atol=1e-6)
    for tensor, gradient, each in zip(
        taken, gradients, torch.autograd.grad(expected, exact, slope.double()), strict=True
    ):
        assert gradient.dtype == tensor.dtype
        torch.testing.assert_close(gradient.double(), each, rtol=rounded[tensor.dtype], atol=1e-5)
    for tensor, before in zip((rows, weight, slope), given, strict=True):
        assert torch.equal(tensor, before)


def test_a_loss_without_gradient_is_the_same_loss():
    torch.manual_seed(0)
    hidden, head = torch.randn(7, 8), torch.randn(30, 8)
    ids, probs, weights = torch.randint(0, 30, (7, 3)), torch.rand(7, 3), torch.rand(7)
    targets = {"ids": ids, "probs": probs, "weights": weights}
    counter = FlopCounterMode(display=False)
    with counter:
        plain = frozen_head_loss(hidden, head, **targets)
    trained = frozen_head_loss(hidden.requires_grad_(), head, **targets)
    assert plain.loss == trained.loss
    assert counter.get_total_flops() == 2 * 7 * 8 * 30, "a loss alone needs one product"


MERGED = [
    ([5, 6, 7, 80, 9, 3, 4, 11], 2, [1, 3, 2]),
    ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], 3, [2, 1, 4, 1, 1]),
    ([7, 8, 9], 1, [1, 1]),
]
"""Sequences of several lengths, with and without merged slots."""


def padded_layers(model, grafts, batch, layers, gate):
    """The merged forward as transformers computes it: padded, masked and gated."""
    inputs = fuse(batch, model.get_input_embeddings().weight, grafts.embedder)
    with nullcontext() if gate is None else gate.only(batch.lengths > 1):
        streams = hidden_layers(
            model,
            layers,
            inputs_embeds=inputs,
            attention_mask=batch.mask,
            position_ids=batch.positions,
        )
    at, slot = batch.sources.T
    return [stream[at, slot] for stream in streams]


@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (1,)])
@pytest.mark.parametrize("is_gated", [True, False])
@pytest.mark.parametrize("short_rows", [0, 6, 256])
def test_packed_sequences_have_the_hidden_states_and_gradients_of_padded_ones(
    gated, layers, is_gated, short_rows, monkeypatch
):
    monkeypatch.setattr(packed_base, "SHORT_ROWS", short_rows)
    adapted, gate, _ = gated
    gate, grafts, batch = gate if is_gated else None, tiny_grafts(), collate(MERGED, 4)
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    trained |= dict(grafts.embedder.named_parameters())

    def run(forward):
        streams = forward(adapted, grafts, batch, layers, gate)
        loss = sum((stream * torch.linspace(-1, 1, stream.shape[-1])).sum() for stream in streams)
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        return streams, dict(zip(trained, gradients, strict=True))

    padded, expected = run(padded_layers)
    packed, gradients = run(merged_layers)
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-4)
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in expected.values())
    for name, gradient in gradients.items():
        if expected[name] is None or gradient is None:
            # a layer after the last one that is read has no gradient, or zeros
            assert all(g is None or not g.any() for g in (gradient, expected[name])), name
        else:
            torch.testing.assert_close(gradient, expected[name], msg=name, rtol=1e-3, atol=1e-4)


def test_the_base_without_its_adapters_is_read_without_them(gated):
    adapted, _, _ = gated
    sequences = [(ids, prompt) for ids, prompt, _ in MERGED]
    with adapted.disable_adapter():
        packed = dict(study(adapted.get_base_model(), sequences, feature_layers=(1, 3)))
    plain = dict(study(hf_twin(), sequences, feature_layers=(1, 3)))
    changed = dict(study(adapted, sequences, feature_layers=(1, 3)))
    for number in range(len(sequences)):
        torch.testing.assert_close(packed[number].features, plain[number].features)
        assert not torch.allclose(changed[number].features, plain[number].features, atol=1e-2)


def test_a_base_that_was_cut_first_gives_all_its_layers_afterwards():
    model = hf_twin()
    ids = torch.tensor([[1, 2, 3]])
    with first_layers(model, 2):
        (cut,) = hidden_layers(model, (1,), input_ids=ids)
    whole = hidden_layers(hf_twin(), (1, 3), input_ids=ids)
    after = hidden_layers(model, (1, 3), input_ids=ids)
    torch.testing.assert_close(cut, whole[0])
    torch.testing.assert_close(after, whole)
    with first_layers(model, 4):
        torch.testing.assert_close(hidden_layers(model, (3,), input_ids=ids)[0], whole[1])


@pytest.fixture
def lessons():
    twin = hf_twin()
    sequences = [([1, 2, 3, 4, 5, 6, 7, 8], 2), ([7, 8, 9, 10], 1)]
    studied = dict(study(twin, sequences, feature_layers=TINY_ARCHITECTURE.feature_layers))
    corpus = Corpus.of(sequences, [studied[0], studied[1]])
    return Lessons(corpus, SMALL, 4, train=[0, 1], held=[])


def test_segments_by_the_stop_head_join_what_it_would_go_on_for(lessons):
    grafts = tiny_grafts()
    lessons.cut_by_stop_head(grafts)
    with torch.no_grad():
        stops = torch.sigmoid(grafts.stop_head(lessons.corpus.features[:, -1].float()))
    start, end = lessons.corpus.row_offsets[:2].tolist()
    threshold = float(stops[start : end - 1].median()) + 1e-6
    lengths = [1]
    for stop in stops[start : end - 1].tolist():
        if stop < threshold and lengths[-1] < 4:
            lengths[-1] += 1
        else:
            lengths.append(1)
    assert lessons.segments(0, threshold) == lengths
    assert max(lengths) > 1


def test_the_end_of_a_response_starts_no_lesson_of_the_micro_step_decoder(lessons):
    rows = lessons.trained_rows().tolist()
    last = [int(end) - 1 for end in lessons.corpus.row_offsets[1:]]
    assert sorted([*rows, *last]) == list(range(lessons.corpus.num_rows))


def test_responses_that_no_second_token_can_be_learned_from_are_refused():
    sequences = [([1, 2, 3], 2), ([7, 8], 1)]
    studied = dict(study(hf_twin(), sequences, feature_layers=TINY_ARCHITECTURE.feature_layers))
    lessons = Lessons(Corpus.of(sequences, [studied[0], studied[1]]), SMALL, 4, train=[0, 1], held=[])
    with pytest.raises(DataError, match="training needs responses of at least 2 tokens"):
        lessons.trained_rows()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_stop_head_on_a_gpu_cuts_the_segments_that_it_would_cut_on_a_cpu(lessons):
    lessons.cut_by_stop_head(tiny_grafts())
    expected = lessons.segments(0, 0.5)
    lessons.cut_by_stop_head(tiny_grafts().to("cuda"))
    assert lessons.segments(0, 0.5) == expected


def test_a_run_that_goes_on_has_used_what_its_first_part_used():
    clock = Clock(1.0)
    assert not clock.is_past(0.5)
    clock.resume(45)
    assert clock.is_past(0.5)
    assert not clock.is_past(1.0)
    assert Clock(None).share == 0


def test_the_learning_rate_warms_up_and_falls_to_its_last_share():
    shares = [learning_rate_share(SMALL, step, step / 100) for step in range(101)]
    assert shares[0] == pytest.approx(1 / SMALL.warmup_steps, rel=0.01)
    assert max(shares) == pytest.approx(1.0, abs=0.1)
    assert shares[-1] == pytest.approx(SMALL.final_lr_share)
    assert learning_rate_share(PAPER, 0, 0.0) == 1.0


def test_along_its_own_answers_the_one_token_control_is_always_right():
    target = tiny_target()
    model = HamburgerModel(target.llama, tiny_checkpoint())
    with torch.inference_mode():
        session = session_of(model, 1.1)
        answer = list(answered(session.prefill()).tokens) + [
            answered(session.step()).tokens[0] for _ in range(15)
        ]

    def at(confidence):
        method = Hamburger(
            name="hamburger",
            target=target,
            model=model,
            confidence=confidence,
            position_convention="train",
            extra_weight_bytes=0,
        )
        return joined(measure(method, [(PROMPT + answer, len(PROMPT))], [confidence])[0])

    control, fusing = at(1.1), at(0.0)
    assert (control.m, control.share_same, control.grafted_agreement) == (1.0, 1.0, None)
    assert control.next_token_agreement is None
    assert (fusing.m, fusing.tokens, fusing.macro_steps) == (4.0, 16, 4)
    assert 0 < fusing.share_same < 1, (
        "random grafts can't know the answer, but each answer's first token is the base's"
    )
    assert (fusing.firsts, fusing.same <= fusing.tokens) == (3, True)


def test_the_commands_train_beside_windows_and_measure_what_was_held_out(tmp_path):
    folder = save_tiny_model(tmp_path / "tiny", with_shape(tie_embeddings=True, max_positions=256))
    data = tmp_path / "data.jsonl"
    rows = [{"prompt_ids": [1, 2, i], "response_ids": [10, 20, 30, 40, 50 + i]} for i in range(12)]
    data.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "weights"
    arguments = ["--model", str(folder), "--data", str(data), "--out", str(out), "--held-out", "0.4"]
    trained = CliRunner().invoke(command, ["train", *arguments, "--steps", "1", "--lora-rank", "2"])
    assert trained.exit_code == 0, trained.output
    held = [json.loads(line) for line in (out / "held_out.jsonl").read_text().splitlines()]
    assert len(held) == 2, "one half of five was calibrated on"
    assert all(row in rows for row in held)
    arguments = ["--model", str(folder), "--answers", str(out / "held_out.jsonl"), "--checkpoint", str(out)]
    options = ["--confidence", "0.5,1.1", "--tokens", "4"]
    measured = CliRunner().invoke(command, ["measure", *arguments, *options])
    assert measured.exit_code == 0, measured.output
    rows = [line.split()[:2] for line in measured.output.splitlines()]
    # along the answers, and freely
    assert rows.count(["1.1", "1.00"]) == 2


def test_slots_before_the_first_merged_one_have_no_backward_pass(gated):
    adapted, gate, _ = gated

    def operations(prompt_length):
        ids = list(range(1, prompt_length + 7))
        batch = collate([(ids, prompt_length, [1, 3, 2])], 4)
        counter = FlopCounterMode(display=False)
        with counter:
            (stream,) = merged_layers(adapted, tiny_grafts(), batch, (3,), gate)
        forward = counter.get_total_flops()
        counter = FlopCounterMode(display=False)
        with counter:
            stream.sum().backward()
        return forward, counter.get_total_flops()

    (short, short_back), (long, long_back) = operations(10), operations(110)
    assert long > 5 * short
    # later slots still read the keys and values of earlier ones
    assert long_back < 1.5 * short_back


def test_sequences_of_which_nothing_is_merged_keep_a_gradient_of_zero(gated):
    adapted, gate, _ = gated
    batch = collate([([5, 6, 7, 8], 2, [1, 1])], 4)
    (stream,) = merged_layers(adapted, tiny_grafts(), batch, (3,), gate)
    stream.sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in adapted.parameters())
