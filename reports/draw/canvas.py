"""A figure under construction: matplotlib without global state, our defaults, and tags for tooltips and tests."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as MplFigure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

from hambench.reports.draw import svg
from hambench.reports.draw.theme import LIGHT, SENTINEL, MethodStyle
from hambench.reports.html_text import printable
from hambench.reports.number_text import clip, significant

INK, MUTED, GRID, PAGE, BAND, LINE = (
    SENTINEL[name] for name in ("ink", "muted", "grid", "page", "band", "line")
)
PIXELS_PER_INCH = 106
POINTS_PER_INCH = 72

_RC: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    # treat names of tasks and models as text, never as mathematics
    "text.parse_math": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "figure.dpi": POINTS_PER_INCH,
    "hatch.linewidth": 0.7,
}


class Canvas:
    """One figure of ``rows`` x ``columns`` axes.

    Args:
        name: Prefix of the figure's ids, and its file name.
        width: Width in inches.
        height: Height in inches.
        margins: left, right, bottom, top in inches around all axes.
    """

    def __init__(
        self,
        name: str,
        *,
        width: float = 7.4,
        height: float = 4.2,
        rows: int = 1,
        columns: int = 1,
        margins: tuple[float, float, float, float] = (0.6, 0.25, 0.55, 0.45),
        wspace: float = 0.25,
        hspace: float = 0.55,
    ) -> None:
        self.name = name
        self.width, self.height = width, height
        self.watermark = ""
        self._tags: dict[str, dict[str, str]] = {}
        self._svg: str | None = None
        with mpl.rc_context(_RC):
            self.figure = MplFigure(figsize=(width, height), facecolor="none")
            FigureCanvasAgg(self.figure)
            left, right, bottom, top = margins
            grid = self.figure.subplots(
                rows,
                columns,
                squeeze=False,
                gridspec_kw={
                    "left": left / width,
                    "right": 1 - right / width,
                    "bottom": bottom / height,
                    "top": 1 - top / height,
                    "wspace": wspace,
                    "hspace": hspace,
                },
            )
        self.axes: list[Axes] = list(grid.flat)
        for ax in self.axes:
            dress(ax)

    def tag(self, artist: Artist, tip: str = "", **data: str | float) -> None:
        """Gives an artist a tooltip and ``data-*`` attributes in the page."""
        gid = f"tag{len(self._tags)}"
        artist.set_gid(gid)
        attributes = {f"data-{key.replace('_', '-')}": printable(str(value)) for key, value in data.items()}
        if tip:
            attributes["title"] = printable(tip)
        self._tags[gid] = attributes

    def page_svg(self, *, title: str, description: str) -> str:
        """Returns the figure as SVG for the page, themed by CSS variables."""
        raw = self._raw_svg()
        return svg.page_svg(
            raw,
            name=self.name,
            title=printable(title),
            description=printable(description),
            tags=self._tags,
            width=round(self.width * PIXELS_PER_INCH),
        )

    def file_svg(self) -> str:
        """Returns the figure as an SVG file in light colours."""
        return svg.file_svg(self._raw_svg())

    def raster(self, kind: str) -> bytes:
        """Returns the figure as ``png`` or ``pdf`` in light colours."""
        with _drawing():
            _recolour(self.figure)
            out = io.BytesIO()
            metadata = {"CreationDate": None, "Producer": None} if kind == "pdf" else {"Software": None}
            self.figure.savefig(
                out, format=kind, dpi=2 * PIXELS_PER_INCH, facecolor=LIGHT["page"], metadata=metadata
            )
        return out.getvalue()

    def _raw_svg(self) -> str:
        if self._svg is None:
            # the axes' own rectangles let a test convert pixels back to data
            for index, ax in enumerate(self.axes):
                self.tag(
                    ax.patch,
                    axes=index,
                    xlim=" ".join(repr(float(v)) for v in ax.get_xlim()),
                    ylim=" ".join(repr(float(v)) for v in ax.get_ylim()),
                    xscale=ax.get_xscale(),
                    yscale=ax.get_yscale(),
                )
            if self.watermark:
                # stored in the file itself, so that a copied figure keeps its description
                self.figure.text(
                    0.995,
                    0.004,
                    clip(self.watermark, 120),
                    ha="right",
                    va="bottom",
                    fontsize=6.5,
                    color=MUTED,
                    style="italic",
                )
            with _drawing(), mpl.rc_context({"svg.hashsalt": self.name}):
                out = io.StringIO()
                self.figure.savefig(
                    out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
                )
            self._svg = out.getvalue()
        return self._svg

    def text_box(self, text: Artist) -> Bbox:
        """Returns the extent of a text in display coordinates, without an annotation's line."""
        renderer = self.figure.canvas.get_renderer()  # type: ignore[attr-defined]
        with _drawing():
            if isinstance(text, Annotation):
                text.update_positions(renderer)
                return Text.get_window_extent(text, renderer)
            box: Bbox = text.get_window_extent(renderer)
        return box

    def key(
        self, entries: Sequence[tuple[str, MethodStyle]], *, strengths: Mapping[str, float] | None = None
    ) -> None:
        """Draws the names of the looks along the top, for figures without room for direct labels.

        Args:
            entries: Names with their looks.
            strengths: Opacity of a name's line, 0 to 1; 1 where there is none.
        """
        with mpl.rc_context(_RC):
            handles = [
                Line2D(
                    [],
                    [],
                    color=style.colour,
                    marker=style.marker,
                    linestyle=style.linestyle,
                    markersize=5,
                    alpha=(strengths or {}).get(name, 1.0),
                    label=name,
                )
                for name, style in entries
            ]
            key = self.figure.legend(
                handles=handles,
                loc="upper left",
                bbox_to_anchor=(0.3 / self.width, 1 - 0.04 / self.height),
                ncols=key_columns(self.width),
                fontsize=8,
                handlelength=2.8,
                borderaxespad=0,
                frameon=False,
            )
            for text in key.get_texts():
                text.set_color(INK)


def key_columns(width: float) -> int:
    """Returns the number of names per row of a key in a figure of this width in inches."""
    return max(1, int(width // 1.9))


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    """Applies our defaults; silences warnings about glyphs that only the measuring font lacks, not the page's."""
    with mpl.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def dress(ax: Axes) -> None:
    """Sets ticks and grid to the report's style."""
    ax.tick_params(length=0, pad=4)
    ax.patch.set_facecolor("none")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))


def tick_text(value: float) -> str:
    """Formats a tick's number, with a true minus and without needless zeros."""
    text = f"{value:,.10g}".replace(",", "\u202f").replace("-", "−")
    return text if len(text) < 9 else significant(value)


def titles(ax: Axes, *, x: str = "", y: str = "", title: str = "") -> None:
    """Sets horizontal axis titles: y above the axis, x at the right under its end."""
    if title:
        ax.set_title(title, loc="left", fontsize=9.5, fontweight="bold", color=INK, pad=20 if y else 8)
    if y:
        ax.annotate(
            y,
            (0, 1),
            xycoords="axes fraction",
            xytext=(0, 7),
            textcoords="offset points",
            fontsize=8,
            color=MUTED,
            ha="left",
            va="bottom",
        )
    if x:
        ax.set_xlabel(x, fontsize=8, color=MUTED, loc="right", labelpad=5)


def padded(
    values: Iterable[float], *, share: float = 0.08, floor: float | None = None
) -> tuple[float, float]:
    """Returns axis limits with room around the values; never of zero width."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return (0.0, 1.0)
    low, high = min(finite), max(finite)
    span = high - low or abs(high) * 0.2 or 1.0
    high += share * span
    # a point on the floor still needs room for its mark
    least = low - share * span if floor is None or low > floor else floor - 0.06 * span
    return (least if floor is None or low <= floor else max(floor, least), high)


def _recolour(figure: MplFigure) -> None:
    real = {SENTINEL[name]: value for name, value in LIGHT.items()}
    for artist in figure.findobj():
        for kind in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor", "hatchcolor"):
            getter, setter = getattr(artist, f"get_{kind}", None), getattr(artist, f"set_{kind}", None)
            if getter is None or setter is None:
                continue
            replacement = _real_colours(getter(), real)
            if replacement is not None:
                setter(replacement)


def _real_colours(value: Any, real: dict[str, str]) -> Any:
    from matplotlib.colors import is_color_like, to_hex, to_rgba

    if isinstance(value, str) and value == "none":
        return None
    if is_color_like(value):
        rgba = to_rgba(value)
        name = real.get(to_hex(rgba))
        return None if name is None else (*to_rgba(name)[:3], rgba[3])
    if hasattr(value, "__len__") and len(value) and all(is_color_like(item) for item in value):
        mapped = [_real_colours(item, real) or tuple(item) for item in value]
        return mapped
    return None
