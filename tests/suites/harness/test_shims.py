"""What is made faster or stood in for gives the same results as the original."""

import importlib
import random
import sys

import pytest

from hambench.suites.harness.lm_tasks import load_config, packaged_tasks, tasks_folder
from hambench.suites.harness.shims import lcs_table, task_imports


@pytest.mark.parametrize("seed", range(6))
def test_subsequence_tables_equal_those_of_rouge(seed):
    rouge_score = importlib.import_module("rouge.rouge_score")
    rng = random.Random(seed)
    first, second = (rng.choices("abcd", k=rng.randint(0, 12)) for _ in range(2))
    table, original = lcs_table(first, second), rouge_score._lcs(first, second)
    assert all(table[i, j] == value for (i, j), value in original.items())
    assert table.size == len(original)


def test_code_tasks_are_imported_without_the_hub_and_without_running_anything():
    for name in ("humaneval", "mbpp"):
        sys.modules.pop(f"lm_eval.tasks.{name}.utils", None)
    config = load_config("humaneval/humaneval_instruct.yaml")
    assert config["task"] == "humaneval_instruct"
    assert not isinstance(sys.modules.get("evaluate"), type(None)) or "evaluate" not in sys.modules


def test_stand_ins_are_gone_afterwards():
    before = {name: sys.modules.get(name) for name in ("evaluate", "pkg_resources")}
    with task_imports(tasks_folder() / "humaneval" / "humaneval.yaml"):
        assert sys.modules["evaluate"] is not before["evaluate"]
    assert {name: sys.modules.get(name) for name in before} == before


def test_the_leaderboards_ifeval_loads_without_pkg_resources():
    assert load_config("leaderboard/ifeval/ifeval.yaml")["task"] == "leaderboard_ifeval"


def test_packaged_tasks_are_found_by_name():
    found = packaged_tasks()
    assert found["gsm8k_cot_llama"] == "gsm8k/gsm8k-cot-llama.yaml"
    assert found["longbench_lcc"] == "longbench/lcc.yaml"
