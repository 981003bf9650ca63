"""Segments a data set: computes the base's value for every response token and cuts segments by a rule."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hambench.engine.chat import render_chat
from hambench.engine.text import encode_text
from hambench.errors import DataError, HambenchError
from hambench.files import replacing
from hambench.methods.hamburger.data.segmentation import Metric, Strategy, check_lengths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmented:
    """One response cut into segments."""

    ids: tuple[int, ...]
    prompt_tokens: int
    segments: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentStatistics:
    """Segments that a rule cuts from a data set, in numbers."""

    responses: int
    tokens: int
    segments: int
    tokens_per_segment: float
    """Tokens over segments, which is the m that decoding would reach by following the rule."""
    histogram: dict[int, int]
    """Number of segments by length."""
    share_by_position: dict[int, float]
    """Share of all tokens that are the 1st, 2nd, ... of their segment."""


def statistics(lengths: Iterable[Sequence[int]]) -> SegmentStatistics:
    """Computes statistics of the segment lengths of many responses.

    Raises:
        DataError: If there are none.
    """
    rows = [list(row) for row in lengths]
    histogram = Counter(length for row in rows for length in row)
    if not histogram:
        raise DataError("there are no segments to count")
    tokens = sum(length * count for length, count in histogram.items())
    positions = {
        p: sum(c for length, c in histogram.items() if length >= p) for p in range(1, max(histogram) + 1)
    }
    return SegmentStatistics(
        responses=len(rows),
        tokens=tokens,
        segments=histogram.total(),
        tokens_per_segment=tokens / histogram.total(),
        histogram=dict(sorted(histogram.items())),
        share_by_position={p: count / tokens for p, count in positions.items()},
    )


def read_conversations(path: Path, tokenizer: Any, *, eos_id: int | None) -> Iterator[tuple[list[int], int]]:
    """Yields ``(ids, prompt length)`` of each line of a JSONL file.

    A line holds ``messages`` (the last one the assistant's), or ``prompt`` and ``response``, or ``prompt_ids`` and
    ``response_ids``. An end-of-sequence token is added to a response given as text.

    Raises:
        DataError: If a line has another form, or an empty prompt or response; the message names the line.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path.name}:{number}"
            try:
                row = json.loads(line)
                prompt, response = _ids_of(row, tokenizer)
            except (HambenchError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{where}: want messages, prompt and response, or prompt_ids and response_ids ({error})"
                ) from error
            if not prompt or not response:
                raise DataError(f"{where}: the {'response' if prompt else 'prompt'} is empty")
            if eos_id is not None and "response_ids" not in row and response[-1] != eos_id:
                response = [*response, eos_id]
            yield [*prompt, *response], len(prompt)


def _ids_of(row: dict[str, Any], tokenizer: Any) -> tuple[list[int], list[int]]:
    if "response_ids" in row:
        return [int(i) for i in row["prompt_ids"]], [int(i) for i in row["response_ids"]]
    if tokenizer is None:
        raise ValueError("texts need a model with a tokenizer")
    if "messages" in row:
        *before, last = row["messages"]
        if last["role"] != "assistant":
            raise ValueError("the last message must be the assistant's")
        prompt = encode_text(render_chat(tokenizer, before), tokenizer, add_special_tokens=False)
        response = last["content"]
    else:
        prompt, response = encode_text(row["prompt"], tokenizer), row["response"]
    return prompt, encode_text(response, tokenizer, add_special_tokens=False) if response else []


def segment(
    model: Any,
    sequences: Sequence[tuple[Sequence[int], int]],
    strategy: Strategy,
    *,
    metric: Metric = "entropy",
) -> Iterator[Segmented]:
    """Cuts responses by the base's own values, teacher forced with the full context.

    Args:
        model: The base.
        sequences: ``(ids, prompt length)`` each.
        strategy: Rule to cut by.
        metric: ``entropy`` (nats) of the distribution that predicts each token, or ``probability``: one minus the
            token's.
    """
    from hambench.methods.hamburger.training.teacher import study

    last = model.config.num_hidden_layers - 1
    for index, lesson in study(model, sequences, feature_layers=(last,)):
        values = lesson.entropies if metric == "entropy" else 1 - lesson.probabilities
        ids, prompt = sequences[index]
        yield Segmented(ids=tuple(ids), prompt_tokens=prompt, segments=tuple(strategy.cut(values.tolist())))


def write_segments(path: Path, rows: Iterable[Segmented]) -> SegmentStatistics:
    """Writes one JSON object per line; returns the statistics."""
    lengths = []
    with replacing(path) as partial:
        with partial.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(dataclasses.asdict(row)) + "\n")
                lengths.append(row.segments)
        counted = statistics(lengths)
    return counted


def read_segments(path: Path, *, max_length: int) -> list[Segmented]:
    """Reads a file that :func:`write_segments` wrote, and checks every line.

    Raises:
        DataError: If a line's lengths do not fit its response; the message names the line.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        where = f"{path.name}:{number}"
        try:
            fields = json.loads(line)
            row = Segmented(
                ids=tuple(map(int, fields["ids"])),
                prompt_tokens=int(fields["prompt_tokens"]),
                segments=tuple(map(int, fields["segments"])),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{where}: not a segmented response ({error})") from error
        if row.prompt_tokens < 1:
            raise DataError(f"{where}: the prompt is empty")
        check_lengths(row.segments, len(row.ids) - row.prompt_tokens, max_length, where=where)
        rows.append(row)
    if not rows:
        raise DataError(f"{path} holds no responses")
    return rows


def segment_file(
    conversations: Path, out: Path, *, model_name: str, strategy: Strategy, metric: Metric = "entropy"
) -> SegmentStatistics:
    """Segments a JSONL file of conversations into another; returns the statistics.

    Raises:
        DataError: If rows can't be used, or the output file exists; both before the model is loaded.
        ModelError: If the base can't be loaded.
    """
    from hambench.methods.hamburger.base import load_base, tokenizer_of
    from hambench.models.target import locate

    if out.exists():
        raise DataError(f"{out} exists; give another --out")
    folder, _, _ = locate(model_name)
    tokenizer, _ = tokenizer_of(folder)
    eos_id = None if tokenizer is None else tokenizer.eos_token_id
    sequences = list(read_conversations(conversations, tokenizer, eos_id=eos_id))
    if not sequences:
        raise DataError(f"{conversations} holds no conversations")
    return write_segments(out, segment(load_base(folder, full=False), sequences, strategy, metric=metric))
