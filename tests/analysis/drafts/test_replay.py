"""Replaying stored answers: what a drafter of tokens would do on them, exactly as when it runs."""

from __future__ import annotations

import dataclasses
import json

import pytest
from click.testing import CliRunner
from fakes import tiny_target
from synthetic import write_run

from hambench.analysis.drafts.replay import no_speed, render_replay, replay_answer, replay_run, source_cell
from hambench.cli import cli
from hambench.decoding import SamplingParams
from hambench.engine.loop import generate
from hambench.errors import HambenchError
from hambench.methods.prompt_lookup import PromptLookupConfig
from hambench.methods.speculative import SpeculativeConfig
from hambench.methods.suffix import SuffixConfig
from hambench.methods.vanilla import VanillaConfig
from hambench.records import Cell
from hambench.registry import method_config
from hambench.store import load_run

CONFIGS = [
    PromptLookupConfig(),
    PromptLookupConfig(num_draft_tokens=2, max_ngram=1),
    SuffixConfig(factor=3.0),
]
PROMPTS = [[1, 2, 3, 1, 2, 3, 1, 2], [7] * 30, list(range(40, 90))]
configs = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.label)


@configs
@pytest.mark.parametrize("prompt", PROMPTS, ids=["repeating", "constant", "long"])
@pytest.mark.parametrize("limit", [1, 2, 40])
def test_every_count_is_that_of_a_real_run(config, prompt, limit):
    target, params = tiny_target(), SamplingParams(max_new_tokens=limit)
    stored = generate(VanillaConfig().build(target), prompt, params)
    real = generate(config.build(target), prompt, params)
    replayed = replay_answer(config.token_drafter(), prompt, stored, max_new_tokens=limit)
    counts = [
        [(step.tokens, step.drafted, step.accepted, step.target_forwards) for step in trace.steps]
        for trace in (real, replayed)
    ]
    assert counts[0] == counts[1]


@configs
def test_an_answer_that_ends_inside_a_round_is_trimmed_as_when_it_runs(config):
    target, params = tiny_target(), SamplingParams(max_new_tokens=40)
    free = generate(VanillaConfig().build(target), PROMPTS[0], params).token_ids
    for place in range(1, 30):
        eos = {free[place]}
        stored = generate(VanillaConfig().build(target), PROMPTS[0], params, eos_ids=eos)
        real = generate(config.build(target), PROMPTS[0], params, eos_ids=eos)
        replayed = replay_answer(config.token_drafter(), PROMPTS[0], stored, max_new_tokens=40)
        for mine, theirs in zip(replayed.steps, real.steps, strict=True):
            assert (mine.tokens, mine.drafted, mine.accepted) == (
                theirs.tokens,
                theirs.drafted,
                theirs.accepted,
            )
            assert (mine.discarded > 0) == (theirs.discarded > 0)


def test_the_oracle_drafts_what_is_accepted_and_nothing_else():
    config, target = CONFIGS[0], tiny_target()
    stored = generate(VanillaConfig().build(target), PROMPTS[1], SamplingParams(max_new_tokens=40))
    plain, oracle = (
        replay_answer(
            config.token_drafter(), PROMPTS[1], stored, max_new_tokens=40, seconds_of=float,
            unit_s=1.0, oracle=cut,
        )
        for cut in (False, True)
    )  # fmt: skip
    assert [step.tokens for step in oracle.steps] == [step.tokens for step in plain.steps]
    assert all(step.drafted == step.accepted for step in oracle.steps)
    assert [step.seconds for step in plain.steps[1:]] == [1 + step.drafted for step in plain.steps[1:]]
    assert sum(step.drafted for step in oracle.steps) < sum(step.drafted for step in plain.steps)


def test_only_greedy_answers_of_a_lossless_method_can_be_replayed(tmp_path):
    run = load_run(write_run(tmp_path / "run", per_task=1))
    assert source_cell(run).method == "vanilla"
    sampled = dataclasses.replace(run, header=dataclasses.replace(run.header, temperature=0.7))
    with pytest.raises(HambenchError, match=r"its answers were sampled \(temperature 0.7\)"):
        source_cell(sampled)
    lossy = tuple(cell for cell in run.header.cells if cell.method == "hamburger")
    only = dataclasses.replace(run, header=dataclasses.replace(run.header, cells=lossy))
    with pytest.raises(HambenchError, match="it has no answer of a lossless method"):
        source_cell(only)
    without = tuple(cell for cell in run.header.cells if cell.method in ("hamburger", "speculative"))
    second = dataclasses.replace(run, header=dataclasses.replace(run.header, cells=without))
    assert source_cell(second).method == "speculative"


def test_a_method_whose_proposals_need_a_model_can_not_be_replayed(tmp_path):
    run = load_run(write_run(tmp_path / "run", per_task=1))
    with pytest.raises(HambenchError, match=r"speculative\[k=4\] can't be replayed: .* run it"):
        replay_run(run, {}, [SpeculativeConfig()])


TEXTS = ([1, 2, 3, 1, 2, 3, 1, 2], [7] * 30, [5, 6] * 12, [9, 8, 7, 9, 8, 7, 9])


def real_run(tmp_path, *cells, row_s=0.1, limit=40):
    """A run of real answers: a step of vanilla takes 1 s on one thread, 3 s on two, and each further row 0.1 s more."""
    tmp_path.mkdir(exist_ok=True)
    run = load_run(write_run(tmp_path / "run", cells, per_task=1))
    target, params = tiny_target(), SamplingParams(max_new_tokens=limit)
    samples = list(run.samples)[: len(TEXTS)]
    records = []
    for cell in cells:
        config = method_config(cell.method).from_knobs(cell.knobs)
        unit = 3.0 if cell.threads == 2 else 1.0
        for sample, prompt in zip(samples, TEXTS, strict=True):
            like = next(r for r in run.records if r.cell == cell.label and r.sample_id == sample)
            answer = generate(config.build(target), prompt, params)
            steps = [
                dataclasses.replace(step, seconds=unit * (1 + row_s * (step.drafted or 0)))
                for step in answer.steps
            ]
            trace = dataclasses.replace(answer, steps=tuple(steps))
            records.append(dataclasses.replace(like, trace=trace, error=None))
    header = dataclasses.replace(run.header, max_new_tokens=limit)
    whole = dataclasses.replace(run, header=header, records=tuple(records), scores=())
    return whole, {(sample, 0): prompt for sample, prompt in zip(samples, TEXTS, strict=True)}


LOOKUP = PromptLookupConfig(num_draft_tokens=2)


def cell_of(method, label, **fields):
    knobs = {"num_draft_tokens": 2} if method == "prompt_lookup" else {}
    return Cell(method=method, label=label, knobs=knobs, model="toy", dtype="float32", **fields)


def test_a_cell_under_other_conditions_is_not_what_was_replayed(tmp_path):
    vanilla = cell_of("vanilla", "vanilla", threads=1)
    other = cell_of("prompt_lookup", "prompt_lookup[threads=2]", threads=2)
    own = cell_of("prompt_lookup", "prompt_lookup", threads=1)
    run, prompts = real_run(tmp_path / "two", vanilla, other)
    row = replay_run(run, prompts, [LOOKUP])[0]
    assert (row.num_measured, row.measured_speedup) == (0, None)
    run, prompts = real_run(tmp_path / "three", vanilla, other, own)
    row = replay_run(run, prompts, [LOOKUP])[0]
    assert row.num_measured == len(TEXTS)
    assert row.measured_m == row.replayed_m
    # paired by sample, with what it is worth, and over the same answers as the foretold one
    assert row.measured_speedup.n == len(TEXTS)
    assert row.measured_speedup.value == pytest.approx(row.replayed_speedup, rel=0.05)
    assert "[" in render_replay([row], "vanilla").splitlines()[-1]


def test_a_repeat_with_other_tokens_is_in_no_measured_speed(tmp_path):
    """Its sample stays, for its other repeat is equal."""
    vanilla, own = cell_of("vanilla", "vanilla"), cell_of("prompt_lookup", "prompt_lookup")
    run, prompts = real_run(tmp_path, vanilla, own)
    expected = replay_run(run, prompts, [LOOKUP])[0]
    again = []
    for record in run.records:
        steps = record.trace.steps
        if record.cell == own.label:
            last = steps[-1]
            steps = (
                *steps[:-1],
                dataclasses.replace(last, tokens=(*last.tokens[:-1], 99), seconds=1e6),
            )
        trace = dataclasses.replace(record.trace, steps=steps)
        again.append(dataclasses.replace(record, repeat=1, trace=trace))
    twice = dataclasses.replace(run, records=(*run.records, *again))
    both = {**prompts, **{(sample, 1): ids for (sample, _), ids in prompts.items()}}
    row = replay_run(twice, both, [LOOKUP])[0]
    assert row.num_measured == len(TEXTS)
    assert row.measured_speedup == expected.measured_speedup


def test_what_is_foretold_rests_on_the_settings_own_verifications(tmp_path):
    vanilla = cell_of("vanilla", "vanilla")
    own, other = (
        Cell(
            method="prompt_lookup",
            label=f"lookup{k}",
            knobs={"num_draft_tokens": k},
            model="toy",
            dtype="float32",
        )
        for k in (2, 4)
    )
    run, prompts = real_run(tmp_path, vanilla, other, own)

    def dear(record):
        if record.cell != other.label:
            return record
        steps = tuple(dataclasses.replace(step, seconds=9 * step.seconds) for step in record.trace.steps)
        return dataclasses.replace(record, trace=dataclasses.replace(record.trace, steps=steps))

    mixed = dataclasses.replace(run, records=tuple(map(dear, run.records)))
    mine, theirs = (replay_run(mixed, prompts, [PromptLookupConfig(num_draft_tokens=k)])[0] for k in (2, 4))
    assert mine.speedup == pytest.approx(replay_run(run, prompts, [LOOKUP])[0].speedup)
    assert theirs.speedup < 0.5 * mine.speedup


def test_near_the_cells_own_limit_fewer_tokens_are_proposed(tmp_path):
    """A cell may have a limit of its own, below its samples'."""
    vanilla = cell_of("vanilla", "vanilla", max_new_tokens=12)
    own = cell_of("prompt_lookup", "prompt_lookup", max_new_tokens=12)
    run, prompts = real_run(tmp_path, vanilla, own, limit=12)
    assert all(sample.max_new_tokens > 12 for sample in run.samples.values())
    row = replay_run(run, prompts, [LOOKUP])[0]
    drafted = sum(step.drafted or 0 for r in run.answered(own.label) for step in r.trace.steps)
    assert (row.num_drafted, row.num_measured) == (drafted, len(TEXTS))


def test_a_measured_speed_is_over_the_answers_that_are_equal_on_both_sides(tmp_path):
    vanilla, own = cell_of("vanilla", "vanilla"), cell_of("prompt_lookup", "prompt_lookup")
    run, prompts = real_run(tmp_path, vanilla, own)
    first, *others = run.answered("prompt_lookup")
    last = first.trace.steps[-1]
    wrong = dataclasses.replace(last, tokens=(*last.tokens[:-1], 99), seconds=1e6)
    changed = dataclasses.replace(first.trace, steps=(*first.trace.steps[:-1], wrong))
    records = (*run.answered("vanilla"), dataclasses.replace(first, trace=changed), *others)
    row = replay_run(dataclasses.replace(run, records=records), prompts, [LOOKUP])[0]
    assert row.num_measured == len(TEXTS) - 1
    without = tuple(r for r in run.records if r.sample_id != first.sample_id)
    expected = replay_run(dataclasses.replace(run, records=without), prompts, [LOOKUP])[0]
    assert row.measured_speedup == expected.measured_speedup


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (
            (cell_of("vanilla", "vanilla", batch=4), cell_of("prompt_lookup", "lookup", batch=4)),
            "in batches of 4",
        ),
        ((cell_of("prompt_lookup", "lookup"),), "a round of lookup is not a step over one row"),
        ((cell_of("vanilla", "vanilla"),), "no cell of the run tells"),
    ],
    ids=["batch", "no vanilla", "no verification"],
)
def test_no_speed_is_foretold_where_the_run_can_not_tell_it_and_the_counts_stay(tmp_path, cells, reason):
    run, prompts = real_run(tmp_path, *cells)
    rows = replay_run(run, prompts, [LOOKUP])
    assert [row.speedup for row in rows] == [None, None]
    assert rows[0].m > 1
    shown = render_replay(rows, cells[0].label, why_no_speed=no_speed(run))
    assert "No speed is foretold: " in shown
    assert reason in shown
    assert "× is over" not in shown


def test_single_sequences_are_replayed_before_batches(tmp_path):
    batch, alone = cell_of("vanilla", "vanilla[batch=4]", batch=4), cell_of("vanilla", "vanilla")
    run, _ = real_run(tmp_path, batch, alone)
    assert source_cell(run) == alone


def test_the_demos_run_replays_to_what_it_measured(shared_data):
    from hambench.runner.stored_prompts import prompt_ids_of

    run = load_run(shared_data / "runs" / "demo-amx-2-cores")
    source = source_cell(run)
    rows = replay_run(
        run, prompt_ids_of(run, source), [PromptLookupConfig(), SuffixConfig(num_draft_tokens=16)]
    )
    lookup, oracle, suffix, _ = rows
    # m equal on every answer whose tokens are vanilla's
    assert lookup.num_measured == 13
    assert lookup.replayed_m == pytest.approx(lookup.measured_m, abs=1e-9)
    assert lookup.measured_m == pytest.approx(2.363, abs=0.001)
    assert lookup.replayed_speedup == pytest.approx(lookup.measured_speedup.value, rel=0.05)
    assert lookup.measured_speedup.low < lookup.measured_speedup.value < lookup.measured_speedup.high
    assert (lookup.m, suffix.m) == (pytest.approx(1.89, abs=0.01), pytest.approx(1.87, abs=0.01))
    # the same m from half the drafted rows
    assert suffix.num_drafted < 0.5 * lookup.num_drafted
    assert suffix.acceptance_rate == pytest.approx(0.53, abs=0.02)
    assert oracle.m == lookup.m
    assert oracle.speedup > lookup.speedup


def test_the_command_prints_rows_and_json(shared_data):
    folder = str(shared_data / "runs" / "demo-amx-2-cores")
    shown = CliRunner().invoke(cli, ["replay", folder, "--methods", "prompt_lookup[k=5],suffix[k=16]"])
    assert shown.exit_code == 0, shown.output
    assert "oracle of suffix" in shown.output
    assert "m was 2.363, replayed 2.363" in shown.output
    rows = CliRunner().invoke(cli, ["replay", folder, "--methods", "suffix", "--json"])
    first = json.loads(rows.output.splitlines()[0])
    assert first["method"] == "suffix"
    assert first["acceptance"]["1"] > 0.5


def test_prompts_are_those_that_were_asked_later_turns_of_a_conversation_included(tmp_path, monkeypatch):
    from fakes import ByteTokenizer

    from hambench.errors import StoreError
    from hambench.runner import stored_prompts

    monkeypatch.setattr(stored_prompts, "locate", lambda name: (tmp_path, "", ""))
    monkeypatch.setattr(stored_prompts, "load_tokenizer", lambda folder: ByteTokenizer())
    run = load_run(write_run(tmp_path / "run", per_task=1))
    cell = source_cell(run)

    def asked(record, text):
        length = len(ByteTokenizer()(text)["input_ids"])
        trace = dataclasses.replace(record.trace, prompt_tokens=length)
        return dataclasses.replace(record, trace=trace, prompt=text)

    records = tuple(asked(r, f"turn of {r.sample_id}") for r in run.answered(cell.label))
    turned = dataclasses.replace(run, records=records)
    prompts = stored_prompts.prompt_ids_of(turned, cell)
    first = records[0]
    assert prompts[first.sample_id, 0] == ByteTokenizer()(f"turn of {first.sample_id}")["input_ids"]
    other = (dataclasses.replace(first, prompt="other"), *records[1:])
    with pytest.raises(StoreError, match="with the tokenizer that toy has now"):
        stored_prompts.prompt_ids_of(dataclasses.replace(run, records=other), cell)
