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
        text: The prompt, the assistant's turn opened or begun. If begun, the last message is the assistant's.
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
    rest = text
    if not rest.startswith(opening) and system is not None and rest.startswith(system[0]):
        content, found, rest = rest[len(system[0]) :].partition(system[1])
        if not found:
            return whole
        before, opening = [{"role": "system", "content": content}], ""
    if not rest.startswith(opening):
        return whole
    rest = rest[len(opening) :]
    separators = None if talk is None else talk[1:3]
    if rest.endswith(closing):
        return [*before, *_turns(rest[: len(rest) - len(closing)], separators)]
    answer = _parts(tokenizer, ("user", "assistant"), arguments, begun=True)
    body, found, begun = rest.rpartition(answer[1]) if answer is not None and answer[1] else ("", "", "")
    if not begun:
        return whole
    messages = [*before, *_turns(body, separators), {"role": "assistant", "content": begun}]
    # a text that only looks like a begun answer is not sent as one
    return messages if found and _rendered(tokenizer, messages, arguments, begun=True) == text else whole


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
    tokenizer: Any,
    roles: tuple[str, ...],
    arguments: Mapping[str, TemplateValue] | None,
    *,
    begun: bool = False,
) -> tuple[str, ...] | None:
    """What the template writes before, between and after messages of these roles; ``None`` if it refuses them."""
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, _MARKS, strict=False)]
    rest = _rendered(tokenizer, messages, arguments, begun=begun)
    if rest is None:
        return None
    parts = []
    for message in messages:
        before, found, rest = rest.partition(message["content"])
        if not found:
            return None
        parts.append(before)
    return (*parts, rest)


def _rendered(
    tokenizer: Any,
    messages: list[dict[str, str]],
    arguments: Mapping[str, TemplateValue] | None,
    *,
    begun: bool,
) -> str | None:
    """The prompt of these messages, the last one continued if it is ``begun``; ``None`` if the template refuses."""
    try:
        return render_chat(tokenizer, messages, arguments, add_generation_prompt=not begun)
    except ChatTemplateError:
        return None
