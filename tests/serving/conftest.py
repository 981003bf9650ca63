"""A served toy model: a real server on a loopback port, a real tokenizer, random weights."""

from __future__ import annotations

import pytest
from fakes import TINY_SHAPE, save_tiny_model
from serving_server import running

CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="session")
def served_target(tmp_path_factory):
    from hambench.models.target import load

    folder = save_tiny_model(tmp_path_factory.mktemp("served"), TINY_SHAPE)
    target = load(str(folder), dtype="float32", device="cpu")
    target.name = "tiny"
    target.tokenizer.chat_template = CHAT_TEMPLATE
    return target


@pytest.fixture(scope="session")
def speculative_url(served_target):
    from hambench.methods.speculative import SpeculativeConfig
    from hambench.serving.app import create_app

    method = SpeculativeConfig(num_draft_tokens=3).build(served_target)
    with running(create_app(served_target, method)) as url:
        yield url
