"""Figures fit for a page: themed, labelled, unique ids, no inline style."""

from __future__ import annotations

import re
from collections import Counter
from xml.etree import ElementTree

import pytest

from hambench.registry import method_config
from hambench.reports.draw.canvas import Canvas, padded, tick_text, titles
from hambench.reports.draw.labels import Label, place_labels
from hambench.reports.draw.theme import DARK, LIGHT, METHOD_HUES, SENTINEL, MethodStyle, method_styles


def contrast(first: str, second: str) -> float:
    """WCAG contrast ratio of two ``#rrggbb`` colours, 1..21."""
    lighter, darker = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def small_plate(name: str = "small") -> Canvas:
    canvas = Canvas(name)
    (mark,) = canvas.axes[0].plot([1, 2], [3, 4], marker="o", color=SENTINEL["h1"])
    canvas.tag(mark, tip="a <tip> & more", series="m0", point="x")
    titles(canvas.axes[0], x="across", y="up", title="$not$ mathematics_")
    return canvas


@pytest.fixture(scope="module")
def svg() -> str:
    return small_plate().page_svg(title="T", description="D")


def test_no_sentinel_colour_is_left(svg: str) -> None:
    assert "#0102" not in svg
    assert "var(--h1)" in svg
    assert "#0102" not in small_plate().file_svg()
    assert LIGHT["h1"] in small_plate().file_svg()


def test_no_style_attribute_prolog_or_metadata_is_left(svg: str) -> None:
    assert " style=" not in svg
    for part in ("<?xml", "<!DOCTYPE", "<metadata", "<style"):
        assert part not in svg


def test_title_description_and_tooltip_are_there_and_escaped(svg: str) -> None:
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    labelled = (root.get("aria-labelledby") or "").split()
    texts = {element.get("id"): element.text for element in root.iter() if element.get("id")}
    assert [texts[name] for name in labelled] == ["T", "D"]
    assert "a &lt;tip&gt; &amp; more" in svg
    assert 'data-series="m0"' in svg


def test_ids_of_two_figures_never_meet() -> None:
    first, second = (small_plate(name).page_svg(title="T", description="D") for name in ("one", "two"))
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for text, known in zip((first, second), ids, strict=True):
        assert set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text)) <= known


def test_the_same_figure_drawn_twice_is_the_same_text() -> None:
    assert small_plate().page_svg(title="T", description="D") == small_plate().page_svg(
        title="T", description="D"
    )


def test_names_with_dollars_and_underscores_are_text(svg: str) -> None:
    assert "$not$ mathematics_" in svg


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_rasters_have_light_colours_and_are_deterministic(kind: str) -> None:
    content = small_plate().raster(kind)
    assert content.startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[kind])
    assert content == small_plate().raster(kind)


def test_labels_never_overlap_each_other_or_points() -> None:
    canvas = Canvas("labels")
    ax = canvas.axes[0]
    ax.set_xlim(0, 10)
    ax.set_ylim(0, 10)
    labels = [Label(5 + 0.2 * i, 5 + 0.1 * i, f"label {i}") for i in range(6)]
    unplaced = place_labels(canvas, ax, labels)
    boxes = [canvas.text_box(text) for text in ax.texts]
    assert len(boxes) + len(unplaced) == len(labels)
    assert len(boxes) >= 4
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
        for label in labels:
            x, y = ax.transData.transform((label.x, label.y))
            assert not (box.x0 < x < box.x1 and box.y0 < y < box.y1)


def test_a_line_says_whose_a_label_is_only_where_another_point_is_as_near() -> None:
    def leaders(distance: float) -> int:
        canvas = Canvas("leaders")
        ax = canvas.axes[0]
        ax.set_xlim(0, 100)
        ax.set_ylim(0, 100)
        place_labels(canvas, ax, [Label(40, 50, "one"), Label(40 + distance, 50, "two")])
        return sum(text.arrow_patch is not None for text in ax.texts)

    assert leaders(30) == 0
    assert leaders(1) >= 1


@pytest.mark.parametrize("values", [LIGHT, DARK], ids=["light", "dark"])
def test_every_text_colour_is_readable_on_every_ground_it_stands_on(values: dict[str, str]) -> None:
    for text in ("ink", "muted", "accent", "good", "bad", "warn", "h0", "h1", "h2", "h3", "h4"):
        assert contrast(values[text], values["page"]) >= 4.5, text
    for text in ("ink", "muted"):
        for ground in ("panel", "band", "warnpage"):
            assert contrast(values[text], values[ground]) >= 4.5, (text, ground)
    assert contrast(values["ink"], values["mark"]) >= 4.5
    assert contrast(values["warn"], values["warnpage"]) >= 4.5
    assert contrast(values["bad"], values["warnpage"]) >= 4.5


def test_methods_are_told_apart_without_hue() -> None:
    styles = method_styles(["vanilla", "speculative", "hamburger", "prompt_lookup", "other", "another"])
    assert len({style.marker for style in styles.values()}) >= 5
    assert len({(style.hue, style.marker) for style in styles.values()}) == 6
    look = method_config("hamburger").look
    assert look is not None
    assert styles["hamburger"] == MethodStyle(METHOD_HUES[look.hue], look.marker, look.dash)
    many = method_styles([f"m{i}" for i in range(60)])
    assert len(many) == 60


def test_limits_have_width_whatever_the_values() -> None:
    assert padded([]) == (0.0, 1.0)
    for values in ([0.0], [5.0, 5.0], [-3.0], [float("nan"), 1.0], [1e9, 1e9 + 1]):
        low, high = padded(values)
        assert low < high
    assert padded([0.1, 5.0], floor=0)[0] == 0


def test_ticks_have_true_minus_and_no_needless_zeros() -> None:
    assert tick_text(-2.5) == "−2.5"
    assert tick_text(2.0) == "2"
    assert tick_text(12000) == "12\u202f000"


def test_a_variant_has_the_hue_of_its_method_and_a_marker_of_its_own() -> None:
    styles = method_styles(["vanilla", "suffix", "hamburger", "hamburger verified"])
    assert styles["hamburger verified"].hue == styles["hamburger"].hue
    assert styles["hamburger verified"].marker != styles["hamburger"].marker
    assert len({(style.hue, style.marker) for style in styles.values()}) == 4


def test_five_variants_are_not_all_of_one_hue() -> None:
    names = [
        "vanilla",
        *(f"kv_press {rule}" for rule in ("streaming", "knorm", "keydiff", "snapkv", "random")),
    ]
    styles = method_styles(names)
    assert len({(style.hue, style.marker) for style in styles.values()}) == 6
    assert max(Counter(style.hue for style in styles.values()).values()) <= 2
