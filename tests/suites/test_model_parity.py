"""The real model: hambench's answers and scores equal those of lm-eval's own ``hf`` model, row by row."""

import os

import pytest

from hambench.decoding import SamplingParams
from hambench.engine.chat import chat_template
from hambench.engine.loop import generate
from hambench.engine.text import answer_text, encode_prompt
from hambench.records import SampleRecord
from hambench.suites import CaptureRequest, capture, score
from hambench.suites.task_requests import make_task

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(3600)]

# two models in float32 over long prompts: the first ten rows (HAMBENCH_PARITY_ROWS=10) take some ten minutes, so by
# default the shortest row stands for its task
ROWS = int(os.environ.get("HAMBENCH_PARITY_ROWS", "1"))
TASKS = ("gsm8k_cot_llama", "lcc", "multifieldqa_en")
# long contexts are cut in the middle by hambench and at the left by lm-eval: rows that fit are compared
LONGEST_CHARACTERS = 18_000


@pytest.fixture(scope="module")
def target():
    from hambench.models.target import load

    return load("smollm2-135m", dtype="float32")


@pytest.fixture(scope="module")
def hf_model():
    from lm_eval.models.huggingface import HFLM

    from hambench.models.embedded import SMOLLM2_135M, ensure

    return HFLM(
        pretrained=str(ensure(SMOLLM2_135M)), dtype="float32", device="cpu", batch_size=1, max_length=8192
    )


@pytest.mark.parametrize("name", TASKS)
def test_answers_and_scores_equal_lm_evals_hf_model(name, shared_data, target, hf_model, tmp_path):
    from lm_eval.evaluator import evaluate

    from hambench.methods.vanilla import VanillaConfig

    rows = _rows(shared_data, name)
    request = CaptureRequest(
        None,
        tasks=(name,),
        data=_folder(tmp_path, name, rows),
        apply_chat_template=chat_template(target.tokenizer),
    )
    captured = capture(request)
    chat = captured.samples[0].chat
    results = evaluate(
        lm=hf_model,
        task_dict={
            "tasks": {name: make_task(name, captured.spec["tasks"][name], rows)},
            "groups": {},
            "group_map": {},
        },
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )
    theirs = {(each["doc_id"], each["filter"]): each for each in results["samples"][name]}
    method = VanillaConfig().build(target)
    for sample in captured.samples:
        prompt = encode_prompt(sample, target.tokenizer, context_length=target.context_length)
        assert prompt.num_truncated == 0
        trace = generate(
            method,
            prompt.ids,
            SamplingParams(max_new_tokens=sample.max_new_tokens),
            eos_ids=target.eos_ids,
            stop=sample.stop,
            decode_text=target.tokenizer.decode,
        )
        text = answer_text(trace, target.tokenizer, sample.stop)
        record = SampleRecord(cell="v", sample_id=sample.sample_id, prompt_hash=sample.prompt_hash, text=text)
        for each in score(captured.spec, {sample.sample_id: sample}, [record]):
            metric, _, filter_name = each.metric.partition(",")
            logged = theirs[sample.doc_id, filter_name or "none"]
            assert logged["arguments"][0][0] == sample.prompt
            assert logged["resps"][0][0] == text
            assert each.value == pytest.approx(logged[metric])


def _rows(folder, name):
    from hambench.suites.catalogue import ENTRIES
    from hambench.suites.rows import read_task

    def length(row):
        return len(row.get("context", ""))

    fitting = [row for row in read_task(folder, ENTRIES[name]).rows if length(row) <= LONGEST_CHARACTERS]
    return fitting[:ROWS] if ROWS > 1 else [min(fitting, key=length)]


def _folder(folder, name, rows):
    import json

    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
