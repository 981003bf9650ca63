"""What is counted along the base's answers, against the plain loop and the teacher-forced forward."""

import dataclasses
import itertools

import pytest
import torch
from fakes import tiny_target
from fakes_hamburger import hf_twin, tiny_checkpoint, tiny_grafts
from native_fixtures import compiler, library  # noqa: F401 - fixtures

from hambench.decoding import SamplingParams, answered
from hambench.engine.cpu.native_llama import NativeLlama
from hambench.methods.hamburger.judging import agreement, lockstep
from hambench.methods.hamburger.judging.agreement import joined, measure, token_accuracy
from hambench.methods.hamburger.judging.lockstep import run_side_by_side
from hambench.methods.hamburger.judging.reliability import markdown_table, reliability
from hambench.methods.hamburger.method import Hamburger
from hambench.methods.hamburger.model import HamburgerModel
from hambench.methods.hamburger.training.merged_forward import collate, teacher_forced

PROMPTS = ([5, 6, 7, 80, 9], [5, 6, 7, 80, 9], [100, 3, 44], [9, 9, 200, 17, 31, 2])
CONFIDENCES = (0.0, 0.4, 0.6, 1.1)


def method_of(model, confidence=0.5, target=None):
    return Hamburger(
        name="hamburger",
        target=target or tiny_target(),
        model=model,
        confidence=confidence,
        position_convention="train",
        extra_weight_bytes=0,
    )


@pytest.fixture
def mixed_answers():
    """Answers that the method itself half agrees with: stretches of its own text, and tokens of another."""
    target = tiny_target()
    model = HamburgerModel(target.llama, tiny_checkpoint())
    answers = []
    for number, prompt in enumerate(PROMPTS):
        session = method_of(model, 0.45).start(prompt, SamplingParams(max_new_tokens=60))
        tokens = list(answered(session.prefill()).tokens)
        while len(tokens) < 14 + 3 * number:
            tokens += answered(session.step()).tokens
            if len(tokens) % 3 == 0:
                tokens.append(11 + len(tokens))
        answers.append(([*prompt, *tokens], len(prompt)))
    return answers


def by_the_plain_loop(model, answer, confidence):
    """One answer by one session whose own stop head decides, its tokens replaced by the answer's."""
    ids, prompt = answer
    response, done, has_merged = ids[prompt:], 0, False
    method = method_of(model, confidence)
    session = method.start(ids[:prompt], SamplingParams(max_new_tokens=len(response) + 4))
    counts = dict.fromkeys(("macro_steps", "tokens", "same", "firsts", "same_firsts", "same_of_base"), 0)
    while done < len(response):
        emitted = answered(session.step() if done else session.prefill()).tokens
        own = response[done : done + len(emitted)]
        hits = [mine == theirs for mine, theirs in zip(emitted, own, strict=False)]
        counts["macro_steps"] += 1
        counts["tokens"] += len(own)
        counts["same"] += sum(hits)
        counts["same_of_base"] += hits[0]
        counts["firsts"] += has_merged
        counts["same_firsts"] += has_merged and hits[0]
        if len(own) == len(emitted):
            session.replace_last(own)
        done += len(own)
        has_merged |= len(own) > 1
    return counts


def without_decisions(counted):
    fields = dataclasses.asdict(counted)
    del fields["decisions"], fields["confidence"]
    return fields


@torch.inference_mode()
def test_answers_side_by_side_count_as_one_session_each_whose_stop_head_decides(mixed_answers):
    model = HamburgerModel(tiny_target().llama, tiny_checkpoint())
    counted = measure(method_of(model), mixed_answers, CONFIDENCES)
    lengths = set()
    for confidence, parts in zip(CONFIDENCES, counted, strict=True):
        want = [by_the_plain_loop(model, answer, confidence) for answer in mixed_answers]
        assert [without_decisions(part) for part in parts] == want
        assert {part.confidence for part in parts} == {confidence}
        lengths.add(joined(parts).m)
    assert len(lengths) == len(CONFIDENCES), "the confidences must differ in what they merge"


@torch.inference_mode()
def test_the_native_engine_counts_the_same(mixed_answers, library):  # noqa: F811
    plain = tiny_target().llama
    native = NativeLlama(plain, library)
    checkpoint = tiny_checkpoint()
    methods = [method_of(HamburgerModel(llama, checkpoint)) for llama in (plain, native)]
    want, found = (measure(method, mixed_answers, CONFIDENCES) for method in methods)
    for one, other in zip(itertools.chain(*want), itertools.chain(*found), strict=True):
        assert without_decisions(other) == without_decisions(one)
        assert [right for _, right in other.decisions] == [right for _, right in one.decisions]
        # float32 in another order of additions, through a sigmoid
        assert [p for p, _ in other.decisions] == pytest.approx([p for p, _ in one.decisions], abs=1e-5)
    assert any(part.decisions for part in itertools.chain(*want))
    want, found = (token_accuracy(method, checkpoint, mixed_answers) for method in methods)
    assert found == want


@torch.inference_mode()
def test_decisions_are_those_that_decoding_asks_while_all_before_is_right(mixed_answers):
    model = HamburgerModel(tiny_target().llama, tiny_checkpoint())
    told = []
    for confidence, (ids, prompt) in itertools.product((0.4, 0.6, 0.9), mixed_answers):
        ((counted,),) = measure(method_of(model), [(ids, prompt)], [confidence])
        always = method_of(model, 0.0).start(ids[:prompt], SamplingParams(max_new_tokens=60))
        response, done, want = ids[prompt:], 0, []
        while done < len(response):
            step = answered(always.step() if done else always.prefill())
            own = response[done : done + 4]
            for place in range(1, len(own)):
                probability = step.continue_probs[place - 1]
                if list(step.tokens[:place]) == own[:place]:
                    want.append((probability, step.tokens[place] == own[place]))
                if probability < confidence:
                    break
            length = 1
            while length < len(own) and step.continue_probs[length - 1] >= confidence:
                length += 1
            always.replace_last(own[:length])
            done += length
        assert list(counted.decisions) == want
        told += [(right, probability < confidence) for probability, right in want]
    assert set(told) == {(right, refused) for right in (True, False) for refused in (True, False)}
    ((control,),) = measure(method_of(model), mixed_answers[:1], [1.1])
    assert control.decisions == ()


@pytest.mark.parametrize("rows", [3, 256])
@torch.inference_mode()
def test_token_accuracy_is_that_of_the_teacher_forced_forward_over_unmerged_inputs(
    mixed_answers, rows, monkeypatch
):
    monkeypatch.setattr(agreement, "_HEAD_ROWS", rows)
    checkpoint = tiny_checkpoint()
    target = tiny_target()
    answers = [*mixed_answers, ([1, 2, 3], 2)]
    found = token_accuracy(method_of(HamburgerModel(target.llama, checkpoint)), checkpoint, answers)
    twin = hf_twin()
    for each, (ids, prompt) in zip(found, answers, strict=True):
        response = ids[prompt:]
        right, asked = [0] * 3, [0] * 3
        for start in range(len(response)):
            # one macro-step of up to four tokens behind an unmerged prefix
            segments = [1] * start + [min(4, len(response) - start)]
            batch = collate([(ids[: prompt + sum(segments)], prompt, segments)], 4)
            hidden, _ = teacher_forced(twin, tiny_grafts(), batch)
            chosen = twin.get_output_embeddings()(hidden[-1]).argmax(-1).tolist()
            for place in range(1, segments[-1]):
                right[place - 1] += chosen[place] == response[start + place]
                asked[place - 1] += 1
        assert (list(each.right), list(each.asked)) == (right, asked)
        logits = twin(torch.tensor([ids])).logits[0, prompt - 1 : -1]
        assert each.same_of_base == int((logits.argmax(-1) == torch.tensor(response)).sum())
        assert each.tokens == len(response)
    assert sum(sum(each.right) for each in found), "the case must hold a token that is right"


def test_sequences_side_by_side_share_their_forwards_and_keep_their_order():
    target = tiny_target()
    model = HamburgerModel(target.llama, tiny_checkpoint())
    method = method_of(model, 0.5)

    def answer(prompt, length):
        session = method.start(prompt, SamplingParams(max_new_tokens=40))
        tokens = list((yield from session.prefill()).tokens)
        while len(tokens) < length:
            tokens += (yield from session.step()).tokens
        return tokens[:length]

    cases = [(prompt, 4 + 5 * number) for number, prompt in enumerate(PROMPTS * 2)]
    widths = []
    together = type(model.base).forward_together
    target.llama.forward_together = lambda sequences, **rest: (
        widths.append(len(sequences)),
        together(target.llama, sequences, **rest),
    )[1]
    found = run_side_by_side((lambda case=case: answer(*case) for case in cases), most=3)
    assert max(widths) == 3
    with torch.inference_mode():
        assert found == [answered(answer(*case)) for case in cases]


def test_long_answers_are_walked_along_with_as_many_caches_as_fit(mixed_answers, monkeypatch):
    target = tiny_target()
    method = method_of(HamburgerModel(target.llama, tiny_checkpoint()), 0.5, target)
    slots = max(len(ids) for ids, _ in mixed_answers) + 4
    num_bytes = slots * target.llama.new_cache(1).bytes_per_slot
    widths = []
    together = type(target.llama).forward_together
    target.llama.forward_together = lambda sequences, **rest: (
        widths.append(len(sequences)),
        together(target.llama, sequences, **rest),
    )[1]
    counted = []
    for cache_bytes, is_roomy in ((2**30, True), (3 * num_bytes - 1, False)):
        widths.clear()
        monkeypatch.setattr(lockstep, "CACHE_BYTES", cache_bytes)
        walks = measure(method, mixed_answers, CONFIDENCES)
        counted.append([without_decisions(part) for walk in walks for part in walk])
        assert (max(widths) > 2) == is_roomy
    assert counted[0] == counted[1]
    monkeypatch.setattr(lockstep, "CACHE_BYTES", 1)
    assert lockstep.most_at_once(target.llama, slots) == 1


def test_an_error_of_one_sequence_reaches_the_caller():
    def failing():
        raise RuntimeError("no such token")
        yield

    with pytest.raises(RuntimeError, match="no such token"):
        run_side_by_side([failing])


def test_reliability_sorts_decisions_into_tenths_and_weighs_their_distances():
    decisions = [(0.05, False), (0.1, True), (0.19, False), (0.95, True), (1.0, True), (0.92, False)]
    curve = reliability(decisions)
    assert [part.count for part in curve.bins] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 3]
    assert [(part.low, part.high) for part in curve.bins][:2] == [(0.0, 0.1), (0.1, 0.2)]
    assert curve.bins[1].mean_probability == pytest.approx(0.145)
    assert curve.bins[1].share_right == 0.5
    assert curve.bins[2].share_right is None
    wanted = (1 * 0.05 + 2 * abs(0.145 - 0.5) + 3 * abs(2.87 / 3 - 2 / 3)) / 6
    assert curve.ece == pytest.approx(wanted)
    assert curve.count == 6
    assert reliability([]) is None
    table = markdown_table(curve)
    assert table[3] == "| 0.1 to 0.2 | 2 | 0.145 | 0.500 |"
    assert table[4] == "| 0.2 to 0.3 | 0 | – | – |"
    assert table[-1] == f"| all | 6 | expected calibration error | {wanted:.3f} |"
