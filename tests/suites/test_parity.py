"""Scores replayed from stored text equal lm-eval's own run of its ``hf`` model, sample by sample."""

import dataclasses
import json
import math

import pytest

from hambench.decoding import SamplingParams
from hambench.engine.loop import generate
from hambench.engine.text import answer_text, encode_prompt
from hambench.records import SampleRecord
from hambench.suites import CaptureRequest, capture, score
from hambench.suites.catalogue import ENTRIES, tasks_of
from hambench.suites.harness.code_eval import CODE_EVAL
from hambench.suites.rows import read_task
from hambench.suites.task_requests import make_task

QUICK = ("gsm8k_cot_llama", "trec", "lcc")
ROWS, ANSWER_TOKENS = 3, 12
NAMES = [entry.name for suite in ("standard", "longbench") for entry in tasks_of(suite)]


@pytest.fixture(scope="module")
def hf_model(tiny_model):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(tiny_model), dtype="float32", device="cpu", batch_size=1, max_length=8192)


@pytest.fixture(scope="module")
def target(tiny_model):
    from hambench.models.target import load

    return load(str(tiny_model), dtype="float32")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_scores_equal_lm_evals_hf_model_per_sample(name, shared_data, hf_model, target, tmp_path):
    entry = ENTRIES[name]
    rows = _short_rows(shared_data, entry)
    plan = {"config": entry.config, "settings": {**entry.settings, "max_gen_toks": ANSWER_TOKENS}}
    theirs = _lm_eval_run(hf_model, name, make_task(name, plan, rows))
    ours = _our_run(target, entry, rows, tmp_path)
    assert set(ours) == set(theirs)
    assert len(ours) == len(rows)
    for doc_id, (prompt, text, metrics) in theirs.items():
        our_prompt, our_text, our_metrics = ours[doc_id]
        assert our_prompt == prompt
        assert our_text == text
        assert our_metrics == pytest.approx(metrics)
        assert entry.metric in our_metrics


def _short_rows(folder, entry):
    """A few rows of the real data, long contexts cut so that the prompt fits the tiny model."""
    rows = read_task(folder, entry).rows[:ROWS]
    return [{**row, **({"context": row["context"][:600]} if "context" in row else {})} for row in rows]


def _lm_eval_run(model, name, task):
    from lm_eval.evaluator import evaluate

    with CODE_EVAL.allow(True):
        results = evaluate(
            lm=model,
            task_dict={"tasks": {name: task}, "groups": {}, "group_map": {}},
            bootstrap_iters=0,
            log_samples=True,
            confirm_run_unsafe_code=True,
        )
    found = {}
    for logged in results["samples"][name]:
        values = {}
        for metric in logged["metrics"]:
            value = logged[metric]
            key = metric if logged["filter"] == "none" else f"{metric},{logged['filter']}"
            values[key] = math.fsum(value) / len(value) if isinstance(value, list) else float(value)
        prompt, text = logged["arguments"][0][0], logged["resps"][0][0]
        _, _, before = found.get(logged["doc_id"], (None, None, {}))
        found[logged["doc_id"]] = (prompt, text, {**before, **values})
    return found


def _our_run(target, entry, rows, tmp_path):
    """Capture from a data folder, generation by hambench's engine, scores by replay."""
    from hambench.methods.vanilla import VanillaConfig

    folder = tmp_path / "data"
    folder.mkdir()
    (folder / f"{entry.name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    captured = capture(CaptureRequest(None, tasks=(entry.name,), data=folder))
    samples = [dataclasses.replace(each, max_new_tokens=ANSWER_TOKENS) for each in captured.samples]
    method = VanillaConfig().build(target)
    records = []
    for sample in samples:
        prompt = encode_prompt(sample, target.tokenizer, context_length=target.context_length)
        trace = generate(
            method,
            prompt.ids,
            SamplingParams(max_new_tokens=ANSWER_TOKENS),
            eos_ids=target.eos_ids,
            stop=sample.stop,
            decode_text=target.tokenizer.decode,
        )
        text = answer_text(trace, target.tokenizer, sample.stop)
        records.append(
            SampleRecord(
                cell="c", sample_id=sample.sample_id, prompt_hash=sample.prompt_hash, trace=trace, text=text
            )
        )
    by_id = {sample.sample_id: sample for sample in samples}
    scores = score(captured.spec, by_id, records, allow_code_execution=True)
    assert not [each.error for each in scores if each.error]
    texts = {record.sample_id: record.text for record in records}
    return {
        sample.doc_id: (
            sample.prompt,
            texts[sample.sample_id],
            {each.metric: each.value for each in scores if each.sample_id == sample.sample_id},
        )
        for sample in samples
    }
