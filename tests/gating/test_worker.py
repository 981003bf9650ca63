"""What a measuring process makes of the prompts that it is given."""

import pytest
from fakes import save_tiny_model, wrap_prompts

from hambench.gating.worker import prompt_ids
from hambench.models.target import load


@pytest.mark.parametrize(
    ("text", "chat", "ids"),
    [("hi", False, [256, 71, 72]), ("<bos>hi", False, [256, 71, 72]), ("<bos>hi", True, [256, 71, 72])],
)
def test_a_prompt_begins_once_and_never_ends(tmp_path, text, chat, ids):
    folder = wrap_prompts(save_tiny_model(tmp_path / "tiny"))
    target = load(str(folder), dtype="float32", device="cpu")
    assert prompt_ids({"ids": None, "text": text, "chat": chat}, target, 4) == ids
