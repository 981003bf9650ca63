import dataclasses

import pytest
import torch
from synthetic import write_run

from hambench.analysis.proxy_rows import GAP, LOGPROB, proxy_rows, render_proxies
from hambench.engine.text import encode_prompt
from hambench.machine.load import CpuLoadMeter
from hambench.records import Cell, Sample
from hambench.runner.generator import DecodingOptions, Generator, Job
from hambench.runner.judge import score_proxies
from hambench.store import load_run

CELLS = tuple(
    Cell(method="vanilla", label=label, knobs={}, model="m", dtype="float32")
    for label in ("vanilla", "vanilla#2")
)
SAMPLE = Sample(
    sample_id="s/t/0", suite="s", task="t", category="c", doc_id=0, prompt="abcd", stop=(), max_new_tokens=12
)


@pytest.fixture
def run(target, tmp_path):
    """A real A/A run of one sample in the shape of a stored one."""
    stored = load_run(write_run(tmp_path / "run"))
    generator = Generator(target, CELLS, DecodingOptions())
    records = tuple(generator.record(Job(cell, SAMPLE, 0), CpuLoadMeter()) for cell in CELLS)
    header = dataclasses.replace(stored.header, cells=CELLS)
    return dataclasses.replace(stored, header=header, samples={"s/t/0": SAMPLE}, records=records, scores=())


def with_token(run, index, token):
    """The same run with one token of the second cell's answer changed."""
    record = run.records[1]
    steps = list(record.trace.steps)
    steps[index] = dataclasses.replace(steps[index], tokens=(token,))
    changed = dataclasses.replace(record, trace=dataclasses.replace(record.trace, steps=tuple(steps)))
    return dataclasses.replace(run, records=(run.records[0], changed))


def test_log_probability_is_the_targets_own(run, target):
    scores = [score for score in score_proxies(run, target) if score.cell == "vanilla"]
    tokens = run.records[0].trace.token_ids
    context = encode_prompt(SAMPLE, target.tokenizer, context_length=512).ids
    expected = []
    for token in tokens:
        cache = target.llama.new_cache(len(context))
        logits = target.llama.prefill(torch.tensor(context), cache).logits[-1]
        expected.append(float(torch.log_softmax(logits, -1)[token]))
        context.append(token)
    assert [score.metric for score in scores] == [LOGPROB]
    assert scores[0].value == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    assert not scores[0].primary


def test_identical_answers_have_no_gap_and_a_divergence_has_the_baselines_gap_there(run, target):
    assert GAP not in {score.metric for score in score_proxies(run, target)}
    other = with_token(run, 5, (run.records[0].trace.token_ids[5] + 1) % 256)
    gaps = [score for score in score_proxies(other, target) if score.metric == GAP]
    assert [score.cell for score in gaps] == ["vanilla#2"]
    assert gaps[0].value > 0
    rows = proxy_rows(dataclasses.replace(other, scores=tuple(score_proxies(other, target))))
    assert rows[1]["first_difference"] == 5
    assert rows[1]["tokens_before_difference"] == pytest.approx(5 / 12)
    assert rows[1]["target_logprob_per_token"] < rows[0]["target_logprob_per_token"]
    assert "vanilla#2" in render_proxies(rows)
