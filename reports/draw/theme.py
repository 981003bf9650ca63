"""Colours of page and figures, in one table for light and dark, and the look of each method.

Figures are drawn in *sentinel* colours. :mod:`hambench.reports.draw.svg` replaces them by CSS variables (inline, so
that one SVG serves light, dark and print) or by the light values (exported files).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from hambench.method_facts import Hue
from hambench.registry import facts_of

LIGHT = {
    "ink": "#17191c",
    "muted": "#5b626b",
    "grid": "#dfe3e8",
    "page": "#ffffff",
    "panel": "#f5f6f8",
    "band": "#dcefe4",
    "line": "#c9ced5",
    "accent": "#0b5cad",
    "good": "#0a6b45",
    "bad": "#b3261e",
    "warn": "#8a5300",
    "warnpage": "#fff4de",
    "mark": "#fde9c8",
    "h0": "#17191c",
    "h1": "#0063a3",
    "h2": "#b84a00",
    "h3": "#00734f",
    "h4": "#95407a",
}
"""Values in light mode and in print; every text hue has at least 4.5:1 on ``page``."""

DARK = {
    "ink": "#e8eaed",
    "muted": "#a3abb5",
    "grid": "#2b3138",
    "page": "#12151a",
    "panel": "#1a1f26",
    "band": "#17332a",
    "line": "#3a424c",
    "accent": "#7cbcff",
    "good": "#5fd3a0",
    "bad": "#ff8f86",
    "warn": "#f2b35e",
    "warnpage": "#2b2211",
    "mark": "#4a3a1c",
    "h0": "#e8eaed",
    "h1": "#5bb4f0",
    "h2": "#ff9152",
    "h3": "#3dcca0",
    "h4": "#eba0cb",
}
"""The same names in dark mode."""

SENTINEL = {name: f"#0102{index:02x}" for index, name in enumerate(LIGHT)}
"""Colour that stands for each name in a drawing; no real colour of ours equals one."""

HUES = ("h1", "h2", "h3", "h4")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))


@dataclass(frozen=True, slots=True)
class MethodStyle:
    """Look of a method in every figure; methods never differ by hue alone."""

    hue: str
    """Name of the hue in :data:`LIGHT` and :data:`DARK`."""
    marker: str
    """matplotlib marker."""
    dash: tuple[float, ...]
    """Dash pattern in points; empty is solid."""

    @property
    def colour(self) -> str:
        """Sentinel colour to draw with."""
        return SENTINEL[self.hue]

    @property
    def linestyle(self) -> tuple[float, tuple[float, ...]] | str:
        """Line style in matplotlib's form."""
        return (0, self.dash) if self.dash else "solid"


MOST_OF_ONE_HUE = 2
"""Looks of one hue that a drawing can hold before their lines are confused."""
METHOD_HUES: dict[Hue, str] = {"ink": "h0", "blue": "h1", "orange": "h2", "green": "h3", "purple": "h4"}
"""Colours that a method may request, with their names in :data:`LIGHT` and :data:`DARK`."""


def method_styles(methods: Sequence[str]) -> dict[str, MethodStyle]:
    """Returns a look per method name, always the same for the same names in the same order.

    A method has the look that its config states. If an earlier method has that look, it gets the next free one of the
    same hue, so that a variant of a method is seen to be one; a third of one hue gets another hue. If the config states
    none, it gets the next free one.
    """
    stated = {name: _stated(name) for name in methods}
    used_looks = {(style.hue, style.marker) for style in stated.values() if style is not None}
    free = [
        MethodStyle(hue, marker, DASHES[index % len(DASHES)])
        for index, (marker, hue) in enumerate(product(MARKERS[2:] + MARKERS[:2], (HUES[3], *HUES[:3])))
        if (hue, marker) not in used_looks
    ]
    styles: dict[str, MethodStyle] = {}
    used: set[tuple[str, str]] = set()
    for name, style in stated.items():
        if style is None or (style.hue, style.marker) in used:
            alike = [look for look in free if style is not None and look.hue == style.hue]
            if sum(style is not None and hue == style.hue for hue, _ in used) >= MOST_OF_ONE_HUE:
                alike = []
            # beyond all combinations of hue and marker, looks repeat and only labels tell them apart
            style = next(iter(alike or free), MethodStyle("h4", "p", DASHES[2]))
            free = [look for look in free if look != style]
        styles[name] = style
        used.add((style.hue, style.marker))
    return styles


def _stated(name: str) -> MethodStyle | None:
    # a variant has its method's look, unless that is taken
    look = facts_of(name.partition(" ")[0]).look
    return None if look is None else MethodStyle(METHOD_HUES[look.hue], look.marker, look.dash)


def css_variables(values: dict[str, str]) -> str:
    """Returns declarations of the colours as CSS custom properties."""
    return "".join(f"--{name}:{value};" for name, value in values.items())
