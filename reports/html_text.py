"""Text fit for a page: nothing invisible, nothing that reorders its surroundings."""

from __future__ import annotations

import re

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
