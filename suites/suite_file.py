"""Reads a custom suite from a YAML file: task names, and settings that replace those of their task files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hambench.errors import DataError, UnknownNameError
from hambench.files import printable
from hambench.yaml_files import read_yaml

Settings = Mapping[str, Any]


def read_suite_file(path: Path) -> tuple[str, tuple[tuple[str, Settings], ...]]:
    """Reads the suite's name and its tasks in order.

    The file's form is ``{name: …, tasks: [NAME | {task: NAME, key: value …}]}``.

    Raises:
        DataError: If the file can't be read, has another form or names a task twice, or if a setting's key or value is
            invalid; the message names the file.
    """
    loaded = read_yaml(path)
    items = loaded.get("tasks") if isinstance(loaded, dict) else None
    if not isinstance(items, list) or not items:
        raise DataError(f"{path} must contain `tasks:` with a list of task names")
    for key in loaded:
        if key not in ("name", "tasks"):
            raise DataError(f"{path}: a suite file may only contain `name:` and `tasks:`, got {key!r}")
    name = loaded.get("name", printable(path.stem))
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{path}: the suite's name must be a string, got {name!r}")
    tasks: dict[str, Settings] = {}
    for item in items:
        task, settings = _task(item, path)
        if task in tasks:
            # sample ids contain the task's name, so a second task of that name would replace the first
            raise DataError(
                f"{path}: task {task!r} is listed twice; list it once, or write two suite files for two settings"
            )
        tasks[task] = settings
    return name, tuple(tasks.items())


def check_settings(settings: Settings, where: str) -> None:
    """Checks the keys and values that replace those of a task file.

    Raises:
        DataError: If there is no such key, or a value has the wrong type.
    """
    for key, value in settings.items():
        if key not in SETTINGS:
            raise DataError(f"{where}: {UnknownNameError('setting of a task', str(key), SETTINGS)}")
        test, wanted = SETTINGS[key]
        if not test(value):
            raise DataError(f"{where}: {key} must be {wanted}, got {value!r}")


def _task(item: Any, path: Path) -> tuple[str, Settings]:
    if isinstance(item, str):
        return item, {}
    if not isinstance(item, dict) or not isinstance(item.get("task"), str):
        raise DataError(f"{path}: each task must be a name or a mapping with `task: NAME`, got {item!r}")
    settings = {key: value for key, value in item.items() if key != "task"}
    check_settings(settings, f"{path}, task {item['task']!r}")
    return item["task"], settings


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_positive(value: Any) -> bool:
    return _is_count(value) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _are_stop_strings(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list) and all(isinstance(each, str) and each for each in texts)


def _is_generation(value: Any) -> bool:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        return False
    lengths = [value[key] for key in LENGTH_KEYS if value.get(key) is not None]
    return all(_is_positive(each) for each in lengths) and _are_stop_strings(value.get("until") or [])


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


LENGTH_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Keys of lm-eval's task files for the maximum length of an answer."""

_TEXT = (_is_text, "a string")
_SPLIT = (_is_text_or_none, "the name of a split, or null")

SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_gen_toks": (_is_positive, "a whole number >= 1"),
    "until": (_are_stop_strings, "a string or a list of strings, none of them empty"),
    "num_fewshot": (_is_count, "a whole number >= 0"),
    "multiturn": (_is_switch, "true or false"),
    "generation_kwargs": (
        _is_generation,
        "a mapping whose lengths are whole numbers >= 1 and whose `until` is a string or a list of strings",
    ),
    "description": _TEXT,
    "doc_to_text": _TEXT,
    "doc_to_target": _TEXT,
    "target_delimiter": _TEXT,
    "fewshot_delimiter": _TEXT,
    "gen_prefix": (_is_text_or_none, "a string or null"),
    "dataset_path": _TEXT,
    "dataset_name": (_is_text_or_none, "a string or null"),
    "dataset_kwargs": (_is_mapping, "a mapping"),
    "training_split": _SPLIT,
    "validation_split": _SPLIT,
    "test_split": _SPLIT,
    "fewshot_split": _SPLIT,
    "fewshot_config": (_is_mapping, "a mapping"),
    "filter_list": (_is_list, "a list"),
    "metric_list": (_is_list, "a list"),
    "metadata": (_is_mapping, "a mapping"),
}
"""Keys of a task file that a suite may set, each with a check of the value and its description.

Keys that hambench sets itself (rows, output type, number of repeats) are not among them.
"""
