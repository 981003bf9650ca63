"""Makes text safe for a page: shows invisible characters and those that reorder text."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
    "\ud800-\udfff\ufdd0-\ufdef\ufff9-\ufffb\ufffe\uffff]"
)


def printable(text: str) -> str:
    """Shows control characters as symbols and other invisible characters as code points, to keep a page valid.

    A carriage return becomes a line break. Lone surrogates, which UTF-8 can't encode, become code points too.
    """
    return _INVISIBLE.sub(_symbol, text.replace("\r\n", "\n").replace("\r", "␍\n"))


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"


_COMMAND = re.compile(r"`([^`\n]+)`")
_UNIT = re.compile(r"(?<=\d) ?(?=%)|(?<=\d) (?=(?:pt|µs|ms|s|KiB|MiB|GiB|tokens)\b)")


def prose(text: str) -> Markup:
    """Converts a sentence of the report to markup: backticks become code, a number stays with its unit.

    It escapes everything first, because a name in the sentence may contain any text.
    """
    safe = str(escape(printable(str(text))))
    return Markup(_COMMAND.sub(r"<code>\1</code>", _UNIT.sub("\u00a0", safe)))


_PATH = re.compile(r"(?<![\w:/.])(?:~|/|[A-Za-z]:\\)[\w.+@\\/-]*[\\/]([\w.+@-]+)")


def without_paths(text: str) -> str:
    """Cuts absolute paths in a text to their last part, because a report may be published."""
    return _PATH.sub(r"…/\1", text)
