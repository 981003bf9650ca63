"""The judgement of HAMburger weights: interpolation, intervals, regret as runs judge it, and the command."""

import json

import numpy as np
import pytest
from cli_calls import invoke
from fakes import TINY_SHAPE, random_weights, save_tiny_model, tiny_target
from fakes_hamburger import save_tiny_hamburger, tiny_checkpoint

from hambench.analysis import fidelity
from hambench.bench.hamburger.text import as_json, lines_of
from hambench.bench.hamburger.weights import judge_weights, next_token_at, rate
from hambench.decoding import SamplingParams
from hambench.engine.loop import generate
from hambench.errors import DataError
from hambench.methods.hamburger import HamburgerConfig
from hambench.methods.hamburger.judging.agreement import Agreement
from hambench.methods.hamburger.method import build
from hambench.records import Fidelity
from hambench.runner.judge import read_answers

PROMPTS = ([5, 6, 7, 80, 9], [100, 3, 44], [9, 9, 200, 17, 31, 2], [50, 60, 70, 80])


@pytest.fixture(scope="module")
def judged_case(tmp_path_factory):
    """A target, weights, and the target's own answers."""
    target = tiny_target()
    weights = save_tiny_hamburger(tmp_path_factory.mktemp("weights") / "weights")
    control = build(HamburgerConfig(confidence=1.1, checkpoint=str(weights)), target)
    answers = []
    for number, prompt in enumerate(PROMPTS):
        trace = generate(control, prompt, SamplingParams(max_new_tokens=20 + number))
        answers.append(([*prompt, *trace.token_ids], len(prompt)))
    return target, str(weights), answers


def counted(confidence, *answers):
    """Agreement per answer from (tokens, macro_steps, same_firsts, firsts)."""
    return [
        Agreement(
            confidence=confidence,
            tokens=tokens,
            macro_steps=steps,
            same=0,
            same_of_base=0,
            same_firsts=same,
            firsts=firsts,
        )
        for tokens, steps, same, firsts in answers
    ]


def test_next_token_agreement_is_interpolated_between_the_nearest_m():
    walks = [
        counted(0.9, (10, 10, 0, 0), (12, 12, 0, 0), (11, 11, 0, 0)),
        counted(0.8, (12, 10, 9, 10), (11, 10, 9, 10), (13, 10, 6, 10)),
        counted(0.5, (14, 10, 7, 10), (16, 10, 6, 10), (12, 10, 5, 10)),
        counted(0.3, (20, 10, 1, 10), (20, 10, 1, 10), (20, 10, 1, 10)),
    ]
    # m 1.2 with 0.8, m 1.4 with 0.6, m 2 with 0.1; where nothing was merged there is no point
    assert next_token_at(walks, 1.3).value == pytest.approx(0.7)
    assert next_token_at(walks, 1.25).value == pytest.approx(0.75)
    assert next_token_at(walks, 1.7).value == pytest.approx(0.35)
    assert next_token_at(walks, 1.1) is None
    assert next_token_at(walks, 2.1) is None
    assert next_token_at(list(reversed(walks)), 1.3) == next_token_at(walks, 1.3)


def test_the_interval_of_an_interpolated_agreement_covers_the_truth_over_draws_of_answers():
    rng = np.random.default_rng(0)
    num, inside, widths = 30, 0, []
    for _ in range(300):
        low, high = [], []
        for _ in range(num):
            own = rng.beta(12, 8)
            low.append((48, 40, rng.binomial(40, min(1, own + 0.1)), 40))
            high.append((56, 40, rng.binomial(40, max(0, own - 0.1)), 40))
        found = next_token_at([counted(0.8, *low), counted(0.5, *high)], 1.3)
        assert found.low < found.value < found.high
        inside += found.low <= 0.6 <= found.high
        widths.append(found.high - found.low)
    assert 0.92 <= inside / 300 <= 0.99
    assert np.mean(widths) < 0.15


def test_shares_have_intervals_over_answers_that_were_asked():
    share = rate([3, 0, 4, 2], [4, 0, 5, 5])
    assert share.value == pytest.approx(9 / 14)
    assert share.n == 3
    assert share.low < share.value < share.high
    assert rate([0, 0], [0, 0]) is None
    assert rate([1], [2]).low is None


def test_free_running_figures_are_those_of_runs(judged_case):
    target, weights, answers = judged_case
    judged = judge_weights(target, answers, checkpoint=weights, confidences=(0.4, 0.6, 1.1), max_tokens=18)
    assert len(judged.free_running) == 3
    for free in judged.free_running:
        method = build(HamburgerConfig(confidence=free.confidence, checkpoint=weights), target)
        traces = [
            generate(method, prompt, SamplingParams(max_new_tokens=18), eos_ids=target.eos_ids)
            for prompt in PROMPTS
        ]
        items = []
        for number, (prompt, trace) in enumerate(zip(PROMPTS, traces, strict=True)):
            (reading,) = read_answers(target, prompt, [trace.token_ids])
            items.append(
                Fidelity(
                    sample_id=str(number),
                    answer="0",
                    regrets=reading.regrets,
                    logprobs=reading.logprobs,
                    gaps=reading.gaps,
                )
            )
        assert free.regret.value == pytest.approx(fidelity.regret(items).value)
        assert free.agreement == fidelity.agreement(items)
        assert free.repetitive == sum(map(fidelity.is_repetitive, traces))
        assert free.tokens == sum(len(trace.token_ids) for trace in traces)
        assert free.m.value == pytest.approx(free.tokens / sum(len(trace.steps) for trace in traces))
    control = judged.free_running[-1]
    assert (control.m.value, control.regret.value, control.agreement) == (1.0, 0.0, 1.0)
    assert judged.free_running[0].regret.value > 0


def test_every_figure_follows_from_the_counts_of_the_answers(judged_case):
    target, weights, answers = judged_case
    judged = judge_weights(target, answers, checkpoint=weights, confidences=(0.4, 0.6), max_tokens=18)
    told = json.loads(json.dumps(as_json(judged)))

    def total(counts, name):
        assert len(counts) == len(answers)
        return sum(each[name] for each in counts)

    for each in told["along"]:
        counts = each["counts"]
        assert each["m"]["value"] == pytest.approx(total(counts, "tokens") / total(counts, "macro_steps"))
        assert each["same"]["value"] == pytest.approx(total(counts, "same") / total(counts, "tokens"))
        if each["next_token"] is not None:
            share = total(counts, "same_firsts") / total(counts, "firsts")
            assert each["next_token"]["value"] == pytest.approx(share)
    for each in told["free_running"]:
        counts = each["counts"]
        tokens = total(counts, "tokens")
        assert each["m"]["value"] == pytest.approx(tokens / total(counts, "macro_steps"))
        assert each["regret"]["value"] == pytest.approx(total(counts, "regret") / tokens)
        assert each["agreement"] == pytest.approx(total(counts, "agreed") / tokens)
    counts = told["token_counts"]
    assert told["base_again"] == pytest.approx(total(counts, "same_of_base") / total(counts, "tokens"))
    for place, share in told["token_accuracy"].items():
        right, asked = (sum(each[name][int(place) - 2] for each in counts) for name in ("right", "asked"))
        assert share["value"] == pytest.approx(right / asked)


def test_the_base_that_chooses_again_is_the_one_without_the_changes_of_the_weights(judged_case, tmp_path):
    target, _, answers = judged_case
    base = {f"base.{name}": tensor for name, tensor in random_weights(TINY_SHAPE, 5).items()}
    tensors = {**tiny_checkpoint().tensors, **base}
    changed = save_tiny_hamburger(tmp_path, base_weights="full", tensors=tensors)
    judged = judge_weights(target, answers, checkpoint=str(changed), confidences=(1.1,), max_tokens=12)
    assert judged.base_again == 1.0
    assert judged.along[-1].same.value < 0.5, "the weights' own base answers otherwise"


def test_confidences_are_added_until_both_m_lie_between_two_of_them(judged_case):
    target, weights, answers = judged_case
    judged = judge_weights(target, answers, checkpoint=weights, confidences=(0.999,), max_tokens=18)
    assert [each.confidence for each in judged.free_running] == [0.999]
    walked = [each.confidence for each in judged.along]
    assert walked == sorted(walked)
    m = [each.m.value for each in judged.along if each.next_token is not None]
    for wanted in (1.25, 1.5):
        assert min(m) <= wanted <= max(m)
        assert judged.next_token_at_m[f"{wanted:g}"] is not None
    enough = judge_weights(target, answers, checkpoint=weights, confidences=walked, max_tokens=18)
    assert enough.along == judged.along, "nothing is added where m lies between near confidences"
    assert judged.base_again == 1.0
    assert list(judged.token_accuracy) == ["2", "3", "4"]
    assert judged.tokens == sum(len(ids[prompt:][:18]) for ids, prompt in answers)


def test_the_curve_is_that_of_the_confidence_nearest_to_seven_tenths(judged_case):
    target, weights, answers = judged_case
    judged = judge_weights(
        target, answers, checkpoint=weights, confidences=(0.1, 0.4, 0.65, 1.1), max_tokens=12
    )
    assert judged.reliability_confidence == 0.65
    (own,) = [each.reliability for each in judged.along if each.confidence == 0.65]
    assert judged.reliability == own
    text = "\n".join(lines_of(judged))
    assert "the stop head along the answers at confidence 0.65" in text
    assert f"| all | {own.count:,} | expected calibration error | {own.ece:.3f} |" in text
    alone = judge_weights(target, answers, checkpoint=weights, confidences=(1.1,), max_tokens=2)
    assert alone.along[-1].reliability is None


def test_answers_that_do_not_fit_or_are_not_there_are_refused(judged_case):
    target, weights, _ = judged_case
    with pytest.raises(DataError, match="there is no answer"):
        judge_weights(target, [], checkpoint=weights)
    fits = ([5, 6, 7], 2)
    with pytest.raises(
        DataError,
        match=r"answer 2: a prompt with 64 tokens takes 578 positions, tiny-random has 512; lower --tok",
    ):
        judge_weights(target, [fits, ([7] * 520, 510)], checkpoint=weights)
    for unknown in (-1, 9999):
        with pytest.raises(
            DataError, match=rf"answer 2 has token id {unknown}, tiny-random has 0\.\.\d+; give"
        ):
            judge_weights(target, [fits, ([5, 6, unknown], 2)], checkpoint=weights)


def test_the_command_prints_json_and_refuses_other_confidences(tmp_path, capsys, judged_case):
    _, weights, answers = judged_case
    folder = save_tiny_model(tmp_path / "tiny")
    path = tmp_path / "held_out.jsonl"
    rows = [{"prompt_ids": list(ids[:p]), "response_ids": list(ids[p:])} for ids, p in answers]
    path.write_text("\n".join(map(json.dumps, rows)))
    call = ["hamburger", "measure", "--model", str(folder), "--answers", str(path), "--checkpoint", weights]
    options = ["--limit", "3", "--tokens", "10", "--confidence", "0.5,0.9,0.5", "--json"]
    code, out, _ = invoke(capsys, *call, *options)
    assert code == 0
    told = json.loads(out)
    assert told["answers"] == 3
    assert told["answers_from"] == "held_out.jsonl"
    assert told["confidences"] == [0.5, 0.9]
    assert {"m", "same", "next_token", "reliability"} <= set(told["along"][0])
    assert len(told["along"][0]["reliability"]["bins"]) == 10
    assert set(told["next_token_at_m"]) == {"1.25", "1.5"}
    assert {"regret", "m", "agreement"} <= set(told["free_running"][0])
    for bad in ("0.5,x", "nan", "-1"):
        code, _, error = invoke(capsys, *call, "--confidence", bad)
        assert code == 2
        assert f"got {bad!r}" in error
