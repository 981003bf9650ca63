"""Capturing and scoring: what is asked for, from where, and what happens to what can't be had."""

import dataclasses
import json
import socket
import subprocess
import sys
import time

import pytest

from hambench.engine.chat import chat_template
from hambench.errors import DataError, HambenchError, UnknownNameError
from hambench.records import SampleRecord
from hambench.suites import (
    CaptureRequest,
    capture,
    check,
    prompt_hashes,
    resolve,
    score,
    sources,
)
from hambench.suites.catalogue import ENTRIES, tasks_of
from hambench.suites.offline import OFFLINE


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    """No test asks the network; one that plays the hub says so."""
    monkeypatch.setattr(resolve, "hub_reachable", lambda: False)
    monkeypatch.setattr(resolve, "cached_data_set", lambda name: False)


@pytest.fixture
def gsm8k(tmp_path):
    rows = [{"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"} for n in range(1, 5)]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def answers(captured, text="The final answer is 2", cell="v"):
    return [
        SampleRecord(cell=cell, sample_id=each.sample_id, prompt_hash=each.prompt_hash, text=text)
        for each in captured.samples
    ]


def by_id(captured):
    return {sample.sample_id: sample for sample in captured.samples}


def test_importing_the_suites_imports_neither_torch_nor_lm_eval():
    code = "import sys, hambench.suites; print([n for n in ('torch', 'lm_eval', 'datasets') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_with_one_task_runs_it_and_names_the_missing(gsm8k):
    captured = capture(CaptureRequest("standard", data=gsm8k))
    assert [each.sample_id for each in captured.samples] == [
        f"standard/gsm8k_cot_llama/{n}" for n in range(4)
    ]
    assert (captured.edition, captured.data_source) == ("official", "folder")
    assert set(captured.missing) == {entry.name for entry in tasks_of("standard")} - {"gsm8k_cot_llama"}
    assert "does not contain" in captured.missing["ifeval"]


def test_limit_is_per_task_and_keeps_the_first_rows(gsm8k):
    whole = capture(CaptureRequest("standard", tasks=("gsm8k_cot_llama",), data=gsm8k))
    part = capture(CaptureRequest("standard", tasks=("gsm8k_cot_llama",), data=gsm8k, limit=2))
    assert part.samples == whole.samples[:2]
    assert (whole.num_left_out, part.num_left_out) == (0, len(whole.samples) - 2)
    more = CaptureRequest("standard", tasks=("gsm8k_cot_llama",), data=gsm8k, limit=len(whole.samples))
    assert capture(more).num_left_out == 0
    with pytest.raises(HambenchError, match="limit must be >= 1, got 0"):
        capture(CaptureRequest("standard", data=gsm8k, limit=0))


def test_a_capture_without_a_limit_does_not_prepare_the_rows_to_count_them(gsm8k, monkeypatch):
    from lm_eval.api.task import ConfigurableTask

    prepared = []
    own = ConfigurableTask.test_docs
    monkeypatch.setattr(ConfigurableTask, "test_docs", lambda self: prepared.append(1) or own(self))

    def times(limit):
        prepared.clear()
        capture(CaptureRequest("standard", tasks=("gsm8k_cot_llama",), data=gsm8k, limit=limit))
        return len(prepared)

    assert times(None) == times(2) - 1 > 0


def test_few_shot_examples_are_turns_of_their_own_unless_the_preset_says_otherwise(gsm8k):
    def template(messages, *, add_generation_prompt=True):
        return "".join(f"<{each['role']}>{each['content']}" for each in messages)

    request = dict(
        suite="standard", tasks=("gsm8k_cot_llama",), data=gsm8k, limit=1, apply_chat_template=template
    )
    default = capture(CaptureRequest(**request)).samples[0]
    paper = capture(CaptureRequest(**request, preset="paper")).samples[0]
    assert default.chat
    assert default.prompt.count("<user>") == 9  # eight examples and the question
    assert paper.prompt.count("<user>") == 1
    assert paper.prompt.count("Given the following problem") == 2  # one example and the question


def test_an_answer_begun_is_left_open_in_the_chat_template(shared_data):
    class Tokenizer:
        chat_template = "x"

        def apply_chat_template(self, messages, *, tokenize, add_generation_prompt, continue_final_message):
            assert add_generation_prompt is not continue_final_message
            text = "".join(f"<{each['role']}>{each['content']}" for each in messages)
            return text + ("<assistant>" if add_generation_prompt else "")

    captured = capture(
        CaptureRequest(
            "standard",
            tasks=("arc_challenge_chat", "gsm8k_cot_llama"),
            data=shared_data,
            limit=1,
            apply_chat_template=chat_template(Tokenizer()),
        )
    )
    arc, gsm = captured.samples
    assert arc.prompt.endswith("<assistant>The best answer is")
    assert gsm.prompt.endswith("<assistant>")


def test_scores_come_from_the_tasks_own_filters(gsm8k):
    captured = capture(CaptureRequest("standard", tasks=("gsm8k_cot_llama",), data=gsm8k))
    scores = score(captured.spec, by_id(captured), answers(captured, "So 1 + 1 = 2. The final answer is 2"))
    headline = {each.sample_id: each.value for each in scores if each.primary}
    assert headline == {f"standard/gsm8k_cot_llama/{n}": float(n == 0) for n in range(4)}
    assert {each.metric for each in scores} == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert all(each.scorer.startswith("lm-eval ") for each in scores)


def test_scores_need_no_data_set_and_survive_storing(gsm8k):
    captured = capture(CaptureRequest("standard", tasks=("gsm8k_cot_llama",), data=gsm8k))
    before = score(captured.spec, by_id(captured), answers(captured))
    (gsm8k / "gsm8k.jsonl").unlink()
    spec = json.loads(json.dumps(captured.spec))
    assert score(spec, by_id(captured), answers(captured)) == before


def test_an_answer_that_was_not_generated_has_a_score_that_says_so(gsm8k):
    captured = capture(CaptureRequest("standard", tasks=("gsm8k_cot_llama",), data=gsm8k, limit=2))
    first, second = answers(captured)
    failed = SampleRecord(
        cell="v", sample_id=first.sample_id, prompt_hash=first.prompt_hash, error="out of memory"
    )
    scores = {
        each.sample_id: each
        for each in score(captured.spec, by_id(captured), [failed, second])
        if each.primary
    }
    assert scores[first.sample_id].value is None
    assert "out of memory" in scores[first.sample_id].error
    assert scores[second.sample_id].value is not None


def test_a_scorer_that_crashes_loses_only_its_own_answer(shared_data, monkeypatch):
    captured = capture(CaptureRequest("longbench", tasks=("trec", "lcc"), data=shared_data, limit=2))
    broken = next(each for each in captured.samples if each.task == "trec" and each.doc_id == 0)
    samples = by_id(captured)
    doc = {**broken.doc, "all_classes": None}
    samples[broken.sample_id] = dataclasses.replace(broken, doc=doc)
    scores = [each for each in score(captured.spec, samples, answers(captured)) if each.primary]
    assert [each.sample_id for each in scores if each.value is None] == [broken.sample_id]
    assert "TypeError" in next(each.error for each in scores if each.value is None)
    assert len(scores) == 4


def test_a_scorer_that_can_not_be_made_is_found_before_generating(gsm8k):
    captured = capture(CaptureRequest("standard", tasks=("gsm8k_cot_llama",), data=gsm8k))
    assert check(captured) == {}
    plan = {**captured.spec["tasks"]["gsm8k_cot_llama"], "config": "no/such/file.yaml"}
    broken = dataclasses.replace(captured, spec={**captured.spec, "tasks": {"gsm8k_cot_llama": plan}})
    assert "can't build the scorer" in check(broken)["gsm8k_cot_llama"]


def test_code_is_scored_only_when_running_it_is_allowed():
    captured = capture(CaptureRequest("offline-hard", tasks=("function-bodies",), limit=1))
    assert captured.num_left_out == OFFLINE["function-bodies"].entry.num_rows - 1
    solution = (
        " for i, a in enumerate(numbers):\n        for b in numbers[i + 1:]:\n"
        "            if abs(a - b) < threshold:\n                return True\n    return False\n```"
    )
    (off,) = score(captured.spec, by_id(captured), answers(captured, solution))
    assert off.value is None
    assert "--allow-code-execution" in off.error
    (on,) = score(captured.spec, by_id(captured), answers(captured, solution), allow_code_execution=True)
    assert (on.metric, on.value) == ("pass@1,create_test", 1.0)
    (wrong,) = score(
        captured.spec, by_id(captured), answers(captured, " return 1"), allow_code_execution=True
    )
    assert wrong.value == 0.0


def test_each_distinct_answer_is_scored_once(gsm8k, monkeypatch):
    from hambench.suites.harness import replay

    captured = capture(CaptureRequest("standard", tasks=("gsm8k_cot_llama",), data=gsm8k, limit=1))
    calls = []
    original = replay.replay
    monkeypatch.setattr(replay, "replay", lambda *args: calls.append(args) or original(*args))
    records = [
        *answers(captured, cell="a"),
        *answers(captured, cell="b"),
        *answers(captured, "other", cell="c"),
    ]
    scores = score(captured.spec, by_id(captured), records)
    assert len(calls) == 2
    assert {each.cell for each in scores} == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (CaptureRequest("longbenhc"), "unknown suite 'longbenhc'; did you mean longbench"),
        (CaptureRequest("longbench", tasks=("lccc",)), "unknown task of this suite 'lccc'; did you mean lcc"),
        (
            CaptureRequest(None, tasks=("gsm8k_cot_lama",)),
            "unknown task 'gsm8k_cot_lama'; did you mean gsm8k_cot_llama",
        ),
        (CaptureRequest("longbench", preset="papr"), "unknown preset 'papr'; did you mean paper"),
    ],
)
def test_unknown_names_say_what_was_meant(request_, kind):
    with pytest.raises(UnknownNameError, match=kind):
        capture(request_)


def test_nothing_asked_and_nothing_there_are_errors(tmp_path):
    with pytest.raises(HambenchError, match="nothing to run"):
        capture(CaptureRequest(None))
    with pytest.raises(DataError, match="does not exist"):
        capture(CaptureRequest("longbench", data=tmp_path / "absent"))
    with pytest.raises(DataError, match="no task of 'standard' can be run"):
        capture(CaptureRequest("standard", data=tmp_path))


def test_broken_data_is_an_error_with_its_line(tmp_path):
    (tmp_path / "lcc.jsonl").write_text('{"context": "a", "answers": ["b"]}\n{"context": "a"}\n')
    with pytest.raises(DataError, match=r"lcc\.jsonl, line 2: missing column 'answers'"):
        capture(CaptureRequest("longbench", data=tmp_path))


def test_any_generative_task_of_lm_eval_runs_by_name(tmp_path):
    (tmp_path / "gsm8k_cot_zeroshot.jsonl").write_text(
        json.dumps({"question": "1+1?", "answer": "x #### 2"}) + "\n"
    )
    captured = capture(CaptureRequest(None, tasks=("gsm8k_cot_zeroshot",), data=tmp_path))
    assert captured.samples[0].prompt == "Q: 1+1?\nA: Let's think step by step."
    scores = score(captured.spec, by_id(captured), answers(captured, "The answer is 2."))
    assert {each.metric: each.value for each in scores}["exact_match,strict-match"] == 1.0


def test_a_task_that_compares_likelihoods_is_missing_with_its_reason(tmp_path):
    row = {"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A", "id": "1"}
    for name in ("arc_easy", "gsm8k_cot_llama"):
        filled = {**row, "answer": "#### 1"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(filled) + "\n")
    captured = capture(CaptureRequest(None, tasks=("arc_easy", "gsm8k_cot_llama"), data=tmp_path))
    assert "likelihoods" in captured.missing["arc_easy"]
    assert [each.task for each in captured.samples] == ["gsm8k_cot_llama"]


def test_a_suite_of_ones_own_is_a_list_in_yaml(gsm8k):
    path = gsm8k / "mine.yaml"
    path.write_text(
        "name: mine\ntasks:\n  - task: gsm8k_cot_llama\n    num_fewshot: 2\n    max_gen_toks: 7\n"
    )
    captured = capture(CaptureRequest(str(path), data=gsm8k, limit=1))
    (sample,) = captured.samples
    assert (sample.sample_id, sample.max_new_tokens) == ("mine/gsm8k_cot_llama/0", 7)
    assert sample.prompt.count("Problem:") == 3
    path.write_text("tasks: lcc\n")
    with pytest.raises(DataError, match="must contain `tasks:`"):
        capture(CaptureRequest(str(path)))


def test_without_data_the_offline_edition_stands_in_under_its_own_name():
    captured = capture(CaptureRequest("longbench", limit=1))
    assert (captured.edition, captured.data_source, captured.suite) == (
        "offline",
        "offline edition",
        "offline-long",
    )
    assert any("offline edition" in note.text for note in captured.notes)
    for sample in captured.samples:
        shown = f"{sample.sample_id} {sample.suite} {sample.task}".lower()
        assert sample.edition == "offline"
        assert not any(name in shown for name in ("longbench", "lcc", "gsm8k", "ifeval", "trec"))


def test_a_task_has_its_own_stand_in_and_lacks_of_them_are_told():
    captured = capture(CaptureRequest("longbench", tasks=("lcc", "vcsum"), limit=1))
    assert [each.task for each in captured.samples] == ["stdlib-next-line"]
    assert "no counterpart" in captured.missing["vcsum"]


def test_the_hub_is_used_when_it_answers(monkeypatch):
    import datasets

    asked = []

    def load(path, name=None, split=None):
        asked.append((path, name, split))
        return [
            {
                "context": "def f():\n",
                "question": "",
                "answers": ["    pass"],
                "all_classes": None,
                "length": 2,
            }
        ]

    monkeypatch.setattr(resolve, "hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    captured = capture(CaptureRequest("longbench", tasks=("lcc",)))
    assert (captured.edition, captured.data_source) == ("official", "hub")
    assert asked == [("Xnhyacinth/LongBench", "lcc", "test")]
    assert captured.samples[0].prompt.endswith("def f():\nNext line of code:\n")


@pytest.mark.parametrize("raised", ["raise_exception('must end with a user turn')", "1 + 'a'"])
def test_a_template_that_raises_makes_its_tasks_missing_with_the_reason(raised):
    class Tokenizer:
        chat_template = "there is one"

        def apply_chat_template(self, messages, **_):
            import jinja2

            if len(messages) > 1:
                environment = jinja2.Environment()
                environment.globals["raise_exception"] = _refuse
                return environment.from_string("{{ " + raised + " }}").render()
            return messages[0]["content"]

    request = CaptureRequest(
        "standard", edition="offline", limit=1, apply_chat_template=chat_template(Tokenizer())
    )
    captured = capture(request)
    assert "chat template refuses these messages" in captured.missing["one-step-problems"]
    assert {each.task for each in captured.samples} >= {"built-instructions", "small-sums"}


def test_speed_prompts_that_a_template_refuses_are_missing_with_the_reason():
    class Tokenizer:
        chat_template = "there is one"

        def apply_chat_template(self, messages, **_):
            raise ValueError("no")

    request = CaptureRequest(
        "efficiency",
        edition="offline",
        apply_chat_template=chat_template(Tokenizer()),
        count_tokens=lambda text: len(text.split(" ")),
    )
    captured = capture(request)
    assert "chat template refuses these messages" in captured.missing["prompt-mathematics"]
    assert captured.samples


def test_settings_that_break_a_task_make_it_missing_with_the_reason(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "tasks:\n  - module-purpose\n  - {task: small-sums, doc_to_text: '{{ question | nosuchfilter }}'}\n"
    )
    captured = capture(CaptureRequest(str(path), edition="offline", limit=1))
    assert "can't build its requests" in captured.missing["small-sums"]
    assert {each.task for each in captured.samples} == {"module-purpose"}


def test_settings_of_an_official_task_are_not_silently_lost_offline(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "tasks: [{task: small-sums, max_gen_toks: 7}, {task: arc_challenge_chat, max_gen_toks: 3}]\n"
    )
    captured = capture(CaptureRequest(str(path), edition="offline", limit=1))
    assert {each.task: each.max_new_tokens for each in captured.samples} == {
        "small-sums": 7,
        "module-look-up": 4,
    }
    assert any("settings of arc_challenge_chat are not applied" in note.text for note in captured.notes)


def _refuse(message):
    raise ValueError(message)


def test_a_data_set_that_the_hub_refuses_is_missing_with_its_reason(monkeypatch):
    import datasets

    def load(path, name=None, split=None):
        if path == "google/IFEval":
            raise ConnectionError("gated")
        return [{"question": "1+1?", "answer": "#### 2"}]

    monkeypatch.setattr(resolve, "hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    captured = capture(CaptureRequest("standard", tasks=("ifeval", "gsm8k_cot_llama")))
    assert "ConnectionError: gated" in captured.missing["ifeval"]
    assert [each.task for each in captured.samples] == ["gsm8k_cot_llama"]


def test_the_catalogue_names_the_hubs_data_sets_as_lm_eval_does():
    from hambench.suites.harness.lm_tasks import load_config

    for entry in ENTRIES.values():
        loaded = load_config(entry.config)
        split = loaded.get("test_split") or loaded.get("validation_split")
        assert entry.hub == (loaded["dataset_path"], loaded.get("dataset_name"), split), entry.name


def test_a_silent_hub_costs_seconds_at_most(monkeypatch):
    # takes connections and never answers
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        sources.hub_reachable.cache_clear()
        begin = time.monotonic()
        try:
            assert sources.hub_reachable(timeout_s=0.3) is False
        finally:
            sources.hub_reachable.cache_clear()
    assert time.monotonic() - begin < 3


def test_the_hub_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert sources.hub_switched_off()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert not sources.hub_switched_off()


def test_data_hashes_follow_prompts_and_their_order(gsm8k):
    captured = capture(CaptureRequest("standard", tasks=("gsm8k_cot_llama",), data=gsm8k))
    assert captured.data_hashes == prompt_hashes(captured.samples)
    assert prompt_hashes(captured.samples[::-1]) != captured.data_hashes
    assert len(captured.data_hashes["gsm8k_cot_llama"]) == 64


@pytest.mark.parametrize("variable", ["HF_DATASETS_CACHE", "HF_HOME"])
def test_a_tilde_in_the_place_of_cached_data_sets_is_the_home(tmp_path, monkeypatch, variable):
    from hambench.suites.sources import cached_data_set

    for name in ("HF_DATASETS_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, "~/sets")
    assert not cached_data_set("owner/rows")
    (tmp_path / "sets" / ("" if variable == "HF_DATASETS_CACHE" else "datasets") / "owner___rows").mkdir(
        parents=True
    )
    assert cached_data_set("owner/rows")
