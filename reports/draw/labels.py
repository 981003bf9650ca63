"""Direct labels that avoid points, each other and the frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from hambench.reports.draw.canvas import INK, Canvas
from hambench.reports.number_text import clip


@dataclass(frozen=True, slots=True)
class Label:
    """A text that belongs to a point of an axes, in data coordinates."""

    x: float
    y: float
    text: str
    series: str = ""
    colour: str = INK
    weight: str = "normal"
    size: float = 8.0


_OFFSETS = (
    (7, 5, "left", "bottom"),
    (7, -5, "left", "top"),
    (-7, 5, "right", "bottom"),
    (-7, -5, "right", "top"),
    (0, 9, "center", "bottom"),
    (0, -9, "center", "top"),
    (10, 0, "left", "center"),
    (-10, 0, "right", "center"),
    (14, 14, "left", "bottom"),
    (14, -14, "left", "top"),
    (-14, 14, "right", "bottom"),
    (-14, -14, "right", "top"),
    (24, 24, "left", "bottom"),
    (24, -24, "left", "top"),
    (-24, 24, "right", "bottom"),
    (-24, -24, "right", "top"),
    (0, 30, "center", "bottom"),
    (0, -30, "center", "top"),
)


def place_labels(
    canvas: Canvas, ax: Axes, labels: Sequence[Label], *, obstacles: Sequence[Bbox] = ()
) -> list[Label]:
    """Writes each label at the first free place around its point; returns the labels without one.

    Limits of the axes must be final. The caller must show returned labels elsewhere, in a tooltip and in the table.
    """
    renderer = canvas.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = ax.get_window_extent(renderer)
    points = [tuple(ax.transData.transform((label.x, label.y))) for label in labels]
    occupied = [*obstacles, *(Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in points)]
    unplaced = []
    for label, own in zip(labels, points, strict=True):
        for place in _OFFSETS:
            text = _write(ax, label, place)
            box = canvas.text_box(text)
            inside = (
                frame.x0 - 2 <= box.x0
                and box.x1 <= frame.x1 + 14
                and frame.y0 <= box.y0
                and box.y1 <= frame.y1 + 6
            )
            if inside and not any(box.overlaps(other) for other in occupied):
                if _could_be_anothers(box, own, points):
                    text.remove()
                    text = _write(ax, label, place, leader=True)
                occupied.append(box.padded(2))
                canvas.tag(text, halo=1, **({"series": label.series} if label.series else {}))
                break
            text.remove()
        else:
            unplaced.append(label)
    return unplaced


def beside_row(ax: Axes, row: float, text: str) -> None:
    """Writes a text to the right of the frame, level with a row of bars."""
    ax.annotate(
        text,
        (1, row),
        xycoords=("axes fraction", "data"),
        xytext=(5, 0),
        textcoords="offset points",
        fontsize=8,
        va="center",
        color=INK,
        annotation_clip=False,
    )


def _write(
    ax: Axes, label: Label, place: tuple[float, float, str, str], *, leader: bool = False
) -> Annotation:
    dx, dy, ha, va = place
    start = ({"left": 0.0, "center": 0.5, "right": 1.0}[ha], {"bottom": 0.0, "center": 0.5, "top": 1.0}[va])
    line = {
        "arrowstyle": "-",
        "linewidth": 0.7,
        "color": label.colour,
        "shrinkA": 0,
        "shrinkB": 4,
        "relpos": start,
    }
    return ax.annotate(
        clip(label.text, 34),
        (label.x, label.y),
        xytext=(dx, dy),
        textcoords="offset points",
        ha=ha,
        va=va,
        fontsize=label.size,
        color=label.colour,
        fontweight=label.weight,
        annotation_clip=False,
        arrowprops=line if leader else None,
    )


def _could_be_anothers(box: Bbox, own: tuple[float, float], points: Sequence[tuple[float, float]]) -> bool:
    """Returns True if another point is nearly as near to the text, so that it needs a line to its own point."""

    def distance(point: tuple[float, float]) -> float:
        x, y = point
        return math.hypot(max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1))

    return any(distance(point) < 1.5 * distance(own) for point in points if point != own)
