"""Damage to JSON and text, as hypothesis draws it: a value swapped for another kind, a key lost, bytes turned over."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([-1, 0, 1, 2**31, 2**63, 10**30]),
    st.floats(),
    st.sampled_from(["", "x", "vanilla", "../..", "a/b", "\x00", "\u202e", "é", "1", "nan", "\ud83d"]),
    st.text(max_size=8),
    st.lists(st.integers(-1, 300), max_size=3),
    st.dictionaries(st.sampled_from(["a", "cell", "trace"]), st.integers(), max_size=2),
)
"""Values of every kind JSON has, the awkward ones more often than chance would."""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a JSON value, itself included."""
    found = [path]
    if isinstance(value, dict):
        for key, item in value.items():
            found += places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += places(item, (*path, index))
    return found


@st.composite
def damaged(draw: st.DrawFn, value: Any) -> Any:
    """The value with one to three of its parts replaced, lost or doubled."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(value)))
        if not path:
            return draw(ODD)
        parent = value
        for step in path[:-1]:
            parent = parent[step]
        what = draw(st.sampled_from(["replace", "replace", "replace", "lose", "double"]))
        if what == "lose":
            del parent[path[-1]]
        elif what == "double" and isinstance(parent, list):
            parent.append(parent[path[-1]])
        else:
            parent[path[-1]] = draw(ODD)
    return value


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """The content cut, with some bytes turned over, or with others put in."""
    place = draw(st.integers(0, max(0, len(content) - 1)))
    what = draw(st.sampled_from(["cut", "turn", "insert"]))
    if what == "cut":
        return content[:place]
    if what == "turn":
        return content[:place] + bytes([draw(st.integers(0, 255))]) + content[place + 1 :]
    return content[:place] + draw(st.binary(min_size=1, max_size=6)) + content[place:]
