"""A run folder of others says how its answers are scored: it chooses among what is there, and brings no code along."""

import copy
import json

import pytest

from hambench.errors import HambenchError
from hambench.records import SampleRecord
from hambench.suites import CaptureRequest, capture, score
from hambench.suites.catalogue import ENTRIES
from hambench.suites.harness.lm_tasks import load_config
from hambench.suites.offline import OFFLINE
from hambench.suites.suite_file import check_settings

TASK = "gsm8k_cot_llama"


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    rows = tmp_path_factory.mktemp("rows")
    (rows / "gsm8k.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "#### 2"}) + "\n")
    return capture(CaptureRequest("standard", tasks=(TASK,), data=rows))


@pytest.fixture
def scored(captured):
    """Scores one right answer by the plan of a header with some of its fields replaced."""

    def scored(**fields):
        spec = copy.deepcopy(captured.spec)
        spec["tasks"][TASK] |= fields
        (sample,) = captured.samples
        record = SampleRecord(
            cell="vanilla",
            sample_id=sample.sample_id,
            prompt_hash=sample.prompt_hash,
            text="The final answer is 2",
        )
        return score(spec, {sample.sample_id: sample}, [record])

    return scored


def refusal(scores):
    """Why no answer was scored."""
    assert [each.value for each in scores] == [None] * len(scores) != []
    return scores[0].error


@pytest.fixture
def traps(tmp_path, monkeypatch):
    """A folder with a task file, its module and a metric; and whether any of them was run."""
    sprung = tmp_path / "sprung"
    code = f"open({str(sprung)!r}, 'w').close()\ndef text(doc): return ''\n"
    (tmp_path / "task.yaml").write_text("task: x\ntest_split: test\ndoc_to_text: !function task.text\n")
    for name in ("task.py", "own_metric.py", "own_metric/own_metric.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not sprung.exists(), "code of the run folder was run"


def test_a_right_answer_is_scored(scored):
    assert {each.value for each in scored() if each.primary} == {1.0}


@pytest.mark.parametrize("up", ["", "../" * 30, "gsm8k/../" + "../" * 30])
def test_a_task_file_of_others_is_not_run(scored, traps, up):
    path = f"{up}{str(traps / 'task.yaml').removeprefix('/' if up else '')}"
    assert "is not one of lm-eval's own" in refusal(scored(config=path))


@pytest.mark.parametrize("key", ["doc_to_target", "doc_to_text", "description"])
@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.system('touch sprung') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    ],
)
def test_a_template_of_others_reaches_nothing_but_its_row(captured, scored, traps, key, template):
    settings = {**captured.spec["tasks"][TASK]["settings"], key: template}
    scores = scored(settings=settings)
    # a template that scoring never reads does no harm: the answer is scored
    assert "SecurityError" in (scores[0].error or "SecurityError")
    if key == "doc_to_target":
        assert "SecurityError" in refusal(scores)


@pytest.mark.parametrize(
    "metric_list",
    [
        [{"metric": "own_metric"}],
        [{"metric": "own_metric", "hf_evaluate": True}],
        [{"metric": "exact_match", "hf_evaluate": True}],
        [{"metric": "./own_metric"}],
        [{"metric": "of/others"}],
        [{"metric": ["own_metric"]}],
        ["own_metric"],
        [{}],
    ],
)
def test_a_metric_that_is_not_lm_evals_own_is_not_run(scored, traps, metric_list):
    told = refusal(scored(config="gsm8k/gsm8k.yaml", settings={"metric_list": metric_list}))
    assert "is not one of lm-eval's own" in told


@pytest.mark.parametrize(
    "settings", [{"unsafe_code": True}, {"process_results": "x"}, {"metric_list": "x"}, {"use_prompt": "x"}]
)
def test_a_setting_that_no_suite_file_may_hold_is_refused(scored, settings):
    assert "setting" in refusal(scored(settings=settings)) or "metric_list must be a list" in refusal(
        scored(settings=settings)
    )


@pytest.mark.parametrize("config", ["longproc/pseudo_to_code_0.5k.yaml", "longproc/pseudo_to_code_2k.yaml"])
def test_a_task_whose_programs_would_run_outside_the_sandbox_is_refused(scored, config):
    with pytest.raises(HambenchError, match="outside any sandbox"):
        load_config(config)
    assert "outside any sandbox" in refusal(scored(config=config))


@pytest.mark.parametrize("task", ["longproc_pseudo_to_code_0.5k"])
def test_such_a_task_can_not_be_asked_either(tmp_path, task):
    (tmp_path / f"{task}.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(HambenchError, match="outside any sandbox"):
        capture(CaptureRequest(None, tasks=(task,), data=tmp_path))


def test_tasks_whose_programs_go_into_the_sandbox_are_asked():
    for config in (
        "humaneval/humaneval_instruct.yaml",
        "mbpp/mbpp_instruct.yaml",
        "humaneval_infilling/multi_line_infilling.yaml",
    ):
        assert load_config(config)["unsafe_code"]


def test_settings_of_our_own_tasks_are_among_those_that_a_stored_plan_may_have():
    for entry in (*ENTRIES.values(), *(each.entry for each in OFFLINE.values())):
        check_settings(entry.settings, entry.name)


def test_templates_in_the_sandbox_give_what_lm_evals_own_give():
    from jinja2 import Environment, StrictUndefined
    from lm_eval import utils

    load_config("gsm8k/gsm8k.yaml")
    plain = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    plain.filters.update(utils.env.filters)
    doc = {"question": "a\nb ", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answer": "A "}
    for template in (
        "{{question.strip()}}\n{% for c in choices.text %}{{loop.index}}. {{c}}\n{% endfor %}\n",
        "{% set seen = [] %}{% for c in choices.label %}{% if seen.append(c) %}{% endif %}{% endfor %}{{seen|join}}",
        "{{answer | trim | regex_replace('A', 'B')}}{{choices.label.index('B')}}",
    ):
        assert utils.apply_template(template, doc) == plain.from_string(template).render(**doc)
