"""Builds lm-eval's task objects from its packaged files, without its index, which takes seconds to build.

A task needs a packaged task file, the keys that hambench replaces in it, and rows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hambench.errors import DataError, HambenchError, UnknownNameError

Row = dict[str, Any]

_NAME = re.compile(rb"(?m)^(task|group):[ \t]*[\"']?([^\s\"'#\[]+)")
_FEW_SHOT_SEED = 1234  # lm-eval's default; few-shot examples must not depend on a run's seed


def lm_eval_version() -> str:
    """Returns the version of the installed lm-eval."""
    return version("lm-eval")


SCORER_PACKAGES = {
    "longbench": ("jieba", "fuzzywuzzy", "rouge"),
    "ifeval": ("langdetect", "immutabledict", "nltk"),
}
"""Packages that the scorers in a folder of lm-eval's tasks import; another version may score differently."""


def scorer_of(config: str) -> str:
    """Returns a task file's scorer: lm-eval and the packages that its scorers use, with versions."""
    packages = SCORER_PACKAGES.get(config.split("/")[0], ())
    versions = [f"{name} {found}" for name in packages if (found := version_or_none(name)) is not None]
    return ", ".join([f"lm-eval {lm_eval_version()}", *versions])


def version_or_none(name: str) -> str | None:
    """Version of an installed package; ``None`` if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def tasks_folder() -> Path:
    """Returns the folder of lm-eval's task files, without importing lm-eval."""
    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise HambenchError(
            "lm-eval is not installed; install it with `pip install 'lm-eval[longbench,ifeval]'`"
        )
    return Path(spec.submodule_search_locations[0]) / "tasks"


@cache
def packaged_tasks() -> dict[str, str]:
    """Maps the name of every task that lm-eval packages to its task file, relative to lm-eval's folder.

    It searches the files' text, so it misses the few tasks whose name is not written in a file of their own.
    """
    root = tasks_folder()
    found: dict[str, str] = {}
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        for name in sorted(names):
            if name.endswith(".yaml"):
                path = Path(folder) / name
                for kind, task in _NAME.findall(path.read_bytes()):
                    if kind == b"task":
                        found.setdefault(task.decode(), str(path.relative_to(root)))
    return found


def find_config(task: str) -> str:
    """Returns the packaged task file of ``task``.

    Raises:
        UnknownNameError: If lm-eval has no task of that name.
    """
    known = packaged_tasks()
    if task not in known:
        alike = [name for name in known if name[:3] == task[:3]]
        raise UnknownNameError("task", task, alike)
    return known[task]


def load_config(config: str) -> dict[str, Any]:
    """Loads a task file as lm-eval does: merges includes and imports functions.

    The import uses :mod:`hambench.suites.harness.shims`.

    Args:
        config: Path relative to lm-eval's ``tasks`` folder.

    Raises:
        HambenchError: If it lies elsewhere, or its answers are programs that would run outside the sandbox.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    from hambench.suites.harness.shims import sandbox_templates, scores_in_sandbox, task_imports

    path = _own_file(config)
    sandbox_templates()
    with task_imports(path):
        loaded = dict(deepcopy(load_yaml(path)))
    if loaded.get("unsafe_code") and not scores_in_sandbox(path):
        raise HambenchError(
            f"lm-eval's task {loaded.get('task', config)!r} runs programs that the model writes, outside any sandbox: "
            "hambench asks the tasks of HumanEval and MBPP, whose programs it can put into its own"
        )
    return loaded


def _own_file(config: str) -> Path:
    root = tasks_folder().resolve()
    path = (root / config).resolve()
    if not path.is_relative_to(root):
        # a task file names functions of modules next to it: code that a run folder of others must not bring along
        raise HambenchError(f"the task file {config!r} is not one of lm-eval's own, and others are not run")
    return path


def check_own_metrics(config: str, settings: Mapping[str, Any]) -> None:
    """Checks that the metrics that ``settings`` name need no code from elsewhere.

    lm-eval looks for a name that it does not know among the programs of the package ``evaluate``, which may be files
    of the current folder.

    Raises:
        HambenchError: If a metric is neither of lm-eval nor of the task's own file.
    """
    from lm_eval.api import metrics, registry

    assert metrics  # importing it fills the registry
    asked = settings.get("metric_list") or []
    own = (load_config(config).get("metric_list") or []) if asked else []
    for each in asked:
        if each in own:
            continue
        name = each.get("metric") if isinstance(each, dict) and not each.get("hf_evaluate") else None
        if not isinstance(name, str) or name not in registry.METRIC_REGISTRY:
            raise HambenchError(f"the metric {each!r} is not one of lm-eval's own, and others are not run")


def build_task(
    config: str,
    *,
    name: str,
    settings: Mapping[str, Any],
    rows: Sequence[Row] | None,
    extra_splits: Mapping[str, Any] = {},
) -> Any:
    """Builds the lm-eval task over ``rows``.

    Args:
        config: Task file, relative to lm-eval's folder.
        name: Name for the task.
        settings: Keys that replace the file's; ``max_gen_toks`` and ``until`` go into its ``generation_kwargs``.
        rows: Rows of the split to run; ``None`` lets the task load its own data set.
        extra_splits: Rows of other splits (few-shot examples), by split name.

    Raises:
        DataError: If the rows don't fit the task.
        HambenchError: If the task doesn't generate text.
    """
    from lm_eval.api.task import ConfigurableTask

    from hambench.suites.harness.shims import task_imports

    loaded = load_config(config)
    for key in ("tag", "group", "task_list"):
        loaded.pop(key, None)
    loaded |= {key: value for key, value in settings.items() if key not in ("max_gen_toks", "until")}
    generation = dict(loaded.get("generation_kwargs") or {})
    generation |= {key: settings[key] for key in ("max_gen_toks", "until") if key in settings}
    loaded |= {"task": name, "generation_kwargs": generation, "repeats": 1}
    if loaded.get("output_type", "generate_until") != "generate_until":
        raise HambenchError(
            f"task {name!r} compares likelihoods ({loaded['output_type']}); hambench runs tasks that generate text"
        )
    loaded["output_type"] = "generate_until"
    if rows is not None:
        splits = {_asked_split(loaded): rows, **extra_splits}
        for key in ("training_split", "validation_split", "fewshot_split"):
            if loaded.get(key) not in splits:
                loaded[key] = None
        loaded["custom_dataset"] = lambda **_: {split: _dataset(name, each) for split, each in splits.items()}
    with task_imports(_own_file(config)):
        task = ConfigurableTask(config=loaded)
    if task.config.num_fewshot is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(_FEW_SHOT_SEED)
    return task


def _asked_split(config: Mapping[str, Any]) -> str:
    split = config.get("test_split") or config.get("validation_split")
    if not split:
        raise DataError(f"task {config['task']!r} names neither a test nor a validation split")
    return str(split)


def _dataset(name: str, rows: Sequence[Row]) -> Any:
    from datasets import Dataset
    from pyarrow import ArrowException

    try:
        return Dataset.from_list(list(rows))
    except (ArrowException, ValueError, TypeError) as error:
        raise DataError(f"the rows of task {name!r} don't have one type per column: {error}") from error
