"""The speed-only suite: fixed prompts of four kinds and prompts of exact length, each with a fixed output length.

The four kinds are those of the HAMburger paper's speed figure (a problem of GSM8K, one of HumanEval, one of MGSM, an
article bundle of LongBench); offline, a task of the offline edition stands in for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hambench.errors import HambenchError
from hambench.records import Edition, Sample
from hambench.suites.catalogue import ENTRIES
from hambench.suites.offline import OFFLINE
from hambench.suites.resolve import OFFLINE_EDITION, rows_of

OUTPUT_TOKENS = 256
"""Tokens that every method must emit, ignoring end-of-sequence tokens."""

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
"""Prompt lengths in tokens; lengths that leave no room for the answer in the model's context are left out."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Prompt:
    task: str
    row: int
    """Row to use if ``row_id`` does not exist."""
    stand_in: str
    text: Callable[[Row], str]
    row_id: str = ""


def _news(row: Row) -> str:
    return f"Write a one-page summary of these texts.\n\n{row['context']}\n\nSummary:"


_PROMPTS = {
    "mathematics": _Prompt("gsm8k_cot_llama", 3, "word-problems", lambda row: str(row["question"])),
    "code": _Prompt("humaneval_instruct", 0, "function-bodies", lambda row: str(row["prompt"]).rstrip(" ")),
    "multilingual-mathematics": _Prompt("mgsm_en_cot_en", 3, "small-sums", lambda row: str(row["question"])),
    "summarisation": _Prompt("multi_news", 0, "module-synopsis", _news, "e45abfcb"),
}

EFFICIENCY = {
    **{f"prompt-{kind}": f"one prompt of {prompt.task}" for kind, prompt in _PROMPTS.items()},
    **{f"context-{length}": f"documentation cut to exactly {length} tokens" for length in LENGTHS},
}
"""Maps tasks to descriptions of their prompts."""


def efficiency_samples(
    *,
    source: str,
    edition: Edition,
    data: Path | None,
    seed: int,
    tasks: Sequence[str],
    template: Callable[[list[dict[str, str]]], str] | None,
    count_tokens: Callable[[str], int] | None,
    context_length: int | None,
) -> tuple[list[Sample], dict[str, str]]:
    """Returns the suite's prompts, and the reason for each one that can't be made here.

    Args:
        source: Source of the rows; see :func:`hambench.suites.resolve.rows_of`.
        edition: Edition to mark the samples with.
        data: The data folder, for the source ``folder``.
        seed: Seed of the offline edition.
        tasks: A subset of :data:`EFFICIENCY`; empty for all.
        template: Renders chat messages; ``None`` for a model without.
        count_tokens: Counts a text's tokens as the runner does; without it there are no prompts of exact length.
        context_length: The model's context length in tokens; longer prompts are left out.
    """
    samples: list[Sample] = []
    missing: dict[str, str] = {}
    wanted = tasks or tuple(EFFICIENCY)
    for kind, prompt in _PROMPTS.items():
        name = f"prompt-{kind}"
        if name not in wanted:
            continue
        text = _row_text(prompt, source=source, data=data, seed=seed)
        if text is None:
            missing[name] = f"no rows of {prompt.task}"
            continue
        try:
            asked = text if template is None else template([{"role": "user", "content": text}])
        except HambenchError as error:
            missing[name] = str(error)
            continue
        samples.append(_sample(name, "prompt", asked, edition, chat=template is not None))
    for length in LENGTHS:
        name = f"context-{length}"
        if name not in wanted:
            continue
        if count_tokens is None:
            missing[name] = "prompts of exact length need the model's tokenizer"
        elif context_length is not None and length + OUTPUT_TOKENS > context_length:
            missing[name] = (
                f"{length} + {OUTPUT_TOKENS} tokens exceed the model's context of {context_length}"
            )
        else:
            samples.append(_sample(name, "context", exact_prompt(length, count_tokens), edition, chat=False))
    return samples, missing


def exact_prompt(num_tokens: int, count_tokens: Callable[[str], int]) -> str:
    """Returns a text of documentation that ``count_tokens`` counts as exactly ``num_tokens``.

    Raises:
        HambenchError: If no cut of the text has that length (a tokenizer that merges across words).
    """
    words = _words(num_tokens)
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        if count_tokens(" ".join(words[:middle])) <= num_tokens:
            low = middle
        else:
            high = middle - 1
    # fill up with short words if the last word has several tokens
    for start in range(low, max(low - 40, 0), -1):
        text = " ".join(words[:start])
        for filler in _fillers():
            if count_tokens(text + filler) == num_tokens:
                return text + filler
    raise HambenchError(f"can't make a prompt of exactly {num_tokens} tokens with this tokenizer")


def _fillers() -> Iterator[str]:
    yield ""
    for count in range(1, 24):
        for piece in (" a", ".", "\n"):
            yield piece * count


def _words(num_tokens: int) -> list[str]:
    from hambench.suites.offline.documentation import paragraphs

    words = [word for _, text in paragraphs() for word in text.split()]
    # tokens are almost never longer than a word, so twice as many words suffice; repeat the text if needed
    return words * (2 * num_tokens // len(words) + 1)


def _row_text(prompt: _Prompt, *, source: str, data: Path | None, seed: int) -> str | None:
    if source == OFFLINE_EDITION:
        rows: Sequence[Row] = OFFLINE[prompt.stand_in].build(prompt.row + 1, seed=seed)
    else:
        found = rows_of(ENTRIES[prompt.task], source=source, data=data, seed=seed)
        if found.rows is None:
            return None
        rows = found.rows
    chosen = [row for row in rows if prompt.row_id and str(row.get("_id", "")).startswith(prompt.row_id)]
    if chosen:
        return prompt.text(chosen[0])
    return prompt.text(rows[min(prompt.row, len(rows) - 1)])


def _sample(name: str, category: str, text: str, edition: Edition, *, chat: bool) -> Sample:
    return Sample(
        sample_id=f"efficiency/{name}/0",
        suite="efficiency",
        task=name,
        category=category,
        doc_id=0,
        prompt=text,
        stop=(),
        max_new_tokens=OUTPUT_TOKENS,
        chat=chat,
        edition=edition,
    )
