"""Stand-ins for online resources that lm-eval's task modules load at import.

The modules of HumanEval and MBPP load a metric from the hub, and those of IFEval download NLTK data, before any prompt
is built. With the stand-ins, their own functions (prompts, filters, checkers) work unchanged offline.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock


@contextlib.contextmanager
def task_imports(config: Path) -> Iterator[None]:
    """Lets the task modules next to ``config`` be imported without the hub and without downloads."""
    wanted = _imported_beside(config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet_lm_eval())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if "jieba" in wanted:
            _quiet_imports()
        if "evaluate" in wanted:
            stack.enter_context(_evaluate())
        if "nltk" in wanted:
            stack.enter_context(_nltk())
        if "pkg_resources" in wanted:
            stack.enter_context(_pkg_resources())
        yield


@functools.cache
def sandbox_templates() -> None:
    """Puts the templates of tasks into jinja2's sandbox, for the rest of the process.

    A template of a stored run comes from whoever made the run folder, and an unconfined one can run any code.
    """
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    own = utils.env
    sandbox = SandboxedEnvironment(
        loader=own.loader, undefined=own.undefined, keep_trailing_newline=own.keep_trailing_newline
    )
    sandbox.filters.update(own.filters)
    utils.env = sandbox


def scores_in_sandbox(config: Path) -> bool:
    """Whether programs of the task run by ``evaluate``'s ``code_eval``, which is hambench's sandbox here."""
    return "evaluate" in _imported_beside(config) and not _starts_programs(config)


def _starts_programs(config: Path) -> bool:
    return any("subprocess" in path.read_text(encoding="utf-8") for path in config.parent.glob("*.py"))


@contextlib.contextmanager
def fast_lm_eval() -> Iterator[None]:
    """Speeds lm-eval up, and makes its results independent of other installed packages, in the context.

    lm-eval compiles a prompt template for every row, and the package ``rouge`` stores its tables of longest common
    subsequences in dictionaries. Together that takes nine tenths of the time of capturing and scoring. The package
    ``fuzzywuzzy`` gives different values if python-Levenshtein is installed.
    """
    from lm_eval import utils

    compiled = functools.lru_cache(maxsize=512)(utils.env.from_string)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(utils.env, "from_string", compiled))
        if "rouge" in sys.modules:
            rouge_score = importlib.import_module("rouge.rouge_score")
            stack.enter_context(mock.patch.object(rouge_score, "_lcs", lcs_table))
        if "fuzzywuzzy" in sys.modules:
            fuzz = importlib.import_module("fuzzywuzzy.fuzz")
            stack.enter_context(mock.patch.object(fuzz, "SequenceMatcher", difflib.SequenceMatcher))
        yield


def lcs_table(first: Sequence[str], second: Sequence[str]) -> Any:
    """Returns the lengths of the longest common subsequences of all prefixes at ``[i, j]``, like ``rouge_score._lcs``.

    It is an array because a look-up adds no Python frame. The caller recurses, and an answer scores 0 if the recursion
    is too deep.
    """
    import numpy as np

    rows = [[0] * (len(second) + 1)]
    for word in first:
        above, row, left = rows[-1], [0], 0
        for j, other in enumerate(second):
            if word == other:
                left = above[j] + 1
            elif above[j + 1] > left:
                left = above[j + 1]
            row.append(left)
        rows.append(row)
    return np.array(rows)


@contextlib.contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Lets lm-eval log only errors, and hides its progress bars, in the context."""
    from lm_eval.api import task as task_module

    logger = logging.getLogger("lm_eval")
    children = [
        logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("lm_eval.")
    ]
    levels = [(each, each.level) for each in (logger, *children)]
    for each, _ in levels:
        each.setLevel(logging.ERROR)
    try:
        with mock.patch.object(task_module, "tqdm", lambda iterable, **kwargs: iterable):
            yield
    finally:
        for each, level in levels:
            each.setLevel(level)


@contextlib.contextmanager
def _evaluate() -> Iterator[None]:
    """Replaces the package ``evaluate``, which loads its metrics from the hub (and imports torch)."""
    from hambench.suites.harness.code_eval import CODE_EVAL

    stand_in = _LazyEvaluate("evaluate")
    before = sys.modules.get("evaluate")
    sys.modules["evaluate"] = stand_in
    try:
        # importing the code tasks runs a test program, which must not run here
        with CODE_EVAL.importing():
            yield
    finally:
        del sys.modules["evaluate"]
        if before is not None:
            sys.modules["evaluate"] = before


class _LazyEvaluate(types.ModuleType):
    """``evaluate`` with our ``code_eval``; loads everything else from the real package on demand."""

    def load(self, path: str, *args: Any, **kwargs: Any) -> Any:
        from hambench.suites.harness.code_eval import CODE_EVAL

        return CODE_EVAL if path == "code_eval" else self._real().load(path, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._real(), name)

    def _real(self) -> Any:
        if sys.modules.get("evaluate") is self:
            del sys.modules["evaluate"]
        return importlib.import_module("evaluate")


def _imported_beside(config: Path) -> set[str]:
    """Returns the packages with a stand-in that modules in the folder of ``config`` import."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(config.parent.glob("*.py")))
    return {name for name in ("evaluate", "nltk", "pkg_resources", "jieba") if f"import {name}" in text}


@contextlib.contextmanager
def _nltk() -> Iterator[None]:
    """Lets NLTK find hambench's sentence data without downloads, and makes language detection repeatable."""
    import langdetect
    import nltk

    from hambench.suites.harness.sentences import find_punkt

    find_punkt()
    # without a seed the same text can get different scores
    langdetect.DetectorFactory.seed = 0
    with mock.patch.object(nltk, "download", return_value=False):
        yield


@contextlib.contextmanager
def _pkg_resources() -> Iterator[None]:
    """Replaces ``pkg_resources``, which setuptools dropped but ``leaderboard_ifeval`` still uses for a version."""
    if "pkg_resources" in sys.modules or importlib.util.find_spec("pkg_resources"):
        yield
        return
    stand_in = types.ModuleType("pkg_resources")
    stand_in.get_distribution = importlib.metadata.distribution  # type: ignore[attr-defined]
    # mock.patch.dict would also remove everything else imported meanwhile from sys.modules
    sys.modules["pkg_resources"] = stand_in
    try:
        yield
    finally:
        del sys.modules["pkg_resources"]


def longbench_metrics() -> Any:
    """lm-eval's module of LongBench's metrics, imported without the chatter of the libraries behind it."""
    _quiet_imports()
    return importlib.import_module("lm_eval.tasks.longbench.metrics")


def _quiet_imports() -> None:
    """Imports the scorers' libraries that print messages on first use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("fuzzywuzzy.fuzz", "jieba"):
            # a task that needs a missing package reports it
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    if "jieba" in sys.modules:
        logging.getLogger("jieba").setLevel(logging.WARNING)
