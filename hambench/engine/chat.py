"""Chat prompts: renders messages to text and token ids with the model's own template.

A template is code that comes with a model, so any exception it raises becomes a :class:`ChatTemplateError`. User text
stays text: a control token spelled in a message is encoded letter by letter, so that no message can end its own turn.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hambench.engine.text import encode_text
from hambench.errors import HambenchError

TemplateValue = str | int | float | bool | None
_UNUSED = range(0xF0000, 0xFFFFE)
"""A private-use plane, whose characters stand for control tokens while a template runs."""
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|eom_id|>", "<|end|>", "<|return|>", "<|eot|>")
"""Markers of ChatML, Llama 3, Gemma, Llama 3's tool calls, Phi, gpt-oss and Llama 4."""


class ChatTemplateError(HambenchError):
    """A chat template that refuses messages or arguments, or fails."""


def parse_arguments(texts: Iterable[str]) -> dict[str, TemplateValue]:
    """Parses template arguments from ``NAME=VALUE`` texts; a value is JSON if it parses as JSON, else plain text.

    Raises:
        HambenchError: If a text has no ``=``, or a value is a list or an object.
    """
    arguments: dict[str, TemplateValue] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise HambenchError(
                f"--chat-template-arg is NAME=VALUE, like enable_thinking=false, got {text!r}"
            )
        arguments[name] = _value(value)
    return arguments


def _value(text: str) -> TemplateValue:
    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if value is not None and not isinstance(value, str | int | float):
        raise HambenchError(
            f"a chat template argument must be a word, a number, true, false or null, got {text}"
        )
    return value


def check_arguments(tokenizer: Any, arguments: Mapping[str, TemplateValue]) -> None:
    """Refuses arguments that would have no effect, or that hambench sets itself.

    Raises:
        ChatTemplateError: If the model has no chat template, or the template does not use a name.
    """
    if not arguments:
        return
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        names = ", ".join(arguments)
        raise ChatTemplateError(
            f"chat template argument {names} has no effect: the model has no chat template"
        )
    parameters = inspect.signature(tokenizer.apply_chat_template).parameters
    for name in arguments:
        if name in parameters or name in ("messages", "bos_token", "eos_token"):
            raise ChatTemplateError(
                f"chat template argument {name!r} is set by hambench itself: leave it out"
            )
        if not re.search(rf"\b{re.escape(name)}\b", str(template)):
            raise ChatTemplateError(
                f"chat template argument {name!r} has no effect: the model's chat template does not use it"
            )


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    arguments: Mapping[str, TemplateValue] | None = None,
    *,
    add_generation_prompt: bool = True,
) -> str:
    """Renders a conversation to text.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: Turns with ``role`` and ``content``.
        arguments: Variables of the template, e.g. ``enable_thinking``.
        add_generation_prompt: Open the assistant's turn; otherwise continue the last message, which is the assistant's.

    Raises:
        ChatTemplateError: If the template raises anything.
    """
    check_arguments(tokenizer, arguments or {})
    try:
        text: str = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **(arguments or {}),
        )
    # a template can raise anything, because it is a program that came with the model
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ChatTemplateError(f"the model's chat template refuses these messages: {reason}") from error
    return text


def chat_template(
    tokenizer: Any, arguments: Mapping[str, TemplateValue] | None = None
) -> Callable[..., str] | None:
    """Returns :func:`render_chat` of one tokenizer, as suites call it; ``None`` if it has no chat template.

    Raises:
        ChatTemplateError: If an argument would have no effect.
    """
    check_arguments(tokenizer, arguments or {})
    if not getattr(tokenizer, "chat_template", None):
        return None

    def render(messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        return render_chat(tokenizer, messages, arguments, add_generation_prompt=add_generation_prompt)

    return render


def encode_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    arguments: Mapping[str, TemplateValue] | None = None,
    *,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Encodes a conversation, rendered as by :func:`render_chat`; only the template can insert control tokens.

    Raises:
        ChatTemplateError: If the template raises anything.
    """
    controls = _controls(tokenizer)
    spelled = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or "(?!)")
    if not any(spelled.search(message["content"]) for message in messages):
        text = render_chat(tokenizer, messages, arguments, add_generation_prompt=add_generation_prompt)
        return encode_text(text, tokenizer, add_special_tokens=False)
    written = "".join(message["content"] for message in messages)
    unused = (chr(code) for code in _UNUSED if chr(code) not in written)
    stand_ins = dict(zip(controls, unused, strict=False))
    masked = [
        {**message, "content": spelled.sub(lambda found: stand_ins[found[0]], message["content"])}
        for message in messages
    ]
    text = render_chat(tokenizer, masked, arguments, add_generation_prompt=add_generation_prompt)
    originals = str.maketrans({stand_in: control for control, stand_in in stand_ins.items()})
    ids: list[int] = []
    for control, plain in _pieces(text, spelled, controls):
        if control:
            ids += encode_text(control, tokenizer, add_special_tokens=False)
        if plain:
            letters = tokenizer(
                plain.translate(originals), add_special_tokens=False, split_special_tokens=True
            )
            ids += letters["input_ids"]
    return ids


def end_of_turn_ids(tokenizer: Any) -> set[int]:
    """Returns the control tokens with which the chat template ends the assistant's turn.

    Renders an answer with the template and takes the control token that follows it. If the template refuses, looks in
    its source for the markers of well-known families instead.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return set()
    vocabulary, controls = tokenizer.get_vocab(), _controls(tokenizer)
    answer = "hambench asks"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    try:
        behind = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(answer)[2].lstrip()
    except Exception:
        markers = {marker for marker in _END_OF_TURN if marker in str(template)}
    else:
        longest = max((marker for marker in controls if behind.startswith(marker)), key=len, default=None)
        markers = {longest} if longest is not None else set()
        markers |= {marker for marker in _END_OF_TURN[:2] if marker in str(template)}
    return {vocabulary[marker] for marker in markers if marker in vocabulary}


def _controls(tokenizer: Any) -> dict[str, Any]:
    """Returns the control tokens by their text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {token.content: token for token in added.values() if token.special and token.content}


def _pieces(text: str, spelled: re.Pattern[str], controls: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Splits a text into (control token, plain text after it) pairs; leaves out spaces that a token swallows."""
    pieces: list[tuple[str, str]] = []
    control, start = "", 0
    for found in [*spelled.finditer(text), None]:
        plain = text[start : found.start() if found else len(text)]
        if control and controls[control].rstrip:
            plain = plain.lstrip()
        if found and controls[found[0]].lstrip:
            plain = plain.rstrip()
        pieces.append((control, plain))
        if found:
            control, start = found[0], found.end()
    return pieces
