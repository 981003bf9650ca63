import dataclasses

import pytest
import torch
from native_fixtures import need_compiler
from synthetic import write_run

from hambench.analysis.fidelity import divergences, time_line
from hambench.analysis.proxy_rows import proxy_rows, render_proxies
from hambench.engine.cpu.native_llama import NativeLlama
from hambench.engine.text import encode_prompt
from hambench.machine.load import CpuLoadMeter
from hambench.records import Cell, GenerationTrace, Sample, SampleRecord, StepRecord, answer_key
from hambench.runner.generator import DecodingOptions, Generator, Job, Workload
from hambench.runner.judge import JudgeBySample, judge_run, read_answers, unjudged
from hambench.runner.work import NUM_TIMED_PROMPTS
from hambench.store import FIDELITY, RunWriter, load_run

CELLS = tuple(
    Cell(method="vanilla", label=label, knobs={}, model="m", dtype="float32")
    for label in ("vanilla", "vanilla#2")
)
SAMPLE = Sample(
    sample_id="s/t/0", suite="s", task="t", category="c", doc_id=0, prompt="abcd", stop=(), max_new_tokens=12
)


@pytest.fixture
def folder(target, tmp_path):
    """A real A/A run of one sample, not judged yet."""
    stored = load_run(write_run(tmp_path / "other"))
    generator = Generator(target, CELLS, DecodingOptions())
    header = dataclasses.replace(stored.header, cells=CELLS, num_samples=1)
    with RunWriter.create(tmp_path / "run", header, [SAMPLE]) as writer:
        writer.append_records(generator.record(Job(cell, SAMPLE, 0), CpuLoadMeter()) for cell in CELLS)
    return tmp_path / "run"


def judged(folder, target):
    with RunWriter.resume(folder) as writer:
        judge_run(writer, target)
    return load_run(folder)


def made(target, folder, *, kernels="reference", by_sample):
    """A run of two cells and five samples, judged on the way or afterwards; and what was read of its prompts."""
    cells = tuple(dataclasses.replace(cell, kernels=kernels) for cell in CELLS)
    samples = [
        dataclasses.replace(SAMPLE, sample_id=f"s/t/{n}", doc_id=n, prompt="abcd" + "efghi"[n])
        for n in range(NUM_TIMED_PROMPTS + 2)
    ]
    # a timing that a busy machine spoils would be taken again, on a prompt read again
    generator = Generator(target, cells, DecodingOptions(max_remeasured=0))
    header = load_run(write_run(folder / "other")).header
    header = dataclasses.replace(header, cells=cells, num_samples=len(samples))
    with RunWriter.create(folder / "run", header, samples) as writer:
        if by_sample:
            generator.after_sample = JudgeBySample(writer, header, samples, generator.judge)
        generator.run(writer, Workload.of(cells, samples, 1))
        if by_sample:
            generator.after_sample.finish()
            assert not unjudged(load_run(folder / "run"))
        else:
            judge_run(writer, generator.judge)
    return load_run(folder / "run"), generator._prompts


@pytest.mark.parametrize("kernels", ["reference", "native"])
def test_judging_on_the_way_gives_the_same_judgements_and_reads_no_prompt(target, tmp_path, kernels):
    if kernels == "native":
        need_compiler()
    way, prompts = made(target, tmp_path / "way", kernels=kernels, by_sample=True)
    after, others = made(target, tmp_path / "after", kernels=kernels, by_sample=False)
    assert len(way.fidelity) == 5
    assert way.fidelity == after.fidelity
    # both cells read the first three prompts; of the others the second cell makes a copy; the judge copies all five
    assert (prompts.num_read, prompts.num_copied) == (2 * 3 + 2, 2 + 5)
    assert (others.num_read, others.num_copied) == (2 * 3 + 2, 2)
    (reading,) = [item for item in way.telemetry if item["kind"] == "fidelity"]
    assert (reading["num_distinct"], reading["num_answers"]) == (5, 10)
    assert time_line(way).startswith("fidelity: 5 distinct answers of 10 judged by the target in ")


def test_an_answer_that_nobody_judged_on_the_way_is_judged_afterwards(target, tmp_path):
    """A run that was stopped within a sample."""
    way, _ = made(target, tmp_path, by_sample=True)
    lines = (way.path / FIDELITY).read_bytes().splitlines(keepends=True)
    (way.path / FIDELITY).write_bytes(lines[0])
    assert judged(way.path, target).fidelity == way.fidelity


def with_token(folder, index, token):
    """The run with one token of the second cell's answer changed."""
    record = load_run(folder).records[1]
    steps = list(record.trace.steps)
    steps[index] = dataclasses.replace(steps[index], tokens=(token,))
    changed = dataclasses.replace(record, trace=dataclasses.replace(record.trace, steps=tuple(steps)))
    with RunWriter.resume(folder) as writer:
        writer.append_record(changed)


def one_by_one(target, prompt, tokens):
    """Regret and log-probability of each token, a prefill of its own for each."""
    context, regrets, logprobs = list(prompt), [], []
    for token in tokens:
        logits = target.llama.prefill(torch.tensor(context), target.llama.new_cache(len(context))).logits[-1]
        scores = torch.log_softmax(logits, -1)
        regrets.append(float(scores.max() - scores[token]))
        logprobs.append(float(scores[token]))
        context.append(token)
    return regrets, logprobs


def test_regret_and_log_probability_are_the_targets_own(target):
    prompt, answers = [5, 6, 7, 8], [[1, 2, 3, 4, 5], [1, 9, 9], [200]]
    for answer, reading in zip(answers, read_answers(target, prompt, answers), strict=True):
        regrets, logprobs = one_by_one(target, prompt, answer)
        assert reading.regrets == pytest.approx(regrets, abs=1e-4)
        assert reading.logprobs == pytest.approx(logprobs, abs=1e-4)


def test_a_long_answer_is_read_in_parts_with_the_same_result(target, monkeypatch):
    prompt, answer = [5, 6], [7 * i % 200 for i in range(40)]
    (whole,) = read_answers(target, prompt, [answer])
    monkeypatch.setattr("hambench.runner.judge.MOST_LOGITS", 7 * target.llama.shape.vocab_size)
    (parts,) = read_answers(target, prompt, [answer])
    assert parts.regrets == pytest.approx(whole.regrets, abs=1e-4)


def test_a_greedy_answer_of_the_target_has_no_regret_and_cells_that_agree_share_one_judgement(folder, target):
    run = judged(folder, target)
    assert len(run.fidelity) == 1
    assert len((folder / FIDELITY).read_text().splitlines()) == 1
    for record in run.measured:
        item = run.judged(record)
        assert item.regret == 0
        assert item.num_agreed == len(record.trace.token_ids)
    (reading,) = [item for item in run.telemetry if item["kind"] == "fidelity"]
    assert (reading["num_distinct"], reading["num_answers"]) == (1, 2)
    assert reading["seconds"] > 0


def test_an_answer_that_leaves_the_baselines_is_judged_on_its_own(folder, target):
    token = (load_run(folder).records[0].trace.token_ids[5] + 1) % 256
    with_token(folder, 5, token)
    run = judged(folder, target)
    assert len(run.fidelity) == 2
    other = run.records[1]
    prompt = encode_prompt(SAMPLE, target.tokenizer, context_length=512).ids
    regrets, _ = one_by_one(target, prompt, other.trace.token_ids)
    assert run.judged(other).regrets == pytest.approx(regrets, abs=1e-4)
    (parting,) = divergences(run).values()
    assert parting.index == 5
    assert parting.gap > 0
    assert parting.regret == pytest.approx(regrets[5], abs=1e-4)
    rows = proxy_rows(run)
    assert rows[1]["first_difference"] == 5
    assert rows[1]["tokens_before_difference"] == pytest.approx(5 / 12)
    assert rows[1]["regret"] > rows[0]["regret"] == 0
    assert rows[1]["target_logprob_per_token"] < rows[0]["target_logprob_per_token"]
    assert "vanilla#2" in render_proxies(rows)


def test_the_engine_that_answered_is_the_one_that_judges(target, tmp_path):
    need_compiler()
    cells = tuple(dataclasses.replace(cell, kernels="native") for cell in CELLS)
    generator = Generator(target, cells, DecodingOptions())
    assert isinstance(generator.judge.llama, NativeLlama)
    assert generator.judge is generator._target_for(cells[0])
    assert Generator(target, CELLS, DecodingOptions()).judge is target
    header = dataclasses.replace(load_run(write_run(tmp_path / "other")).header, cells=cells, num_samples=1)
    with RunWriter.create(tmp_path / "run", header, [SAMPLE]) as writer:
        writer.append_records(generator.record(Job(cell, SAMPLE, 0), CpuLoadMeter()) for cell in cells)
        judge_run(writer, generator.judge)
    run = load_run(tmp_path / "run")
    # the bits of one row and of many are the same: not a near-tie apart
    assert {regret for item in run.fidelity.values() for regret in item.regrets} == {0.0}


def test_an_answer_to_a_prompt_of_another_length_is_not_judged(folder, target):
    record = load_run(folder).records[1]
    trace = dataclasses.replace(record.trace, prompt_tokens=record.trace.prompt_tokens + 1)
    with RunWriter.resume(folder) as writer:
        writer.append_record(dataclasses.replace(record, trace=trace))
    run = judged(folder, target)
    assert run.judged(run.records[0]).regret == 0
    assert run.judged(run.records[1]) is None
    (failed,) = [item.error for item in run.fidelity.values() if item.error]
    assert "tokens now and had 5 when it was answered: another tokenizer or chat template" in failed


def test_what_is_judged_is_not_judged_again_and_a_torn_line_is(folder, target):
    run = judged(folder, target)
    before = (folder / FIDELITY).read_bytes()
    assert not unjudged(run)
    assert judged(folder, target).fidelity == run.fidelity
    assert (folder / FIDELITY).read_bytes() == before
    (folder / FIDELITY).write_bytes(before[:-20])
    assert not load_run(folder).fidelity
    assert judged(folder, target).fidelity == run.fidelity
    assert (folder / FIDELITY).read_bytes() == before


def test_ids_of_another_vocabulary_are_an_error_of_that_answer_and_the_others_are_judged(folder, target):
    with_token(folder, 5, 10**6)
    run = judged(folder, target)
    first, second = run.measured
    assert run.judged(second) is None
    assert "its token 1000000 is not in 0..259" in run.fidelity[answer_key(second)].error
    assert run.judged(first).regret == 0
    assert proxy_rows(run)[1]["regret"] is None


def test_the_key_of_an_answer_is_its_prompt_and_its_tokens():
    def record(cell="a", tokens=(1, 2), prompt_tokens=3, cut=0):
        steps = tuple(StepRecord(tokens=(token,), seconds=1.0) for token in tokens)
        trace = GenerationTrace(prompt_tokens=prompt_tokens, steps=steps, finish="eos")
        return SampleRecord(cell=cell, sample_id="s", prompt_hash="h", trace=trace, truncated_tokens=cut)

    key = answer_key(record())
    assert answer_key(record(cell="b")) == key
    others = [record(tokens=(1, 3)), record(tokens=(12,)), record(prompt_tokens=4), record(cut=1)]
    assert len({key, *map(answer_key, others)}) == 5
