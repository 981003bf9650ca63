"""From a row to a question: hambench's own columns, and three public schemas that are recognised by theirs.

Rows of MT-Bench and Spec-Bench have ``question_id`` and ``turns``, those of ShareGPT ``conversations``, those of an
OpenAI batch file ``body``. A row that can't be asked raises :class:`RowError`, whose message says how to fix it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hambench.suites.own.metrics import METRICS
from hambench.suites.own.patterns import bad_pattern
from hambench.suites.own.patterns import shown as _shown

Message = dict[str, str]
Row = Mapping[str, Any]

COLUMNS = (
    "prompt",
    "messages",
    "turns",
    "id",
    "category",
    "max_new_tokens",
    "stop",
    "reference",
    "metric",
    "chat",
)
"""Columns that are read; others are left alone, unless one looks like a slip of the pen."""
ROLES = ("system", "developer", "user", "assistant")
MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
"""MT-Bench's categories, which Spec-Bench counts as one."""
SPEC_BENCH = ("translation", "summarization", "qa", "math_reasoning", "rag")
"""Spec-Bench's other five."""
MT_BENCH_AS_ONE = "mt_bench"

_BENCH_TOKENS = 1024
"""Longest answer of MT-Bench and Spec-Bench."""
_BENCH_COLUMNS = ("question_id", "turns", "category", "max_new_tokens", "stop", "reference", "metric")
_BODY_FIELDS = ("messages", "prompt", "max_tokens", "max_completion_tokens", "stop")
_SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "bing", "bard"), "assistant"),
    "system": "system",
}


class RowError(ValueError):
    """A row that can't be asked; the message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One row: a question, or a conversation of several turns."""

    schema: str
    """``own``, ``question.jsonl``, ``ShareGPT`` or ``OpenAI batch``."""
    turns: tuple[tuple[Message, ...], ...]
    """Messages that each turn adds; the first has all that stands before it, answers included. Empty where the row
    asks nothing."""
    raw: bool = False
    """The text is continued as it stands, without a chat template."""
    name: str | None = None
    category: str | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    references: tuple[tuple[str, ...], ...] = ()
    """Of each turn; none where the row has none."""
    metric: str | None = None
    unread: tuple[str, ...] = ()
    """Columns that were left alone."""


def question_of(row: Row) -> Question:
    """The question of one row.

    Raises:
        RowError: If it can't be asked.
    """
    if "conversations" in row:
        return _share_gpt(row)
    if "body" in row:
        return _batch(row)
    if "question_id" in row and "turns" in row:
        return _bench(row)
    return _own(row)


def _own(row: Row) -> Question:
    asked = [column for column in ("prompt", "messages", "turns") if column in row]
    if not asked:
        found = ", ".join(map(str, row))[:200] or "none"
        raise RowError(f"has no prompt: give one of prompt, messages or turns (columns found: {found})")
    if len(asked) > 1:
        raise RowError(f"has {' and '.join(asked)}: keep one of them")
    turns = _turns(row, asked[0])
    chat = _switch(row.get("chat", True))
    if not chat and asked[0] != "prompt":
        raise RowError(
            "chat is false: give the text as prompt, as only that can be asked without a chat template"
        )
    metric, references = _scored(row, len(turns))
    if metric is None and any(references):
        raise RowError(f"has a reference without a metric: add metric, one of {', '.join(METRICS)}")
    return Question(
        schema="own",
        turns=turns,
        raw=not chat,
        name=_name(row.get("id"), "id"),
        category=_name(row.get("category"), "category"),
        max_new_tokens=_limit(row.get("max_new_tokens"), "max_new_tokens"),
        stop=_stop(row.get("stop")),
        references=references,
        metric=metric,
        unread=(*_unread(row), *_unread_of_messages(row)),
    )


def _bench(row: Row) -> Question:
    turns = _turns(row, "turns")
    unread = _others(row, _BENCH_COLUMNS)
    try:
        metric, references = _scored(row, len(turns))
    except RowError:
        # model answers for a judge come in many shapes, and nothing here reads them
        if row.get("metric") is not None:
            raise
        metric, references, unread = None, (), (*unread, "reference")
    return Question(
        schema="question.jsonl",
        turns=turns,
        name=_name(row["question_id"], "question_id"),
        category=_name(row.get("category"), "category"),
        max_new_tokens=_limit(row.get("max_new_tokens"), "max_new_tokens") or _BENCH_TOKENS,
        stop=_stop(row.get("stop")),
        references=references,
        metric=metric,
        unread=unread,
    )


def _share_gpt(row: Row) -> Question:
    said = row["conversations"]
    if not isinstance(said, list) or not all(isinstance(each, dict) for each in said):
        raise RowError('conversations must be a list of {"from": "human", "value": "…"}')
    before: list[Message] = []
    turns: list[tuple[Message, ...]] = []
    for number, each in enumerate(said, start=1):
        speaker, text = each.get("from", each.get("role")), each.get("value", each.get("content"))
        role = _SPEAKERS.get(str(speaker).lower())
        if role is None or not isinstance(text, str):
            raise RowError(
                f"piece {number} of conversations must have from (human, gpt or system) and value (text)"
            )
        # the answers are the method's own: those of the file, and what stands before the first question, are not asked
        if role == "system" and not turns:
            before = [{"role": "system", "content": text}]
        elif role == "user" and text.strip():
            turns.append((*before, {"role": "user", "content": text}))
            before = []
    return Question(
        schema="ShareGPT",
        turns=tuple(turns),
        name=_name(row.get("id"), "id"),
        unread=_others(row, ("id", "conversations")),
    )


def _batch(row: Row) -> Question:
    body = row["body"]
    if not isinstance(body, dict):
        raise RowError('body must be an object like {"messages": [{"role": "user", "content": "…"}]}')
    url = str(row.get("url", ""))
    if url and not url.rstrip("/").endswith("completions"):
        raise RowError(
            f"asks {url}: hambench asks /v1/chat/completions and /v1/completions; take the row out"
        )
    if body.get("tools"):
        raise RowError("asks with tools, which no method here calls: take tools out of body")
    asked = [column for column in ("messages", "prompt") if column in body]
    if len(asked) != 1:
        raise RowError("body must have messages or prompt, one of them")
    limits = [body[name] for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None]
    return Question(
        schema="OpenAI batch",
        turns=_turns(body, asked[0]),
        raw=asked[0] == "prompt",
        name=_name(row.get("custom_id"), "custom_id"),
        max_new_tokens=_limit(limits[0], "max_tokens") if limits else None,
        stop=_stop(body.get("stop")),
        unread=(
            *_others(row, ("custom_id", "method", "url", "body")),
            *(f"body.{name}" for name in (*_others(body, _BODY_FIELDS), *_unread_of_messages(body))),
        ),
    )


def _turns(row: Row, column: str) -> tuple[tuple[Message, ...], ...]:
    value = row[column]
    if column == "prompt":
        return (({"role": "user", "content": _text(value, "prompt")},),)
    if column == "turns":
        if not isinstance(value, list) or not value:
            raise RowError(
                f'turns must be a list of texts, like ["first question", "second"], got {_shown(value)}'
            )
        texts = [_text(each, f"turn {number}") for number, each in enumerate(value, start=1)]
        return tuple(({"role": "user", "content": text},) for text in texts)
    if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
        raise RowError(f'messages must be a list of {{"role": "user", "content": "…"}}, got {_shown(value)}')
    messages = [_message(each, number) for number, each in enumerate(value, start=1)]
    if messages[-1]["role"] != "user":
        raise RowError(
            f"the last message must be the user's, got one of role {messages[-1]['role']}: take it out"
        )
    return (tuple(messages),)


def _message(value: Row, number: int) -> Message:
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise RowError(f"the role of message {number} must be one of {', '.join(ROLES)}, got {_shown(role)}")
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
            for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise RowError(f"message {number} holds more than text: keep its parts of type text")
        content = "".join(map(str, parts))
    if not isinstance(content, str) or (role == "user" and not content.strip()):
        raise RowError(f"the content of message {number} must be text, got {_shown(content)}")
    return {"role": "system" if role == "developer" else role, "content": content}


def _scored(row: Row, num_turns: int) -> tuple[str | None, tuple[tuple[str, ...], ...]]:
    """The metric, and the references of each turn."""
    metric = _metric(row.get("metric"))
    references = _references(row.get("reference"), num_turns)
    if metric is not None and not any(references):
        raise RowError(f"has metric {metric} without a reference: add reference, or leave out metric")
    if metric == "regex":
        for pattern in (each for texts in references for each in texts):
            if reason := bad_pattern(pattern):
                raise RowError(f"reference {_shown(pattern)} {reason}")
    return metric, references


def _references(value: Any, num_turns: int) -> tuple[tuple[str, ...], ...]:
    """The references of each turn; a conversation has a list with one entry per turn."""
    if value is None:
        return ()
    if num_turns == 1 and not (isinstance(value, list) and len(value) == 1 and isinstance(value[0], list)):
        return (_alternatives(value),)
    if not isinstance(value, list) or len(value) != num_turns:
        raise RowError(
            f"reference must be a list with one entry per turn ({num_turns}; null for a turn without), "
            f"got {_shown(value)}"
        )
    return tuple(() if each is None else _alternatives(each) for each in value)


def _alternatives(value: Any) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    # a careless writer makes numbers of references; a whole number has one spelling, any other has several
    spelled = [str(each) if isinstance(each, int) and not isinstance(each, bool) else each for each in texts]
    if any(isinstance(each, float) for each in spelled):
        raise RowError(
            f'reference must be text, got the number {_shown(value)}: write it as the answer should, like "42"'
        )
    if not spelled or not all(isinstance(each, str) for each in spelled):
        raise RowError(f"reference must be a text or a list of texts, got {_shown(value)}")
    if not all(each.strip() for each in spelled):
        raise RowError(f"reference must not be blank, got {_shown(value)}: write the answer, or leave it out")
    return tuple(spelled)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{what} must be text that is not blank, got {_shown(value)}")
    return value


def _metric(value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and value in METRICS):
        raise RowError(f"metric must be one of {', '.join(METRICS)}, got {_shown(value)}")
    return value


def _name(value: Any, column: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise RowError(f"{column} must be a text or a whole number, got {_shown(value)}")
    name = str(value).strip()
    if not name.isprintable() or len(name) > 200:
        raise RowError(f"{column} must be one line of at most 200 characters, got {_shown(value)}")
    return name


def _limit(value: Any, column: str) -> int | None:
    if value is None:
        return None
    # a CSV cell is text, and a Parquet column with gaps is float
    number = int(value) if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value.strip()) else value
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise RowError(f"{column} must be a whole number >= 1, got {_shown(value)}")
    return number


def _stop(value: Any) -> tuple[str, ...]:
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(each, str) and each for each in texts):
        raise RowError(f"stop must be a text or a list of texts, none of them empty, got {_shown(value)}")
    return tuple(texts)


def _switch(value: Any) -> bool:
    words: dict[Any, bool] = {"true": True, "false": False}
    switched = words.get(value.strip().lower()) if isinstance(value, str) else value
    if not isinstance(switched, bool):
        raise RowError(f"chat must be true or false, got {_shown(value)}")
    return switched


def _unread(row: Row) -> tuple[str, ...]:
    others = _others(row, COLUMNS)
    for column in others:
        if close := difflib.get_close_matches(column.lower(), COLUMNS, n=1, cutoff=0.8):
            raise RowError(f"has a column {column!r}: did you mean {close[0]!r}? Rename it, or take it out")
    return others


def _others(row: Row, read: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(column) for column in row if column not in read)


def _unread_of_messages(row: Row) -> tuple[str, ...]:
    names = (name for each in row.get("messages") or () for name in _others(each, ("role", "content")))
    return tuple(dict.fromkeys(f"messages.{name}" for name in names))
