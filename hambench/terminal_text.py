"""Makes text of models, servers and untrusted files safe for a terminal."""

from __future__ import annotations

_OBEYED = frozenset(
    map(
        chr,
        (
            # answerback, bell, characters that move the cursor or change the character set; escape; delete
            *(0x05, 0x07, 0x08, *range(0x0B, 0x10), 0x1B, 0x7F),
            # the same as single characters, and characters that reorder text
            *range(0x80, 0xA0),
            *range(0x202A, 0x202F),
            *range(0x2066, 0x206A),
        ),
    )
)


def terminal_safe(text: str) -> str:
    r"""Escapes characters that control a terminal (``\x1b``); keeps new lines and tabs."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_spelled(c) if c in _OBEYED or 0xD800 <= ord(c) < 0xE000 else c for c in text)


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
