"""Names that a gate's worker asks of another commit's hambench: they stay where they are."""

import importlib
import re

import pytest

from hambench.gating.worker_process import WORKER

NAMES = [
    ("hambench.decoding", "SamplingParams"),
    ("hambench.engine", "generate"),
    ("hambench.registry", "method_config"),
    ("hambench.models", "load"),
    ("hambench.gating.toy", "load_toy"),
]
MOVED = [("hambench.engine.text", "encode_text"), ("hambench.prompts", "encode_text")]
"""A name that the worker looks for in its place of today and in that of commits before the rooms."""

LATER = [("hambench.runner.backend", "choose_kernels"), ("hambench.runner.backend", "run_by")]
"""Names that commits from before kernels could be chosen lack; the worker does without them."""


@pytest.mark.parametrize(("module", "name"), [*NAMES, *LATER])
def test_it_is_importable(module, name):
    assert callable(getattr(importlib.import_module(module), name))


def test_the_worker_asks_for_no_other_name():
    lines = re.findall(r"from (hambench[\w.]*) import ([\w, ]+)", WORKER.read_text())
    asked = [(module, name.strip()) for module, names in lines for name in names.split(",")]
    assert sorted(asked) == sorted([*NAMES, *MOVED, *LATER])
