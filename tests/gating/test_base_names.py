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


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_it_is_importable(module, name):
    assert callable(getattr(importlib.import_module(module), name))


def test_the_worker_asks_for_no_other_name():
    asked = re.findall(r"from (hambench[\w.]*) import (\w+)", WORKER.read_text())
    assert sorted(asked) == sorted([*NAMES, *MOVED])
