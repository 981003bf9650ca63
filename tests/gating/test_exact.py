"""The hard gate: what was planted must show, whatever machine looks."""

import dataclasses
import json

import pytest
from click.testing import CliRunner

from hambench.cli.gate import command as gate
from hambench.engine.kvcache import KVCache
from hambench.errors import IncompleteError
from hambench.gating import baseline as exact_baseline
from hambench.gating import toy
from hambench.gating.baseline import compare_exact, format_baseline, measure_exact, read_baseline
from hambench.gating.checks import ExitCode
from hambench.gating.exact import COUNTS, answer_of, compare_answers
from hambench.records import GenerationTrace, StepRecord

METHODS = ("vanilla", "prompt_lookup")


@pytest.fixture(scope="module")
def measured():
    return measure_exact(METHODS)


def judge(base, head):
    outcome = compare_exact(base, head, name="baseline")
    primary = tuple(dataclasses.replace(check, primary=True) for check in outcome.checks)
    return dataclasses.replace(outcome, checks=primary)


def edited(baseline, cell="vanilla", index=0, **counts):
    """The baseline with some counts of one answer changed by so much."""
    answers = list(baseline.cells[cell])
    answer = answers[index]
    moved = {name: answer.counts[name] + by for name, by in counts.items()}
    answers[index] = dataclasses.replace(answer, counts={**answer.counts, **moved})
    return dataclasses.replace(baseline, cells={**baseline.cells, cell: tuple(answers)})


def verdicts(outcome, *, cell="vanilla"):
    return {c.metric: c.verdict for c in outcome.checks if c.cell == cell}


def test_the_same_code_counts_the_same_twice(measured):
    outcome = judge(measured, measure_exact(METHODS))
    assert {check.verdict for check in outcome.checks} == {"equivalent"}
    assert outcome.exit_code(strict=True) == ExitCode.FINE


def test_logits_of_the_toy_are_too_far_apart_for_rounding_to_choose(measured):
    assert measured.smallest_margin >= toy.SAFE_MARGIN
    # and the watch itself works: it saw real gaps, not an empty minimum
    assert measured.smallest_margin < 1


def test_the_toy_exercises_both_acceptance_and_rejection(measured):
    counts = [answer.counts for answer in measured.cells["prompt_lookup"]]
    drafted, accepted = (sum(c[name] for c in counts) for name in ("num_drafted", "num_accepted"))
    assert 0 < accepted < drafted


def test_the_toy_hamburger_emits_several_tokens_a_slot_and_the_same_ones_twice():
    first, second = (measure_exact(("hamburger[c=0.5]",)) for _ in range(2))
    assert first == second
    (answers,) = first.cells.values()
    for answer in answers:
        assert answer.counts["num_decode_steps"] < answer.counts["num_tokens"] - 1
        assert answer.counts["num_micro_forwards"] > 0


def test_lossless_methods_agree_token_by_token(measured):
    ids = [[answer.token_ids for answer in answers] for answers in measured.cells.values()]
    assert all(each == ids[0] for each in ids)


def test_a_baseline_file_reads_back_as_it_was_and_shows_an_answer_a_line(measured, tmp_path):
    path = tmp_path / "exact.json"
    path.write_text(format_baseline(measured))
    assert read_baseline(path) == measured
    assert sum("sample_id" in line for line in path.read_text().splitlines()) == 2 * len(toy.prompts())


@pytest.mark.parametrize("step", range(4))
def test_one_byte_too_many_at_any_single_step_shows(step):
    steps = [StepRecord(tokens=(i,), seconds=1.0, kv_slots=i + 1, kv_bytes=100 * (i + 1)) for i in range(4)]
    base = GenerationTrace(prompt_tokens=1, steps=tuple(steps), finish="length")
    steps[step] = dataclasses.replace(steps[step], kv_bytes=steps[step].kv_bytes + 1)
    head = dataclasses.replace(base, steps=tuple(steps))
    answers = [[answer_of(t, sample_id="a", prompt_hash="h")] for t in (base, head)]
    checks = compare_answers("vanilla", *answers)
    assert "kv_byte_steps" in {check.metric for check in checks if check.verdict == "regressed"}


@pytest.mark.parametrize(
    ("name", "changed"), [("bytes_used", "kv_bytes"), ("slots", "num_kv_slots")], ids=["byte", "slot"]
)
def test_a_cache_that_is_one_too_large_is_caught_in_the_real_loop(measured, monkeypatch, name, changed):
    truth = getattr(KVCache, name)
    if name == "slots":
        # the counter as a method reports it; the loop's own reading of it would break decoding itself
        import hambench.methods.vanilla as vanilla

        usage = vanilla.KVUsage
        monkeypatch.setattr(vanilla, "KVUsage", lambda slots, size: usage(slots + 1, size))
    else:
        monkeypatch.setattr(KVCache, name, property(lambda cache: truth.fget(cache) + 1))
    outcome = judge(measured, measure_exact(METHODS))
    assert verdicts(outcome)[changed] == "regressed"
    assert verdicts(outcome)["token_ids"] == "equivalent"
    assert outcome.exit_code() == ExitCode.REGRESSED


@pytest.mark.parametrize("metric", COUNTS)
def test_every_count_is_compared(measured, metric):
    outcome = judge(measured, edited(measured, **{metric: 1}))
    assert verdicts(outcome)[metric] in ("regressed", "improved")
    assert sum(verdict != "equivalent" for verdict in verdicts(outcome).values()) == 1


def test_one_flipped_token_is_named_with_its_place(measured):
    answers = list(measured.cells["vanilla"])
    ids = list(answers[2].token_ids)
    ids[7] += 1
    answers[2] = dataclasses.replace(answers[2], token_ids=tuple(ids))
    head = dataclasses.replace(measured, cells={**measured.cells, "vanilla": tuple(answers)})
    outcome = judge(measured, head)
    check = next(c for c in outcome.checks if c.metric == "token_ids" and c.cell == "vanilla")
    assert check.verdict == "regressed"
    assert f"{answers[2].sample_id} from token 7" in check.reason
    assert outcome.exit_code() == ExitCode.REGRESSED


def test_one_answer_that_got_worse_is_not_paid_for_by_another(measured):
    head = edited(edited(measured, index=0, num_kv_slots=+1), index=1, num_kv_slots=-5)
    assert verdicts(judge(measured, head))["num_kv_slots"] == "regressed"


def test_an_improvement_passes_but_not_when_strict(measured):
    outcome = judge(measured, edited(measured, num_kv_slots=-1))
    assert verdicts(outcome)["num_kv_slots"] == "improved"
    assert outcome.exit_code() == ExitCode.FINE
    assert outcome.exit_code(strict=True) == ExitCode.UNDECIDED


def test_swapping_the_sides_mirrors_the_verdict(measured):
    head = edited(measured, num_accepted=-3, kv_bytes=+8)
    there, back = verdicts(judge(measured, head)), verdicts(judge(head, measured))
    mirror = {"regressed": "improved", "improved": "regressed", "equivalent": "equivalent"}
    assert {m: mirror[v] for m, v in there.items()} == back
    assert "regressed" in there.values()


def test_a_base_of_zero_has_a_verdict_and_no_ratio(measured):
    head = edited(measured, num_draft_forwards=2)
    check = next(c for c in judge(measured, head).checks if c.metric == "num_draft_forwards")
    assert check.base == 0
    assert check.effect is None
    assert check.verdict == "regressed"


@pytest.mark.parametrize("gone", ["method", "answer", "renamed", "empty", "all"])
def test_what_was_not_measured_never_passes(measured, gone):
    cells = dict(measured.cells)
    first, *rest = cells["vanilla"]
    if gone == "method":
        del cells["vanilla"]
    elif gone == "answer":
        cells["vanilla"] = tuple(rest)
    elif gone == "renamed":
        cells["vanilla"] = (dataclasses.replace(first, sample_id="toy/other"), *rest)
    elif gone == "empty":
        cells["vanilla"] = ()
    else:
        cells = {}
    outcome = judge(measured, dataclasses.replace(measured, cells=cells))
    assert set(verdicts(outcome).values()) == {"not comparable"}
    assert outcome.exit_code() == ExitCode.INCOMPLETE


def test_other_work_is_not_compared(measured):
    with pytest.raises(IncompleteError, match="different prompts"):
        judge(measured, dataclasses.replace(measured, workload="0" * 16))


def test_ids_that_need_not_agree_prove_nothing_and_equal_answers_still_count():
    def answers(ids, kv):
        steps = tuple(StepRecord(tokens=(i,), seconds=1.0, kv_slots=1, kv_bytes=kv) for i in ids)
        trace = GenerationTrace(prompt_tokens=1, steps=steps, finish="length")
        return answer_of(trace, sample_id=str(ids[0]), prompt_hash="h")

    base = [answers([1, 2], 10), answers([5, 6], 10)]
    head = [answers([1, 3], 99), answers([5, 6], 11)]
    checks = {c.metric: c for c in compare_answers("vanilla", base, head, same_numerics=False)}
    assert checks["token_ids"].verdict == "inconclusive"
    assert checks["kv_bytes"].verdict == "regressed"
    assert (checks["kv_bytes"].base, checks["kv_bytes"].head) == (10, 11)


@pytest.fixture
def project(tmp_path, measured):
    (tmp_path / "hambench.toml").write_text(
        '[gate.exact]\nbaseline = "ci/exact.json"\nmethods = ["vanilla", "prompt_lookup"]\n'
    )
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci/exact.json").write_text(format_baseline(measured))
    return tmp_path


@pytest.fixture
def counted_once(measured, monkeypatch):
    """The command judges these counts instead of decoding again."""
    monkeypatch.setattr("hambench.gating.gate.measure_exact", lambda methods: measured)


def run_gate(project, *words):
    return CliRunner().invoke(gate, ["--config", str(project / "hambench.toml"), *words])


def test_the_command_passes_where_nothing_changed(project, counted_once):
    result = run_gate(project, "--junit", str(project / "out/j.xml"))
    assert result.exit_code == 0, result.output
    assert "No regression" in result.output
    assert (project / "out/j.xml").is_file()


def test_the_command_fails_on_one_byte(project, counted_once, measured):
    (project / "ci/exact.json").write_text(format_baseline(edited(measured, kv_bytes=-1)))
    result = run_gate(project)
    assert result.exit_code == 1
    assert "kv_bytes of vanilla" in result.output


def test_a_missing_baseline_is_incomplete_and_says_how_to_make_one(project, counted_once):
    (project / "ci/exact.json").unlink()
    result = run_gate(project, "--markdown", str(project / "m.md"))
    assert result.exit_code == 3
    assert "--update-baseline" in result.output
    # a job that posts the file must not post yesterday's
    assert "No deciding check was measured" in (project / "m.md").read_text()


def test_a_broken_baseline_is_a_usage_error(project, counted_once, monkeypatch, capsys):
    import hambench.cli

    (project / "ci/exact.json").write_text(json.dumps({"schema_version": 1, "cells": 3}))
    with pytest.raises(SystemExit) as exit_:
        hambench.cli.main(["gate", "--config", str(project / "hambench.toml")])
    assert exit_.value.code == 2
    assert "is not a baseline" in capsys.readouterr().err


def test_a_method_that_crashes_is_code_5(project, monkeypatch):
    def crash(*args, **kwargs):
        raise RuntimeError("planted")

    monkeypatch.setattr("hambench.engine.loop.generate", crash)
    result = run_gate(project)
    assert result.exit_code == 5
    assert "planted" in result.output


def test_exit_codes_reach_the_shell_through_the_program_itself(project, counted_once, measured):
    import hambench.cli

    (project / "ci/exact.json").write_text(format_baseline(edited(measured, kv_bytes=-1)))
    with pytest.raises(SystemExit) as exit_:
        hambench.cli.main(["gate", "--config", str(project / "hambench.toml")])
    assert exit_.value.code == 1


def test_accepting_the_new_counts_makes_the_gate_pass(project, monkeypatch, measured):
    monkeypatch.setattr(
        "hambench.gating.gate.measure_exact", lambda methods: edited(measured, num_kv_slots=4)
    )
    assert run_gate(project).exit_code == 1
    assert run_gate(project, "--update-baseline").exit_code == 0
    assert run_gate(project).exit_code == 0


def test_a_baseline_whose_ids_rounding_could_change_is_refused(project, monkeypatch, measured):
    narrow = dataclasses.replace(measured, smallest_margin=1e-5)
    monkeypatch.setattr("hambench.gating.gate.measure_exact", lambda methods: narrow)
    result = run_gate(project, "--update-baseline")
    assert "another machine could choose a different token" in str(result.exception)


def test_the_baseline_module_names_methods_that_exist():
    from hambench.runner.sweep import Sweep

    cells = (
        Sweep(model="toy", methods=exact_baseline.default_methods(), dtype="float32")
        .expand(ask_availability=False)
        .cells
    )
    assert len(cells) == len(exact_baseline.default_methods())
