"""Text fit for a page: nothing invisible, nothing that reorders its surroundings."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
    "\ud800-\udfff\ufdd0-\ufdef\ufff9-\ufffb\ufffe\uffff]"
)


def printable(text: str) -> str:
    """Text in which controls show as symbols and other invisible characters as code points; a page stays valid.

    A carriage return is a line break; lone surrogates, which UTF-8 can't hold, become code points too.
    """
    return _INVISIBLE.sub(_symbol, text.replace("\r\n", "\n").replace("\r", "␍\n"))


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"


_COMMAND = re.compile(r"`([^`\n]+)`")
_UNIT = re.compile(r"(?<=\d) ?(?=%)|(?<=\d) (?=(?:pt|µs|ms|s|KiB|MiB|GiB|tokens)\b)")


def prose(text: str) -> Markup:
    """A sentence of the report as markup: commands in backticks are code, a number stays with its unit.

    Everything is escaped first: a name in the sentence may hold anything.
    """
    safe = str(escape(printable(str(text))))
    return Markup(_COMMAND.sub(r"<code>\1</code>", _UNIT.sub("\u00a0", safe)))


_PATH = re.compile(r"(?<![\w:/.])(?:~|/|[A-Za-z]:\\)[\w.+@\\/-]*[\\/]([\w.+@-]+)")


def without_paths(text: str) -> str:
    """Text whose absolute paths are cut to their last part: a report may be published."""
    return _PATH.sub(r"…/\1", text)
