"""Two stored runs: what changed is named, what is missing never passes."""

import dataclasses
import math

import pytest
from click.testing import CliRunner
from synthetic import TASKS, cells, header, simulate, write

from hambench.analysis.metrics import METRIC_CLASSES
from hambench.cli.compare import command as compare
from hambench.errors import IncompleteError
from hambench.gating.checks import ExitCode
from hambench.gating.compare import NUMERIC_KEYS, compare_runs
from hambench.gating.config import Primary, decide
from hambench.store import load_run

CELLS = tuple(cell for cell in cells() if cell.label in ("vanilla", "prompt_lookup[k=8]"))
FLOAT = tuple(dataclasses.replace(cell, dtype="float32") for cell in CELLS)


def run_of(folder, run_cells=CELLS, *, edit=None, header_changes=None, **options):
    """A simulated run, its parts changed by ``edit(samples, records, scores)`` before they are written."""
    samples, records, scores = simulate(run_cells, error_rate=0.0, **options)
    if edit is not None:
        samples, records, scores = edit(samples, records, scores)
    made = header(run_cells, num_samples=len(samples), **(header_changes or {}))
    return load_run(write(folder, made, samples, records, scores))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("base") / "run")


def judge(base, head):
    return decide(compare_runs(base, head), (), kind="compare", classes=("exact", "accuracy"))


def test_a_run_against_itself_is_fine(base):
    outcome = judge(base, base)
    assert outcome.exit_code(strict=True) == ExitCode.FINE
    assert {c.verdict for c in outcome.checks if c.metric_class != "speed"} == {"equivalent"}


def keep(wanted):
    def edit(samples, records, scores):
        kept = [s for s in samples if wanted(s)]
        ids = {s.sample_id for s in kept}
        return kept, [r for r in records if r.sample_id in ids], [s for s in scores if s.sample_id in ids]

    return edit


def renamed(samples, records, scores):
    def move(item):
        fields = {"sample_id": item.sample_id.replace("/lcc/", "/lcc2/")}
        if hasattr(item, "task"):
            fields["task"] = item.task.replace("lcc", "lcc2")
        return dataclasses.replace(item, **fields)

    return [move(s) for s in samples], [move(r) for r in records], [move(s) for s in scores]


def unanswered(samples, records, scores):
    gone = next(s.sample_id for s in samples if s.task == "lcc")
    emptied = [
        dataclasses.replace(r, trace=None, error="planted") if r.sample_id == gone else r for r in records
    ]
    return samples, emptied, [s for s in scores if s.sample_id != gone]


@pytest.mark.parametrize(
    "edit",
    [keep(lambda s: s.task != "lcc"), renamed, unanswered, keep(lambda s: s.task != "lcc" or s.doc_id > 3)],
    ids=["deleted", "renamed", "failed", "shortened"],
)
def test_a_task_that_is_not_there_is_incomplete_on_either_side(base, tmp_path, edit):
    head = run_of(tmp_path / "head", edit=edit)
    for pair in ((base, head), (head, base)):
        outcome = judge(*pair)
        assert outcome.exit_code() == ExitCode.INCOMPLETE
        assert any("lcc" in f"{c.group} {c.reason}" for c in outcome.checks if c.verdict == "not comparable")


def test_a_run_without_answers_is_incomplete(base, tmp_path):
    def emptied(samples, records, scores):
        return samples, [dataclasses.replace(r, trace=None, error="planted") for r in records], []

    with pytest.raises(IncompleteError, match="measured nothing"):
        judge(base, run_of(tmp_path / "head", edit=emptied))


def test_runs_without_a_sample_in_common_are_incomplete(base, tmp_path):
    head = run_of(tmp_path / "head", edit=keep(lambda s: s.task == "lcc"))
    other = run_of(tmp_path / "other", edit=keep(lambda s: s.task == "gov_report"))
    with pytest.raises(IncompleteError, match="no sample in common"):
        judge(head, other)


def test_an_unfinished_run_is_incomplete(base, tmp_path):
    head = run_of(tmp_path / "head", edit=lambda s, r, sc: (s, r[:-3], sc[:-3]))
    assert judge(base, head).exit_code() == ExitCode.INCOMPLETE


def test_a_cell_that_is_gone_is_incomplete_and_a_new_one_is_only_noted(base, tmp_path):
    fewer = run_of(tmp_path / "fewer", CELLS[:1])
    assert judge(base, fewer).exit_code() == ExitCode.INCOMPLETE
    more = judge(fewer, base)
    assert more.exit_code() == ExitCode.FINE
    assert any("prompt_lookup" in note and "new" in note for note in more.notes)


def grown(records, by=1):
    def grow(record):
        steps = tuple(dataclasses.replace(s, kv_bytes=s.kv_bytes + by) for s in record.trace.steps)
        return dataclasses.replace(record, trace=dataclasses.replace(record.trace, steps=steps))

    return [grow(record) for record in records]


def test_one_byte_more_of_kv_is_a_regression_whatever_the_type(base, tmp_path):
    head = run_of(tmp_path / "head", edit=lambda s, r, sc: (s, grown(r), sc))
    outcome = judge(base, head)
    assert outcome.exit_code() == ExitCode.REGRESSED
    assert {c.metric for c in outcome.checks if c.verdict == "regressed"} == {"kv_bytes", "kv_byte_steps"}
    assert judge(head, base).exit_code() == ExitCode.FINE


def other_ids(samples, records, scores):
    def flip(record):
        first, *rest = record.trace.steps
        first = dataclasses.replace(first, tokens=(first.tokens[0] + 1, *first.tokens[1:]))
        return dataclasses.replace(record, trace=dataclasses.replace(record.trace, steps=(first, *rest)))

    return samples, [flip(records[0]), *records[1:]], scores


@pytest.mark.parametrize(
    ("run_cells", "environment", "verdict"),
    [
        (FLOAT, {}, "regressed"),
        (CELLS, {}, "inconclusive"),
        (FLOAT, {"cpu": "another"}, "inconclusive"),
        (FLOAT, {"torch": "9.9"}, "inconclusive"),
    ],
    ids=["float32", "bfloat16", "other machine", "other torch"],
)
def test_other_ids_are_a_regression_only_where_equal_code_must_give_equal_ids(
    tmp_path, run_cells, environment, verdict
):
    base = run_of(tmp_path / "base", run_cells)
    changed = {**base.header.environment, **environment}
    head = run_of(tmp_path / "head", run_cells, edit=other_ids, header_changes={"environment": changed})
    ids = [c for c in judge(base, head).checks if c.metric == "token_ids" and c.cell == "vanilla"]
    assert [c.verdict for c in ids] == [verdict]


def test_another_model_is_not_compared(base, tmp_path):
    head = run_of(tmp_path / "head", header_changes={"model": {"name": "toy", "sha256": "cd" * 32}})
    outcome = judge(base, head)
    assert outcome.exit_code() == ExitCode.INCOMPLETE
    assert "the two runs used different weights" in outcome.notes


def rescored(change, cell="vanilla"):
    """An edit of the first score of a task of 0/1 scores, or of all of them."""

    def edit(samples, records, scores):
        return samples, records, [change(s) if s.cell == cell else s for s in scores]

    return edit


def accuracy(outcome, cell="vanilla", group="all"):
    return next(c for c in outcome.checks if (c.metric, c.cell, c.group) == ("accuracy", cell, group))


def other_text(samples, records, scores):
    """Ids that differ everywhere, so that equal answers don't settle the question."""
    moved = []
    for r in records:
        steps = tuple(dataclasses.replace(s, tokens=tuple(t + 1 for t in s.tokens)) for s in r.trace.steps)
        moved.append(dataclasses.replace(r, trace=dataclasses.replace(r.trace, steps=steps)))
    return samples, moved, scores


def test_one_flipped_answer_moves_the_accuracy_and_decides_nothing(base, tmp_path):
    flipped = []

    def flip(score):
        if not flipped and "humaneval" in score.sample_id:
            flipped.append(score)
            return dataclasses.replace(score, value=1.0 - score.value)
        return score

    def edit(samples, records, scores):
        return rescored(flip)(*other_text(samples, records, scores))

    check = accuracy(judge(base, run_of(tmp_path / "head", edit=edit)))
    assert check.effect.value != 0
    assert check.verdict in ("inconclusive", "equivalent")
    assert check.minimum_detectable_effect > 0


def test_answers_that_all_got_worse_are_a_regression_and_the_way_back_an_improvement(base, tmp_path):
    def edit(samples, records, scores):
        return rescored(lambda s: dataclasses.replace(s, value=0.0))(*other_text(samples, records, scores))

    head = run_of(tmp_path / "head", edit=edit)
    assert accuracy(judge(base, head)).verdict == "regressed"
    assert judge(base, head).exit_code() == ExitCode.REGRESSED
    assert accuracy(judge(head, base)).verdict == "improved"


def test_a_score_that_is_no_number_is_a_hole_and_not_a_zero(base, tmp_path):
    def broken(score):
        return (
            dataclasses.replace(score, value=None, error="planted") if "lcc/3" in score.sample_id else score
        )

    check = accuracy(judge(base, run_of(tmp_path / "head", edit=rescored(broken))))
    assert check.verdict == "not comparable"
    assert "1 sample" in check.reason


def slower(factor, cell):
    def edit(samples, records, scores):
        def slow(record):
            steps = tuple(dataclasses.replace(s, seconds=s.seconds * factor) for s in record.trace.steps)
            return dataclasses.replace(record, trace=dataclasses.replace(record.trace, steps=steps))

        return samples, [slow(r) if r.cell in cell else r for r in records], scores

    return edit


def speeds(outcome):
    return {c.cell: c for c in outcome.checks if c.metric_class == "speed"}


def test_a_method_that_got_slower_than_vanilla_shows_and_is_advice(base, tmp_path):
    head = run_of(tmp_path / "head", edit=slower(1.5, ["prompt_lookup[k=8]"]))
    outcome = judge(base, head)
    check = speeds(outcome)["prompt_lookup[k=8]"]
    assert (check.metric, check.verdict, check.primary) == ("tps_ratio", "regressed", False)
    assert check.effect.value == pytest.approx(1 / 1.5, rel=0.05)
    assert outcome.exit_code() == ExitCode.FINE


def test_a_machine_that_got_slower_leaves_the_ratio_to_vanilla_alone(base, tmp_path):
    head = run_of(tmp_path / "head", edit=slower(1.5, [cell.label for cell in CELLS]))
    assert speeds(judge(base, head))["prompt_lookup[k=8]"].verdict == "equivalent"


def test_absolute_speeds_of_two_machines_are_not_compared(base, tmp_path):
    changed = {**base.header.environment, "torch": "another"}
    head = run_of(tmp_path / "head", header_changes={"environment": changed})
    check = speeds(judge(base, head))["vanilla"]
    assert check.verdict == "not comparable"
    assert "another" in check.reason


def test_an_answer_without_a_usable_time_is_left_out_and_nothing_breaks(base, tmp_path):
    def edit(samples, records, scores):
        broken = records[0]
        steps = tuple(dataclasses.replace(s, seconds=0.0) for s in broken.trace.steps)
        trace = dataclasses.replace(broken.trace, steps=steps)
        return samples, [dataclasses.replace(broken, trace=trace), *records[1:]], scores

    outcome = judge(base, run_of(tmp_path / "head", edit=edit))
    assert outcome.exit_code() == ExitCode.FINE
    assert all(math.isfinite(c.effect.value) for c in speeds(outcome).values())


def test_numeric_keys_are_keys_of_the_fingerprint():
    from hambench.machine.fingerprint import fingerprint

    assert set(NUMERIC_KEYS) <= set(fingerprint())


def test_the_command_gives_the_exit_code_and_files(base, tmp_path):
    head = run_of(tmp_path / "head", edit=lambda s, r, sc: (s, grown(r), sc))
    words = [
        str(base.path),
        str(head.path),
        "--junit",
        str(tmp_path / "j.xml"),
        "--gab",
        str(tmp_path / "g.json"),
    ]
    with CliRunner().isolated_filesystem(tmp_path):
        result = CliRunner().invoke(compare, words)
        nothing = CliRunner().invoke(compare, [str(base.path), str(tmp_path / "nowhere")])
    assert result.exit_code == 1
    assert (tmp_path / "j.xml").is_file()
    assert (tmp_path / "g.json").is_file()
    assert nothing.exit_code == 3


@pytest.mark.parametrize("side", ["base", "head"])
@pytest.mark.parametrize("metric", ["regret", "fidelity"])
def test_a_declared_regret_that_one_side_lacks_is_incomplete(base, side, metric):
    blind = dataclasses.replace(base, fidelity={})
    pair = (blind, base) if side == "base" else (base, blind)
    outcome = compare_runs(*pair)
    checks = [check for check in outcome.checks if check.metric == "regret"]
    assert {check.cell for check in checks} == {cell.label for cell in CELLS}
    assert all(check.verdict == "not comparable" and side in check.reason for check in checks)
    decided = decide(outcome, (Primary(metric=metric),), kind="compare", classes=METRIC_CLASSES)
    assert decided.exit_code() == ExitCode.INCOMPLETE
    assert judge(*pair).exit_code() == ExitCode.FINE


@pytest.mark.parametrize("metric", ["regret", "near-exact", "accuracy", "acceptance_rate"])
def test_a_declared_metric_that_gave_no_check_is_incomplete(tmp_path, metric):
    folder = tmp_path / "run"
    bare = run_of(folder, edit=lambda s, r, _: (s, r, []))
    (folder / "fidelity.jsonl").unlink(missing_ok=True)
    (tmp_path / "hambench.toml").write_text(f'[[gate.primary]]\nmetric = "{metric}"\n', encoding="utf-8")
    words = [str(bare.path), str(bare.path), "--config", str(tmp_path / "hambench.toml")]
    result = CliRunner().invoke(compare, words)
    assert result.exit_code == ExitCode.INCOMPLETE, result.output
    assert metric in result.output


def test_a_declared_speed_is_the_ratio_to_vanilla_where_that_is_what_two_runs_give(base, tmp_path):
    head = run_of(tmp_path / "head", edit=slower(1.5, ["prompt_lookup[k=8]"]))
    declared = (Primary(metric="tps", cell="prompt_lookup*"),)
    decided = decide(compare_runs(base, head), declared, kind="compare", classes=METRIC_CLASSES)
    assert decided.exit_code() == ExitCode.REGRESSED


def test_tasks_of_the_fixture_are_those_the_tests_speak_of():
    assert {"lcc", "gov_report", "humaneval_instruct"} <= {task.name for task in TASKS}
