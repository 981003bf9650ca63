"""Files of a training run: the last save, the curve, and the identity of the run.

``state.pt`` suffices to resume. ``curve.jsonl`` has a line every few steps. ``held_out.jsonl`` holds the responses that
nothing was fitted on. The checkpoint itself lies next to them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hambench.errors import ModelError

STATE_NAME, CURVE_NAME, HELD_OUT_NAME = "state.pt", "curve.jsonl", "held_out.jsonl"


class RunFolder:
    """Files of one run.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def has_state(self) -> bool:
        """True if there is a save to resume from."""
        return (self.path / STATE_NAME).is_file()

    def check(self, *, resume: bool) -> None:
        """Checks that a run may begin here, or go on if it is resumed.

        Raises:
            ModelError: If a run exists without ``resume``, or the reverse.
        """
        if self.has_state and not resume:
            raise ModelError(f"{self.path} holds a training run; give --resume to go on with it")
        if resume and not self.has_state:
            raise ModelError(f"{self.path} holds no training run to resume; leave --resume out to begin one")

    def load_state(self, trained: Mapping[str, Tensor], *, resume: bool) -> dict[str, Any] | None:
        """Copies the last save's values into ``trained``; returns the rest of the save, ``None`` for a new run.

        Raises:
            ModelError: If a run exists without ``resume``, or the reverse, or it belongs to other parameters.
        """
        path = self.path / STATE_NAME
        self.check(resume=resume)
        if not resume:
            return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        sizes = {name: value.shape for name, value in state["trained"].items()}
        if sizes != {name: value.shape for name, value in trained.items()}:
            raise ModelError(f"{path} belongs to a run with another recipe or base")
        with torch.no_grad():
            for name, value in state.pop("trained").items():
                trained[name].copy_(value)
        return state

    def save_state(self, trained: Mapping[str, Tensor], **rest: Any) -> None:
        """Writes a save; if interrupted, the previous one remains."""
        partial = self.path / f"{STATE_NAME}.partial"
        torch.save({"trained": {n: p.detach().cpu() for n, p in trained.items()}, **rest}, partial)
        partial.replace(self.path / STATE_NAME)

    def write_held_out(self, sequences: Iterable[tuple[Tensor, int]]) -> None:
        """Writes ``(ids, prompt length)`` of responses, in the form that ``hambench hamburger measure`` reads."""
        with (self.path / HELD_OUT_NAME).open("w", encoding="utf-8") as file:
            for ids, prompt in sequences:
                row = {"prompt_ids": ids[:prompt].tolist(), "response_ids": ids[prompt:].tolist()}
                file.write(json.dumps(row) + "\n")

    def add_to_curve(self, line: Mapping[str, Any]) -> None:
        """Appends a line to the curve."""
        with (self.path / CURVE_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(line)) + "\n")
