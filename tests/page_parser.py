"""A page's structure, read with the standard library alone."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Parsed(HTMLParser):
    """Ids, references, and whether every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.sources: list[str] = []
        self.problems: list[str] = []
        self.inline_styles = 0
        self._open: list[str] = []
        self.feed(html)
        self.problems += [f"never closed: {tag}" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self._open.append(tag)
        self._look(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(attrs)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1] != tag:
            self.problems.append(f"</{tag}> closes {self._open[-1:]}")
        elif self._open:
            self._open.pop()

    def _look(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            value = value or ""
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href") and value.startswith("#"):
                self.references.append(value[1:])
            elif name in ("src", "href", "xlink:href"):
                self.sources.append(value)
            if name in ("aria-labelledby", "aria-describedby", "for"):
                self.references += value.split()
            if name == "style" or name.startswith("on"):
                self.inline_styles += 1
            self.references += re.findall(r"url\(#([^)]+)\)", value)
