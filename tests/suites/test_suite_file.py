"""Suite files: what they may hold, and that anything else is one error that names the file."""

import dataclasses

import pytest

from hambench.errors import DataError
from hambench.suites.suite_file import SETTINGS, check_settings, read_suite_file


def write(tmp_path, text):
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_names_and_settings_are_read_in_order_whatever_marks_the_file_begins_with(tmp_path):
    path = write(tmp_path, "\ufefftasks:\n  - lcc\n  - {task: trec, num_fewshot: 0, until: ['\\n']}\n")
    assert read_suite_file(path) == ("my", (("lcc", {}), ("trec", {"num_fewshot": 0, "until": ["\\n"]})))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [lcc, {task: lcc, max_gen_toks: 8}]", "'lcc' is listed twice"),
        ("tasks: [{task: lcc, max_gen_toks: lots}]", "max_gen_toks must be a whole number >= 1, got 'lots'"),
        ("tasks: [{task: lcc, max_gen_toks: -5}]", "max_gen_toks must be a whole number >= 1, got -5"),
        ("tasks: [{task: lcc, max_gen_toks: true}]", "max_gen_toks must be a whole number >= 1, got True"),
        ("tasks: [{task: lcc, until: 5}]", "until must be a string or a list of strings"),
        (
            "tasks: [{task: lcc, until: ['']}]",
            "until must be a string or a list of strings, none of them empty",
        ),
        ("tasks: [{task: lcc, num_fewshot: x}]", "num_fewshot must be a whole number >= 0, got 'x'"),
        ("tasks: [{task: lcc, num_fewshots: 1}]", "num_fewshots.*did you mean.*num_fewshot"),
        ("tasks: [{task: lcc, generation_kwargs: {max_gen_toks: 0}}]", "generation_kwargs must be"),
        ("tasks: [{task: lcc, multiturn: 'no'}]", "multiturn must be true or false"),
        ("tasks: [5]", "each task must be a name or a mapping"),
        ("tasks: []", "must contain `tasks:`"),
        ("tasks: [lcc]\nlimit: 5", "got 'limit'"),
        ("tasks: [lcc]\nname: [a]", "the suite's name must be a string"),
        ("tasks: [", "is not YAML"),
        ("[" * 100_000, "is nested too deeply"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=message) as raised:
        read_suite_file(path)
    assert "my.yaml" in str(raised.value)
    assert "\n" not in str(raised.value).strip() or "can't read" in str(raised.value)


def test_every_setting_is_a_key_of_lm_evals_task_files():
    from lm_eval.api.task import TaskConfig

    own = {"max_gen_toks", "until", "multiturn"}
    assert set(SETTINGS) - own <= {field.name for field in dataclasses.fields(TaskConfig)}


def test_settings_that_are_right_pass():
    check_settings(
        {"max_gen_toks": 1, "until": "\n", "multiturn": False, "generation_kwargs": {"until": ["a"]}}, "here"
    )
