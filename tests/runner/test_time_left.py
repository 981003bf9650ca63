"""Samples that a run with a budget adds while time is left: by what samples really took, and never past the budget."""

import dataclasses
import json
from collections import Counter
from types import SimpleNamespace

import pytest
from synthetic import task_samples

from hambench.cli.run import _budget_lines
from hambench.records import Cell
from hambench.runner import start
from hambench.runner.budget import MARGIN
from hambench.runner.forecast.plan import plan_run
from hambench.runner.forecast.time_left import TimeLeft
from hambench.runner.start import RunRequest, resume_run, start_run
from hambench.runner.sweep import Sweep
from hambench.runner.work import NUM_TIMED_PROMPTS, Workload
from hambench.store import RunWriter, load_run

CELLS = [Cell(method="vanilla", label=label, knobs={}, model="m", dtype="float32") for label in ("a", "b")]


BOUNDS = {"x": 10.0, "y": 10.0, "dear": 80.0}


def bound(sample, num_before, *, is_judged=True):
    return BOUNDS[sample.task] + (4.0 if is_judged else 0.0)


class Machine:
    """A machine with a clock of its own on which a sample takes a part of its bound."""

    def __init__(self, share):
        self.now, self.share, self.answered = 100.0, share, []

    def clock(self):
        return self.now

    def run(self, left, chosen, *, share_at=lambda num: None):
        left.begin()
        while chosen:
            for sample in chosen:
                share = share_at(len(self.answered))
                self.now += (self.share if share is None else share) * bound(sample, 0)
                self.answered.append(sample)
            chosen = left()


def time_left(machine, rows, num_first, seconds, **options):
    chosen = rows[:num_first]
    return TimeLeft(rows, chosen, bound, machine.now + seconds, clock=machine.clock, **options), chosen


def test_samples_get_the_time_that_bounds_left_unused():
    """Bounds of 14 s for a budget of 192 s are 10 samples with their margin, which take 70 s."""
    machine, rows = Machine(share=0.5), task_samples(x=100)
    assert MARGIN * 14 * 10 < 192 < MARGIN * 14 * 11
    machine.run(*time_left(machine, rows, 10, 192.0))
    spent = machine.now - 100.0
    assert 0.8 * 192 < spent <= 192
    # the next one would have fitted only if it took no longer than half its bound
    assert 192 - spent < MARGIN * 0.5 * 14


@pytest.mark.parametrize("share", [0.3, 1.0, 1.6])
def test_a_budget_is_kept_on_a_machine_that_is_faster_or_slower_than_calibrated(share):
    machine, rows = Machine(share), task_samples(x=100)
    machine.run(*time_left(machine, rows, 4, 300.0))
    assert machine.now - 100.0 <= 300.0
    assert machine.now - 100.0 > 300.0 - MARGIN * share * 14


def test_a_machine_that_becomes_slower_is_foretold_as_slow_as_it_has_been():
    machine, rows = Machine(share=0.4), task_samples(x=100)
    machine.run(*time_left(machine, rows, 4, 300.0), share_at=lambda num: 1.2 if num >= 12 else None)
    # the first slow sample was foretold as a fast one: no more than that one may pass
    assert machine.now - 100.0 <= 300.0
    slow, rows = Machine(share=0.4), task_samples(x=100)
    left, chosen = time_left(slow, rows, 4, 36.0)
    slow.run(left, chosen, share_at=lambda num: 1.2 if num >= 4 else None)
    assert len(slow.answered) == 5
    assert slow.now - 100.0 - 36.0 <= (1.2 - MARGIN * 0.4) * 14


@pytest.mark.parametrize(("seconds", "tasks"), [(80.0, "x" * 9), (200.0, "xdxdxx")])
def test_a_task_without_an_answer_so_far_is_foretold_by_its_bound(seconds, tasks):
    """Answers of one task that end early say nothing of another's, which may all go to their limit."""
    machine, rows = Machine(share=0.3), task_samples(x=9, dear=9)
    left, chosen = time_left(machine, rows, 1, seconds)
    left.begin()
    answered = ""
    while chosen:
        (sample,) = chosen
        machine.now += (1.0 if sample.task == "dear" else 0.3) * bound(sample, 0)
        answered += sample.task[0]
        chosen = left()
    assert machine.now - 100.0 <= seconds
    assert answered == tasks


def test_tasks_take_turns_and_one_that_is_too_dear_does_not_stop_the_others():
    machine, rows = Machine(share=1.0), task_samples(x=9, dear=9, y=9)
    chosen = [rows[0], rows[18]]
    left = TimeLeft(rows, chosen, bound, machine.now + 100.0, clock=machine.clock)
    machine.run(left, chosen)
    assert [sample.sample_id for sample in machine.answered] == [
        "s/x/0",
        "s/y/0",
        "s/x/1",
        "s/y/1",
        "s/x/2",
        "s/y/2",
    ]


def test_later_repeats_and_judging_to_come_keep_their_time():
    machine, rows = Machine(share=1.0), task_samples(x=100)
    left, chosen = time_left(machine, rows, 2, 300.0, repeats=3)
    machine.run(left, chosen)
    num = len(machine.answered)
    # two repeats more of all of them
    assert machine.now + 2 * num * 14.0 <= 100 + 300.0
    assert machine.now + 2 * num * 14.0 > 100 + 300.0 - 2 * 3 * MARGIN * 14
    later, rows = Machine(share=10 / 14), task_samples(x=100)
    left, chosen = time_left(later, rows, 2, 300.0, is_judged_after=True)
    later.run(left, chosen)
    num = len(later.answered)
    assert later.now + MARGIN * 4.0 * num <= 100 + 300.0
    assert later.now + MARGIN * 4.0 * (num + 1) + MARGIN * 10 > 100 + 300.0


def test_judging_to_come_is_as_slow_as_the_answers_were():
    """A machine that takes twice the bounds judges a sample in 8 s, not in 4."""
    machine, rows = Machine(share=2 * 10 / 14), task_samples(x=100)
    left, chosen = time_left(machine, rows, 2, 300.0, is_judged_after=True)
    machine.run(left, chosen)
    assert machine.now + 2 * 4.0 * len(machine.answered) <= 100 + 300.0


def test_blocks_of_a_batch_are_filled_and_other_suites_are_left_out():
    machine, rows = Machine(share=0.5), task_samples(x=20)
    other = [dataclasses.replace(sample, suite="t", sample_id=f"t/{sample.sample_id}") for sample in rows]
    left, _ = time_left(machine, rows + other, 4, 1e6, most=8)
    left.begin()
    machine.now += 28.0
    taken = [left() for _ in range(4)]
    assert [len(block) for block in taken] == [8, 8, 0, 0]
    assert {sample.suite for block in taken for sample in block} == {"s"}


@pytest.mark.parametrize(("num_fitting", "num_taken"), [(5.5, 0), (8.5, 8)])
def test_a_block_that_does_not_fill_the_largest_batch_is_not_begun(num_fitting, num_taken):
    machine, rows = Machine(share=1.0), task_samples(x=40)
    left, chosen = time_left(machine, rows, 2, 28.0 + MARGIN * 14 * num_fitting, most=32, fewest=8)
    machine.run(left, chosen)
    assert machine.answered == rows[: 2 + num_taken]


def test_the_last_samples_of_a_suite_may_be_fewer_than_a_batch():
    machine, rows = Machine(share=1.0), task_samples(x=11)
    machine.run(*time_left(machine, rows, 8, 1e6, most=32, fewest=8))
    assert machine.answered == rows


class Rows:
    """Gives the rest two at a time."""

    def __init__(self, rows):
        self.rows, self.began = rows, 0

    def begin(self):
        self.began += 1

    def __call__(self):
        given, self.rows = self.rows[:2], self.rows[2:]
        return given


@pytest.mark.parametrize("repeats", [1, 3])
def test_added_samples_are_stored_first_and_every_cell_answers_each_once_per_repeat(repeats):
    rows = task_samples(x=7)
    more, stored, jobs = Rows(rows[2:]), [], []
    work = Workload.of(CELLS, rows[:2], repeats, more=more)
    for turn in work.turns(stored.extend):
        assert len({job.cell.label for job in turn}) == 1
        # nothing is asked of a sample that a killed run would not know
        assert {job.sample.sample_id for job in turn} <= {row.sample_id for row in (*rows[:2], *stored)}
        jobs += turn
    assert (more.began, stored) == (1, rows[2:])
    assert Counter(job.key for job in jobs) == {
        (cell.label, row.sample_id, repeat): 1 for cell in CELLS for row in rows for repeat in range(repeats)
    }
    assert [job.repeat for job in jobs] == sorted(job.repeat for job in jobs)
    assert len(jobs) == work.num_jobs
    # cells go on taking turns at coming first
    firsts = [jobs[index].cell.label for index in range(0, 14, 2)]
    assert firsts == ["a", "b", "a", "b", "a", "b", "a"]
    timed = {job.sample.sample_id for job in jobs if job.reads_prompt}
    assert timed == {row.sample_id for row in rows[:NUM_TIMED_PROMPTS]}


class Uncounted(tuple):
    """Jobs of a long run, which nobody should go through once per record."""

    def __iter__(self):
        raise AssertionError("the jobs were gone through")


def test_how_many_jobs_there_are_is_known_without_going_through_them():
    rows, told = task_samples(x=3), []
    work = Workload.of(CELLS, rows[:2], 2, progress=lambda *each: told.append(each[1:]))
    work = dataclasses.replace(work, jobs=Uncounted(work.jobs))
    work.added.append(rows[2])
    assert work.num_jobs == 3 * 2 * 2
    work.tell(work.jobs[0], 1)
    assert told == [(1, 12)]


def request(tiny_model, rows, **changes):
    return RunRequest(
        sweep=Sweep(model=str(tiny_model), methods=("vanilla", "prompt_lookup"), dtype="float32"),
        suite="longbench",
        tasks=("lcc", "multifieldqa_en"),
        data=rows,
        max_new_tokens=4,
        limit=4,
        budget_s=3600,
        **changes,
    )


@pytest.fixture
def two_first(monkeypatch):
    """The bounds choose two samples; the rest is added on the way."""
    monkeypatch.setattr("hambench.runner.budget.fit_budget", lambda rows, *_, **__: tuple(rows[:2]))


def test_a_run_with_time_left_answers_scores_and_judges_what_it_adds(tiny_model, rows, tmp_path, two_first):
    told = []
    run = start_run(request(tiny_model, rows), tmp_path / "run", progress=lambda *each: told.append(each[1:]))
    full = start_run(
        dataclasses.replace(request(tiny_model, rows), budget_s=None), tmp_path / "full", progress=None
    )
    assert set(run.samples) == set(full.samples)
    assert run.header.num_samples == 2
    assert run.complete
    assert len(run.measured) == len(full.measured)
    assert {(score.cell, score.sample_id) for score in run.scores} == {
        (score.cell, score.sample_id) for score in full.scores
    }
    assert all(run.judged(record) is not None for record in run.measured)
    texts = [{(r.cell, r.sample_id): r.text for r in each.measured} for each in (run, full)]
    assert texts[0] == texts[1]
    (budget,) = [item for item in run.telemetry if item["kind"] == "budget"]
    (answering,) = [item for item in run.telemetry if item["kind"] == "samples"]
    assert (budget["num_first"], budget["num_added"]) == (2, len(full.samples) - 2)
    assert 0 < answering["seconds"] < budget["spent_s"]
    assert told[-1] == (len(full.measured), len(full.measured))


def test_what_is_left_is_asked_for_when_a_samples_answers_are_judged(
    tiny_model, rows, tmp_path, two_first, monkeypatch
):
    """Judging takes time too: what comes after it must not be promised twice."""
    judged, asked = set(), []
    append, add = RunWriter.append_fidelity, RunWriter.append_samples

    def judging(self, judgements):
        judgements = list(judgements)
        judged.update(item.sample_id for item in judgements)
        append(self, judgements)

    def adding(self, rows):
        asked.append(len(judged))
        add(self, rows)

    monkeypatch.setattr(RunWriter, "append_fidelity", judging)
    monkeypatch.setattr(RunWriter, "append_samples", adding)
    run = start_run(request(tiny_model, rows), tmp_path / "run")
    assert asked == list(range(2, len(run.samples)))


def test_a_run_killed_among_added_samples_is_finished_with_all_of_them(tiny_model, rows, tmp_path, two_first):
    def stop(job, num_done, num_jobs):
        if num_done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_run(request(tiny_model, rows), tmp_path / "run", progress=stop)
    begun = load_run(tmp_path / "run")
    assert len(begun.samples) == 4
    # a line that a kill tore belongs to no record yet
    with (tmp_path / "run" / "prompts.jsonl").open("ab") as file:
        file.write(json.dumps({"sample_id": "torn"}).encode()[:9])
    run = resume_run(tmp_path / "run")
    assert run.complete
    assert set(run.samples) == set(begun.samples)
    assert len(run.measured) == 8
    assert (tmp_path / "run" / "prompts.jsonl").read_bytes().endswith(b"}\n")


def test_the_output_says_what_part_of_a_budget_went_to_samples():
    told = [
        {"kind": "samples", "seconds": 196.4},
        {"kind": "budget", "budget_s": 240, "spent_s": 232.6, "num_first": 9, "num_added": 21},
    ]
    assert _budget_lines(SimpleNamespace(telemetry=told)) == [
        "budget: 196 of 240 s went to samples (82%); 233 s until all was scored; 9 samples by calibrated bounds, 21 "
        "more in time that was left"
    ]
    assert _budget_lines(SimpleNamespace(telemetry=told[:1])) == []


def test_nothing_is_added_without_a_budget_or_on_a_cluster(tiny_model, rows):
    from hambench.runner.forecast.time_left import time_left as of

    prepared = start.prepare(request(tiny_model, rows))
    assert of(prepared) is not None
    for changes in ({"budget_s": None}, {"executor": "ray"}):
        asked = dataclasses.replace(prepared.request, **changes)
        assert of(dataclasses.replace(prepared, request=asked)) is None


def test_a_budget_gives_two_of_the_largest_batch_at_a_time(tiny_model, rows, monkeypatch):
    from hambench.runner.forecast import time_left as module

    asked = request(tiny_model, rows)
    asked = dataclasses.replace(asked, sweep=dataclasses.replace(asked.sweep, batches=(1, 4)))
    told = {}

    def fit(rows, *_, **options):
        told.update(options)
        return tuple(rows)

    monkeypatch.setattr("hambench.runner.budget.fit_budget", fit)
    prepared = start.prepare(asked)
    monkeypatch.setattr(module, "TimeLeft", lambda *_, **options: options)
    options = module.time_left(prepared)
    assert (told["fewest"], options["fewest"], options["most"]) == (8, 8, 16)


def test_a_plan_tells_whether_its_run_chooses_on_the_way(tiny_model, rows):
    for budget_s in (3600, None):
        asked = dataclasses.replace(request(tiny_model, rows), budget_s=budget_s)
        assert plan_run(asked).budget_s == budget_s
