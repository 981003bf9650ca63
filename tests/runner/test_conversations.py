"""Conversations: the method's own answers are fed back, each turn is a sample, and no turn loses what came before."""

import dataclasses
import json

import pytest

from hambench.analysis.measurements import measure_run
from hambench.engine.text import count_thinking
from hambench.records import Cell, GenerationTrace, Sample, SampleRecord, StepRecord, answer_key
from hambench.runner.conversations import Conversations, prompt_sizes, without_begun
from hambench.runner.executors.shards import make_shards
from hambench.runner.generator import schedule
from hambench.runner.request import RunRequest
from hambench.runner.start import resume_run, start_run
from hambench.runner.sweep import Sweep
from hambench.store import RECORDS, load_run

CELL = Cell(method="vanilla", label="v", knobs={}, model="m", dtype="float32")


def turn(number, conversation="s/t/1", text="q"):
    return Sample(
        sample_id=f"{conversation}/turn-{number}",
        suite="s",
        task="t",
        category="t",
        doc_id=0,
        prompt=f"{text}{number}",
        stop=(),
        max_new_tokens=10,
        conversation=conversation,
        turn=number,
        messages=({"role": "user", "content": f"{text}{number}"},),
    )


class Template:
    chat_template = "x"

    def apply_chat_template(self, messages, **_):
        return "|".join(f"{each['role'][0]}:{each['content']}" for each in messages)


def test_a_turn_is_asked_after_the_own_answers_before_it():
    said = Conversations(Template(), {})
    said.note(turn(1), "v", 0, "A")
    assert said.ask(turn(2), "v", 0).prompt == "u:q1|a:A|u:q2"
    said.note(turn(2), "v", 0, "B")
    assert said.ask(turn(3), "v", 0).prompt == "u:q1|a:A|u:q2|a:B|u:q3"
    # a disturbed answer is made again: the newest counts, and nothing is asked twice
    said.note(turn(2), "v", 0, "C")
    assert said.ask(turn(3), "v", 0).prompt == "u:q1|a:A|u:q2|a:C|u:q3"


def test_cells_and_repeats_have_conversations_of_their_own():
    said = Conversations(Template(), {})
    who = (("v", 0), ("w", 0), ("v", 1))
    for place, answer in zip(who, "ABC", strict=True):
        said.note(turn(1), *place, answer)
    asked = [said.ask(turn(2), *place).prompt for place in who]
    assert asked == ["u:q1|a:A|u:q2", "u:q1|a:B|u:q2", "u:q1|a:C|u:q2"]


def test_without_a_template_turns_are_joined_by_blank_lines():
    said = Conversations(None, {})
    said.note(turn(1), "v", 0, "A")
    assert said.ask(turn(2), "v", 0).prompt == "q1\n\nA\n\nq2"


def test_the_turns_of_a_conversation_stay_on_one_worker_and_in_order():
    samples = [turn(1), turn(2), turn(1, "s/t/2"), turn(2, "s/t/2")]
    shards = make_shards(schedule([CELL, dataclasses.replace(CELL, label="w")], samples, 2))
    assert len(shards) == 4
    for shard in shards:
        assert len({job.sample.conversation for job in shard}) == 1
        for cell in ("v", "w"):
            assert [job.sample.turn for job in shard if job.cell.label == cell] == [1, 2]


def test_a_later_prompt_is_as_long_as_the_answers_before_it_may_be():
    samples = [turn(1), turn(2), turn(3), dataclasses.replace(turn(1, "s/t/2"), conversation="", turn=0)]
    sizes = prompt_sizes(samples, lambda sample: 2)
    assert list(sizes.values()) == [2, 2 + 10 + 2, 2 + 10 + 2 + 10 + 2, 2]
    assert list(prompt_sizes(samples[:2], lambda sample: 2, longest_answer=50).values()) == [2, 54]


def test_a_conversation_that_lacks_a_turn_is_begun_again():
    samples = {each.sample_id: each for each in (turn(1), turn(2), turn(1, "s/t/2"), turn(2, "s/t/2"))}
    done = {("v", "s/t/1/turn-1", 0), ("v", "s/t/2/turn-1", 0), ("v", "s/t/2/turn-2", 0)}
    assert without_begun(done, samples) == {("v", "s/t/2/turn-1", 0), ("v", "s/t/2/turn-2", 0)}


@pytest.fixture
def two_turns(tmp_path):
    rows = [{"turns": ["one", "two"], "max_new_tokens": 5}, {"prompt": "alone", "max_new_tokens": 5}]
    path = tmp_path / "talk.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def request(tiny_model, path, **options):
    sweep = Sweep(model=str(tiny_model), methods=("vanilla", "prompt_lookup"), dtype="float32")
    return RunRequest(sweep=sweep, suite=str(path), **options)


def tokens_of(run):
    return {
        (record.cell, record.sample_id): (record.prompt, record.trace.token_ids) for record in run.measured
    }


def test_a_file_of_two_turns_runs_and_is_judged_on_what_was_asked(tiny_model, two_turns, tmp_path):
    run = start_run(request(tiny_model, two_turns), tmp_path / "run")
    answers = {(record.cell, record.sample_id): record for record in run.measured}
    for cell in [each.label for each in run.header.cells]:
        first, second = (answers[cell, f"talk/talk/1/turn-{number}"] for number in (1, 2))
        assert first.prompt is None
        assert second.prompt == f"one\n\n{first.text}\n\ntwo"
        assert second.trace.prompt_tokens == len(second.prompt.encode())
        # greedy answers of the target itself regret nothing, if they are read after the prompt that was asked
        assert run.judged(second).regret == 0
    assert all(record.error is None for record in run.measured)
    by_turn = {each.group: each for each in measure_run(run) if each.cell == "vanilla"}
    first, second = (by_turn[f"turn:talk/turn {number}"] for number in (1, 2))
    assert first.kv_bytes < second.kv_bytes


def test_a_run_cut_within_a_conversation_resumes_to_the_same_answers(tiny_model, two_turns, tmp_path):
    whole = start_run(request(tiny_model, two_turns), tmp_path / "whole")
    start_run(request(tiny_model, two_turns), tmp_path / "cut")
    records = tmp_path / "cut" / RECORDS
    lines = records.read_text().splitlines(keepends=True)
    kept = [line for line in lines if "turn-2" not in line]
    assert len(kept) < len(lines)
    records.write_text("".join(kept))
    resumed = resume_run(tmp_path / "cut")
    assert tokens_of(resumed) == tokens_of(whole)
    assert load_run(tmp_path / "cut").complete


def test_a_turn_after_a_failed_one_is_an_error_that_says_so(tiny_model, tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({"turns": ["x" * 9000, "two"], "max_new_tokens": 5}))
    run = start_run(request(tiny_model, path), tmp_path / "run")
    errors = {record.sample_id: record.error for record in run.measured if record.cell == "vanilla"}
    assert "ContextOverflowError" in errors["talk/talk/1/turn-1"]
    assert "turn 1 of this conversation has no answer" in errors["talk/talk/1/turn-2"]


def trace(*steps):
    return GenerationTrace(
        prompt_tokens=3, steps=tuple(StepRecord(tokens=ids, seconds=1.0) for ids in steps), finish="eos"
    )


def test_equal_answers_to_other_prompts_are_other_answers():
    base = SampleRecord(cell="v", sample_id="s", prompt_hash="h", trace=trace((1, 2)))
    one, two = (dataclasses.replace(base, prompt=text) for text in ("abc", "abd"))
    assert len({answer_key(base), answer_key(one), answer_key(two)}) == 3


class Letters:
    def get_vocab(self):
        return {chr(65 + number): number for number in range(26)}

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(65 + number) for number in ids)


def test_thinking_is_counted_up_to_its_last_end():
    spelled = trace(tuple(map(ord, "")), tuple(ord(c) - 65 for c in "AAENDBENDCC"))
    assert count_thinking(spelled, Letters(), "END") == len("AAENDBEND")
    assert count_thinking(spelled, Letters(), "D") == len("AAENDBEND")
    assert count_thinking(spelled, Letters(), "NONE") == 0
