"""Direct labels that keep clear of points, of each other and of the frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from hambench.reports.plate import INK, Plate
from hambench.reports.values import clip


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
    plate: Plate, ax: Axes, labels: Sequence[Label], *, obstacles: Sequence[Bbox] = ()
) -> list[Label]:
    """Writes each label at the first free place around its point; returns those that found none.

    Limits of the axes must be final. What is not written must be said elsewhere: in a tooltip and in the table.
    """
    renderer = plate.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = ax.get_window_extent(renderer)
    taken = [*obstacles]
    for label in labels:
        x, y = ax.transData.transform((label.x, label.y))
        taken.append(Bbox.from_extents(x - 5, y - 5, x + 5, y + 5))
    unplaced = []
    for label in labels:
        placed = False
        for dx, dy, ha, va in _OFFSETS:
            text = ax.annotate(
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
            )
            box = plate.text_box(text)
            inside = (
                frame.x0 - 2 <= box.x0
                and box.x1 <= frame.x1 + 14
                and frame.y0 <= box.y0
                and box.y1 <= frame.y1 + 6
            )
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box.padded(2))
                plate.tag(text, halo=1, **({"series": label.series} if label.series else {}))
                placed = True
                break
            text.remove()
        if not placed:
            unplaced.append(label)
    return unplaced
