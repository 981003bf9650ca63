"""The messages inside a chat-templated prompt: what a server that applies the template itself must be sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hambench.engine.chat import ChatTemplateError, TemplateValue, render_chat

_MARKS = ("\x00one\x00", "\x00two\x00", "\x00three\x00")


def messages_of(
    text: str, tokenizer: Any, arguments: Mapping[str, TemplateValue] | None = None
) -> list[dict[str, str]]:
    """The turns of a prompt; a text that the template did not make is one message of the user.

    Args:
        text: The prompt, the assistant's turn opened.
        tokenizer: Its chat template made the prompt.
        arguments: Variables of the template.
    """
    whole = [{"role": "user", "content": text}]
    if not getattr(tokenizer, "chat_template", None):
        return whole
    plain = _parts(tokenizer, ("user",), arguments)
    talk = _parts(tokenizer, ("user", "assistant", "user"), arguments)
    system = _parts(tokenizer, ("system", "user"), arguments)
    if plain is None:
        return whole
    opening, closing = plain
    before: list[dict[str, str]] = []
    if not text.startswith(opening) and system is not None and text.startswith(system[0]):
        content, found, rest = text[len(system[0]) :].partition(system[1])
        if not found:
            return whole
        before, text, opening = [{"role": "system", "content": content}], rest, ""
    if not (text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening + closing)):
        return whole
    body = text[len(opening) : len(text) - len(closing)]
    separators = None if talk is None else talk[1:3]
    return [*before, *_turns(body, separators)]


def _turns(body: str, separators: tuple[str, ...] | None) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = []
    rest = body
    while separators is not None and all(separators):
        asked, to_answer, after = rest.partition(separators[0])
        answer, to_question, after = after.partition(separators[1])
        if not (to_answer and to_question):
            break
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        rest = after
    return [*messages, {"role": "user", "content": rest}]


def _parts(
    tokenizer: Any, roles: tuple[str, ...], arguments: Mapping[str, TemplateValue] | None
) -> tuple[str, ...] | None:
    """What the template writes before, between and after messages of these roles; ``None`` if it refuses them."""
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, _MARKS, strict=False)]
    try:
        rest = render_chat(tokenizer, messages, arguments)
    except ChatTemplateError:
        return None
    parts = []
    for message in messages:
        before, found, rest = rest.partition(message["content"])
        if not found:
            return None
        parts.append(before)
    return (*parts, rest)
