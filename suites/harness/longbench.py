"""Corrects lm-eval's LongBench tasks where they differ from LongBench's own code.

lm-eval's packaged tasks (0.4.13) lose a trailing blank or newline of five prompts and a blank line of two, stop at
the first newline instead of scoring the first line, and skip blank lines before the line of code that is scored.
The corrections apply to lm-eval's own files; the digests below detect a file that has changed since.
The source of truth is github.com/THUDM/LongBench, LongBench/{config/dataset2prompt.json, pred.py, eval.py}.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from difflib import SequenceMatcher
from typing import Any

from hambench.errors import HambenchError
from hambench.suites.catalogue import FIRST_LINE

Row = dict[str, Any]

_ENDS = {
    "lcc": "\n",
    "repobench-p": "\n",
    "passage_count": " ",
    "passage_retrieval_en": " ",
}
_BLANK_LINE_BEFORE_QUESTION = frozenset({"triviaqa", "samsum"})

METRIC_NAMES = {
    **dict.fromkeys(
        ("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique", "triviaqa"), "F1"
    ),
    "multifieldqa_zh": "F1 (zh)",
    **dict.fromkeys(("gov_report", "qmsum", "multi_news", "samsum"), "ROUGE-L"),
    **dict.fromkeys(("dureader", "vcsum"), "ROUGE-L (zh)"),
    **dict.fromkeys(("trec", "lsht"), "classification"),
    **dict.fromkeys(("passage_retrieval_en", "passage_retrieval_zh"), "retrieval"),
    "passage_count": "count",
    **dict.fromkeys(("lcc", "repobench-p"), "edit similarity"),
}
"""The metric behind ``score``, by task."""

# sha256[:16] of the official templates, with {context} and {input} as placeholders
PROMPT_DIGESTS = {
    "narrativeqa": "aada7ed24b06abac",
    "qasper": "0fbdd123fe7f83d6",
    "multifieldqa_en": "20b4666a2de8a1f7",
    "multifieldqa_zh": "344b3a4e557cd547",
    "hotpotqa": "9ec4ae308865bd0c",
    "2wikimqa": "9ec4ae308865bd0c",
    "musique": "9ec4ae308865bd0c",
    "dureader": "ae53329f51b17908",
    "gov_report": "91c25d585b189ced",
    "qmsum": "dca23b678fe0183b",
    "multi_news": "2af3f28c40b902e6",
    "vcsum": "3e5d8241bc9b512e",
    "trec": "0eff8bebdba99d91",
    "triviaqa": "00a802e6377e72fc",
    "samsum": "a68d884234907eef",
    "lsht": "f3edabdf7fae53d6",
    "passage_count": "986550b6c61009c6",
    "passage_retrieval_en": "39b96b7fa52bdd2a",
    "passage_retrieval_zh": "c1e2346e245eb365",
    "lcc": "6a1f24cf0bb83cd9",
    "repobench-p": "ee9ec182ea5ffeb7",
}


def base_name(task: str) -> str:
    """Returns LongBench's name of a task of LongBench or LongBench-E."""
    return task.removesuffix("_e")


def repaired(task: str, loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys to replace in lm-eval's task file, so that ``task`` has LongBench's prompts and scores.

    Raises:
        HambenchError: If the corrected prompt is not LongBench's because lm-eval has changed the file.
    """
    name = base_name(task)
    prompt = str(loaded["doc_to_text"]).replace("{{question}}", "{{input}}").rstrip(" \n") + _ENDS.get(
        name, ""
    )
    if name in _BLANK_LINE_BEFORE_QUESTION:
        prompt = prompt.replace("{{context}}\n\n{{input}}", "{{context}}\n{{input}}")
        prompt = prompt.replace("{{context}}\n{{input}}", "{{context}}\n\n{{input}}")
    if digest(prompt) != PROMPT_DIGESTS[name]:
        raise HambenchError(
            f"the prompt of LongBench task {task!r} in this lm-eval is not LongBench's; use lm-eval 0.4.13"
        )
    settings: dict[str, Any] = {
        "doc_to_text": prompt,
        "process_results": _scorer(name, loaded["process_results"]),
    }
    if name in FIRST_LINE and name != "samsum":
        # LongBench generates past the first line but scores only it; of these four, only samsum stops there
        settings["until"] = []
    return settings


def digest(template: str) -> str:
    """Returns the digest of a prompt template, with Jinja's double braces read as single ones."""
    plain = template.replace("{{", "{").replace("}}", "}")
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def first_line(prediction: str) -> str:
    """Returns the part of an answer that LongBench scores in its few-shot tasks (eval.py, ``scorer``)."""
    return prediction.lstrip("\n").split("\n")[0]


def code_line(prediction: str) -> str:
    """Returns the line of an answer that LongBench compares with the code (metrics.py, ``code_sim_score``).

    It is the first line without a backtick, ``#`` or ``//``. Leading newlines don't count as lines; blank lines do.
    """
    lines = prediction.lstrip("\n").split("\n")
    return next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")


def code_similarity(prediction: str, reference: str) -> float:
    """Returns the edit similarity of the answer's line of code, 0..1 (metrics.py, ``code_sim_score``)."""
    return edit_similarity(code_line(prediction), reference)


def edit_similarity(first: str, second: str) -> float:
    """Computes ``fuzzywuzzy.fuzz.ratio`` as LongBench's requirements install it, 0..1 in steps of a hundredth.

    With python-Levenshtein installed, that function gives different values, by 3 points on average. This one always
    uses Python's own ``difflib``.
    """
    if first == second:
        return 1.0
    if not first or not second:
        return 0.0
    return round(100 * SequenceMatcher(None, first, second).ratio()) / 100


def _scorer(
    name: str, packaged: Callable[[Row, list[str]], dict[str, float]]
) -> Callable[..., dict[str, float]]:
    """Adds LongBench's score as ``score`` to lm-eval's own metric of the task."""

    def first_line_score(doc: Row, results: list[str]) -> dict[str, float]:
        return packaged(doc, [first_line(results[0])])

    def code_score(doc: Row, results: list[str]) -> dict[str, float]:
        official = max(code_similarity(results[0], str(answer)) for answer in doc["answers"])
        return {**packaged(doc, results), "score": official}

    if name in FIRST_LINE:
        return first_line_score
    if name in ("lcc", "repobench-p"):
        return code_score
    return packaged
