"""The default prompts of a speed gate: four short texts, some easy for drafting methods and some hard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hambench.errors import HambenchError
from hambench.gating.worker_process import GatePrompt

if TYPE_CHECKING:
    from hambench.gating.config import SpeedGate

TEXTS = (
    "def area(width: float, height: float) -> float:\n"
    '    """Gives the area of a rectangle."""\n'
    "    return width * height\n\n\n"
    "def perimeter(width: float, height: float) -> float:\n"
    '    """Gives the perimeter of a rectangle."""\n'
    "    return 2 * (width + height)\n\n\n"
    "def volume(width: float, height: float, depth: float) -> float:\n",
    "The harbour lay quiet in the morning. Two boats had come in during the night, and their crews slept while the "
    "gulls quarrelled over what the nets had left. Only the lighthouse keeper was awake. He",
    "Question: which rivers meet in the city of Koblenz, and how long is the longer of the two?\nAnswer:",
)


def gate_prompts(gate: SpeedGate) -> tuple[GatePrompt, ...]:
    """Returns the prompts of a speed gate.

    Raises:
        HambenchError: If its suite has none.
    """
    if gate.model == "toy":
        from hambench.gating import toy

        return tuple(GatePrompt(ids=ids) for ids in toy.prompts().values())
    if gate.suite is None:
        return tuple(GatePrompt(text=text) for text in gate.prompts or TEXTS)
    return _from_suite(gate)


def _from_suite(gate: SpeedGate) -> tuple[GatePrompt, ...]:
    from transformers import AutoTokenizer

    from hambench import suites
    from hambench.engine.chat import chat_template
    from hambench.models.target import locate

    folder: Path = locate(gate.model)[0]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    captured = suites.capture(
        suites.CaptureRequest(
            suite=gate.suite, limit=gate.limit, apply_chat_template=chat_template(tokenizer)
        )
    )
    if not captured.samples:
        raise HambenchError(f"suite {gate.suite!r} has no prompts")
    return tuple(GatePrompt(text=sample.prompt, chat=sample.chat) for sample in captured.samples)
