"""Splits command-line text into values: commas, ranges and brackets, and quotes that switch all of them off.

=====================  ==================================================================================
``1,2,4``              three values
``0.5:0.9:0.1``        from first to last, both included, by step; only three numbers make a range
``name[knob=value,…]`` a method with knobs; a comma starts a new knob only where ``knob=`` follows it
``"./a,b"``            one value as it stands, in single or double quotes at its beginning and its end
=====================  ==================================================================================

A URL or a folder needs no quotes unless it holds a comma:
``endpoint[url=http://[::1]:8000/v1]``, ``--method-arg draft='"./a,b"'``.
"""

from __future__ import annotations

import math
import re

from hambench.errors import HambenchError

MAX_VALUES = 1000
"""Values of one range: a step that is too small is a slip, not a sweep."""
_QUOTES = "\"'"
_KNOB = re.compile(r"\s*[A-Za-z_][\w.-]*\s*=")


def expand_values(text: str) -> tuple[str, ...]:
    """Returns the axis values in a text: ``1,2,4`` as listed, ``0.5:0.9:0.1`` from first to last (inclusive) by step.

    Raises:
        HambenchError: For a range that is not three finite numbers with a positive step, or for no value.
    """
    values: list[str] = []
    for piece in _split(text):
        value, is_quoted = _unquote(piece)
        if not value:
            raise HambenchError(f"an axis needs values, got {text!r}")
        values += [value] if is_quoted else _range(value)
    return tuple(values)


def split_methods(text: str) -> tuple[str, ...]:
    """Splits the value of ``--methods`` at commas outside brackets and quotes."""
    return tuple(word.strip() for word in _split(text, brackets=True) if word.strip())


def parse_method(word: str) -> tuple[str, dict[str, str]]:
    """Returns the name and the knobs of ``name`` or ``name[knob=value,…]``.

    Raises:
        HambenchError: If the text has another form or gives a knob twice.
    """
    name, bracket, rest = word.partition("[")
    if not bracket:
        return name, {}
    mistake = HambenchError(f"a method with knobs is written name[knob=value,…], got {word!r}")
    if not rest.endswith("]"):
        raise mistake
    pairs: list[str] = []
    for piece in _split(rest.removesuffix("]")):
        if _KNOB.match(piece):
            pairs.append(piece)
        elif pairs:
            pairs[-1] += f",{piece}"
        elif piece.strip():
            raise mistake
    knobs: dict[str, str] = {}
    for pair in pairs:
        knob, _, value = pair.partition("=")
        if knob.strip() in knobs:
            raise HambenchError(f"{word!r} gives {knob.strip()} twice")
        knobs[knob.strip()] = _unquote(value)[0]
    return name, knobs


def _split(text: str, *, brackets: bool = False) -> list[str]:
    """Pieces between commas; quotes stay on, and with ``brackets`` what is in ``[…]`` stays together."""
    pieces, quote, depth, previous = [""], "", 0, ","
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES and previous in ",=[":
            # elsewhere it is part of a name: ./it's
            quote = character
        elif character == "," and depth == 0:
            pieces.append("")
            previous = ","
            continue
        elif brackets:
            depth = max(0, depth + {"[": 1, "]": -1}.get(character, 0))
        pieces[-1] += character
        previous = previous if character.isspace() else character
    if quote:
        raise HambenchError(f"a quote is not closed in {text!r}")
    return pieces


def _unquote(piece: str) -> tuple[str, bool]:
    """The value without its quotes, and whether it had them."""
    value = piece.strip()
    if not value or value[0] not in _QUOTES:
        return value, False
    end = value.index(value[0], 1)
    if end != len(value) - 1:
        raise HambenchError(f"a quoted value ends with its quote, got {value!r}")
    return value[1:-1], True


def _range(value: str) -> list[str]:
    """The values of ``first:last:step``, or the one value that any other text is."""
    parts = value.split(":")
    if len(parts) != 3 or _number(parts[0]) is None:
        return [value]
    numbers = [_number(part) for part in parts]
    if not all(number is not None and math.isfinite(number) for number in numbers):
        raise HambenchError(
            f"an axis range is first:last:step in finite numbers, got {value!r}; quote a value to take it as it is"
        )
    first, last, step = (float(part) for part in parts)
    if not step > 0 or last < first:
        raise HambenchError(f"an axis range needs first <= last and step > 0, got {value!r}")
    if (last - first) / step > MAX_VALUES - 1 + 1e-9:
        raise HambenchError(
            f"an axis range gives at most {MAX_VALUES} values, got {value!r}: take a larger step"
        )
    # counted rather than accumulated: 0.5 + 4 * 0.1 must print as 0.9
    count = int((last - first) / step + 1e-9) + 1
    return [f"{first + index * step:.10g}" for index in range(count)]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
