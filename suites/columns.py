"""Checks the columns of each task's rows, to reject a row before the run that would be scored wrongly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hambench.errors import DataError
from hambench.suites.catalogue import TaskEntry

Row = Mapping[str, Any]


def check_row(entry: TaskEntry, row: Row, where: str) -> None:
    """Checks the values of a row in the public schema, before any conversion.

    Args:
        entry: The row's task; a task without a schema accepts any row.
        row: The row; :func:`hambench.suites.rows.read_rows` checks for missing columns.
        where: File and line for the message.

    Raises:
        DataError: If a column's value does not have the type that the task reads.
    """
    for column, (test, wanted) in _schema(entry).items():
        if column in row and not test(row[column]):
            raise DataError(f"{where}: column {column!r} must be {wanted}, got {_shown(row[column])}")
    for first, second in _PAIRED.get(entry.name, ()):
        if first in row and second in row and len(row[first]) != len(row[second]):
            raise DataError(
                f"{where}: columns {first!r} and {second!r} must have the same length, "
                f"got {len(row[first])} and {len(row[second])}"
            )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) or _is_whole(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _are_texts_or_nothing(value: Any) -> bool:
    return value is None or _are_texts(value)


def _are_arguments(value: Any) -> bool:
    return isinstance(value, list) and all(each is None or isinstance(each, dict) for each in value)


def _are_choices(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    texts, labels = value.get("text"), value.get("label")
    return (
        isinstance(texts, list)
        and isinstance(labels, list)
        and _are_texts(texts)
        and _are_texts(labels)
        and (len(texts) == len(labels))
    )


Check = tuple[Callable[[Any], bool], str]
_TEXT: Check = (_is_text, "a string")
_TEXTS: Check = (_are_texts, "a list of at least one string")
_CLASSES: Check = (_are_texts, "a list of the class names, which the metric needs")
_CLASSES_OR_NONE: Check = (_are_texts_or_nothing, "null or a list of the class names")

_LONG: dict[str, Check] = {"context": _TEXT, "input": _TEXT, "question": _TEXT, "answers": _TEXTS}
_SCHEMAS: dict[str, dict[str, Check]] = {
    "ifeval": {
        "prompt": _TEXT,
        "instruction_id_list": _TEXTS,
        "kwargs": (_are_arguments, "a list of objects, one per instruction"),
    },
    "mgsm_en_cot_en": {"question": _TEXT, "answer_number": (_is_whole, "a whole number")},
    "gsm8k_cot_llama": {"question": _TEXT, "answer": _TEXT},
    "arc_challenge_chat": {
        "question": _TEXT,
        "choices": (_are_choices, "an object with the lists `text` and `label`, equally long"),
        "answerKey": _TEXT,
    },
    "humaneval_instruct": {"task_id": _TEXT, "prompt": _TEXT, "test": _TEXT, "entry_point": _TEXT},
    "mbpp_instruct": {
        "task_id": (_is_whole, "a whole number"),
        "text": _TEXT,
        "code": _TEXT,
        "test_list": _TEXTS,
    },
}
_PAIRED = {"ifeval": (("instruction_id_list", "kwargs"),)}


def _schema(entry: TaskEntry) -> dict[str, Check]:
    if not entry.config.startswith("longbench/"):
        return _SCHEMAS.get(entry.name, {})
    classes = _CLASSES if "all_classes" in entry.columns else _CLASSES_OR_NONE
    return {**_LONG, "all_classes": classes}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
