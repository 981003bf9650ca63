"""What a run asks: its cells and its samples."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

from hambench.method_facts import KnobValue

Truncation = Literal["error", "middle"]
Edition = Literal["official", "offline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One configuration of a sweep: one point of the Pareto plot."""

    method: str
    """Registry name of the method."""
    label: str
    """Display name with knobs, unique within a run."""
    knobs: dict[str, KnobValue]
    """All knobs of the method."""
    model: str
    """Model name as given."""
    dtype: str
    """``float32``, ``bfloat16`` or ``float16``."""
    regime: str = "eager"
    """How the engine launches work: ``eager`` or ``graph``."""
    kernels: str = "reference"
    """``reference`` (torch's own operations), ``native`` (the CPU engine) or ``fused`` (hambench's Triton kernels)."""
    threads: int | None = None
    """Intra-op threads of torch, where the sweep sets them."""
    context: int | None = None
    """Positions that prompt and answer may take, where the sweep sets them; else all that the model has."""
    max_new_tokens: int | None = None
    """Limit of every answer, where the sweep sets one; else the sample's own."""
    batch: int = 1
    """Sequences that are decoded together at most."""
    own_sizes: dict[str, KnobValue] = field(default_factory=dict)
    """Sizes of what the method adds to the model, as it stated them when the run began."""
    run: str = ""
    """Run that the cell was measured in, where a report joins several; empty in a run of its own."""

    @property
    def conditions(self) -> tuple[str | int | None, ...]:
        """What is not the method's own: cells that agree in it differ by their method and its knobs alone."""
        limits = (self.threads, self.context, self.max_new_tokens, self.batch)
        return (self.regime, self.kernels, *limits, self.run)

    def asks(self, sample: Sample) -> Sample:
        """The sample as this cell is asked it: with the cell's own limit, if it has one."""
        return sample.limited(self.max_new_tokens)

    def positions(self, context_length: int) -> int:
        """Positions that prompt and answer may take on a model of ``context_length`` positions."""
        return context_length if self.context is None else min(self.context, context_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request of a suite, as captured from its task: everything generation needs, nothing of the model."""

    sample_id: str
    """``suite/task/doc_id``: the key that pairs methods."""
    suite: str
    task: str
    category: str
    """Category within the suite, e.g. ``code`` or ``single-doc``."""
    doc_id: int
    prompt: str
    """Final text, the chat template already applied where ``chat`` is set."""
    stop: tuple[str, ...]
    """Strings that end the answer; the text is cut before the first of them."""
    max_new_tokens: int
    cluster: str = ""
    """Shared by samples of a suite that are not independent (questions about one document); empty for one alone."""
    chat: bool = False
    """Whether the prompt is chat-templated: special tokens are in the text and none are added."""
    truncation: Truncation = "error"
    """What to do with a prompt longer than the context: record an error, or cut its middle (LongBench's rule)."""
    references: tuple[str, ...] = ()
    """Gold answers, for reading only; scoring goes through the task."""
    edition: Edition = "official"
    keep_start: int = 0
    """Characters at the start of the prompt that the middle cut must not touch (a chat template's opening)."""
    keep_end: int = 0
    """The same at the end: LongBench cuts its own prompt first and wraps it in a chat turn afterwards."""
    doc: dict[str, Any] = field(default_factory=dict)
    """The task's row, long contexts left out: what the scorer needs, so that scores need no data set."""
    conversation: str = ""
    """What the turns of one conversation share; empty for a question by itself."""
    turn: int = 0
    """Place of the turn in its conversation, from 1; 0 for a question by itself."""
    messages: tuple[dict[str, str], ...] = ()
    """Messages that this turn adds; a later turn's prompt is theirs alone, and the record has the prompt as asked."""

    def limited(self, max_new_tokens: int | None) -> Sample:
        """The sample with this limit of its answer; with its own if ``None``."""
        return self if max_new_tokens is None else dataclasses.replace(self, max_new_tokens=max_new_tokens)

    @property
    def prompt_hash(self) -> str:
        """First 16 hex digits of the prompt's sha256."""
        return hashlib.sha256(self.prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
