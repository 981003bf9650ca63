"""Converts matplotlib's SVG into SVG that lives inside a page.

It prefixes ids (two figures share dozens), turns ``style`` attributes into presentation attributes (a strict
Content-Security-Policy drops inline styles and the figure would go black), replaces sentinel colours by CSS variables,
shortens numbers, and gives tagged artists their tooltips and data attributes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

from hambench.reports.draw.theme import LIGHT, SENTINEL

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"

Tags = Mapping[str, Mapping[str, str]]
"""Attributes to set by gid; the key ``title`` becomes a ``<title>`` child."""

_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_PATH_TEXT = ("d", "transform", "points", "x", "y", "width", "height", "cx", "cy", "r", "viewBox")
_FONT = re.compile(r"^(?:(?P<weight>bold|\d{3})\s+)?(?P<size>[\d.]+)px\b")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_DROPPED = {f"{{{SVG}}}metadata", f"{{{SVG}}}style"}


def page_svg(raw: str, *, name: str, title: str, description: str, tags: Tags, width: float) -> str:
    """Returns the SVG to inline: themed, labelled for screen readers, with ids unique under ``name``.

    Args:
        raw: Output of ``savefig(format="svg")``.
        name: Prefix of every id.
        title: Short name of the figure.
        description: Description for readers who can't see the figure.
        tags: Attributes of tagged artists by gid.
        width: Natural width in CSS pixels.
    """
    root = ElementTree.fromstring(raw)
    _drop(root)
    _attach(root, tags)
    _prefix_ids(root, name)
    for element in root.iter():
        _flatten_style(element)
        for key in _PATH_TEXT:
            if key in element.attrib:
                element.attrib[key] = _NUMBER.sub(_shorten, element.attrib[key])
    _label(root, name, title, description, width)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r">\s+<", "><", text)
    return replace_sentinels(text, {key: f"var(--{key})" for key in SENTINEL})


def file_svg(raw: str) -> str:
    """Returns the SVG as a separate file: light colours, otherwise unchanged."""
    return replace_sentinels(raw, LIGHT)


def replace_sentinels(text: str, values: Mapping[str, str]) -> str:
    """Replaces a figure's sentinel colours by real ones."""
    for key, sentinel in SENTINEL.items():
        text = text.replace(sentinel, values[key])
    return text


def _drop(root: ElementTree.Element) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in _DROPPED:
                parent.remove(child)


def _attach(root: ElementTree.Element, tags: Tags) -> None:
    for element in root.iter():
        attributes = tags.get(element.get("id", ""))
        if attributes is None:
            continue
        del element.attrib["id"]
        for key, value in attributes.items():
            if key == "title":
                tip = ElementTree.Element(f"{{{SVG}}}title")
                tip.text = value
                element.insert(0, tip)
            else:
                element.set(key, value)


def _prefix_ids(root: ElementTree.Element, name: str) -> None:
    used = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            used.update(_REFERENCE.findall(value))
            if key == f"{{{XLINK}}}href" and value.startswith("#"):
                used.add(value[1:])
    for element in root.iter():
        if "id" in element.attrib:
            if element.attrib["id"] in used:
                element.attrib["id"] = f"{name}-{element.attrib['id']}"
            else:
                # ids without references only enlarge the page
                del element.attrib["id"]
        for key, value in element.attrib.items():
            if key == f"{{{XLINK}}}href" and value.startswith("#"):
                element.attrib[key] = f"#{name}-{value[1:]}"
            else:
                element.attrib[key] = _REFERENCE.sub(rf"url(#{name}-\1)", value)


def _flatten_style(element: ElementTree.Element) -> None:
    style = element.attrib.pop("style", "")
    for declaration in style.split(";"):
        key, _, value = declaration.partition(":")
        key, value = key.strip(), value.strip()
        if not key:
            continue
        if key == "font":
            font = _FONT.match(value)
            if font:
                element.set("font-size", font["size"])
                if font["weight"]:
                    element.set("font-weight", font["weight"])
        else:
            element.set(key, value)


def _label(root: ElementTree.Element, name: str, title: str, description: str, width: float) -> None:
    root.attrib.pop("version", None)
    root.attrib.pop("height", None)
    root.set("width", f"{width:g}")
    root.set("class", "figure")
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    # matplotlib's <style> element set this for every element
    root.set("stroke-linejoin", "round")
    root.set("stroke-linecap", "butt")
    for index, (tag, text) in enumerate((("title", title), ("desc", description))):
        child = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{tag}"})
        child.text = text
        root.insert(index, child)


def _shorten(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
