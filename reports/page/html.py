"""Renders one self-contained page: inline SVG, hashed style and script, no requests, everything escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from hambench.reports.draw.theme import DARK, LIGHT, css_variables
from hambench.reports.html_text import printable, prose
from hambench.reports.options import ReportOptions
from hambench.reports.page import pages
from hambench.reports.page.drilldown import words_of
from hambench.reports.page.packing import pack_samples
from hambench.reports.values import Figure
from hambench.reports.view import View, merge
from hambench.store import Run


def render_html(runs: Sequence[Run], *, options: ReportOptions | None = None) -> str:
    """Renders one or several runs as one HTML page; the same input gives the same bytes.

    Runs that may share a plot (same model, data, sampling and machine) are merged; others follow one after another.

    Raises:
        ValueError: If there are no runs.
    """
    if not runs:
        raise ValueError("runs must contain at least one run, got none")
    options = options or ReportOptions()
    merged = merge(runs)
    views = [View(run, prefix=f"r{index}-" if len(merged) > 1 else "") for index, run in enumerate(merged)]
    style = _style()
    script = _read("report.js") if options.script else ""
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            title=page_title(views),
            views=[pages.build(view, options) for view in views],
            policy=content_policy(style, script),
            style=Markup(style),
            script=Markup(script),
            refresh_s=options.refresh_s,
        )
    )
    return page.rstrip() + "\n"


def page_title(views: Sequence[View]) -> str:
    """Returns the page's title: the run, and its kind if that must not be overlooked."""
    from hambench.reports.page.cautions import watermark

    return f"hambench report – {watermark(views[0])}" + (
        f" and {len(views) - 1} more" if len(views) > 1 else ""
    )


def content_policy(style: str, script: str) -> str:
    """Returns a Content-Security-Policy that allows only our own style and script, and no requests."""
    parts = [
        "default-src 'none'",
        "img-src data:",
        f"style-src '{_hash(style)}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    if script:
        parts.append(f"script-src '{_hash(script)}'")
    return "; ".join(parts)


def environment() -> jinja2.Environment:
    """Returns the templates, which always escape text and make every string valid in HTML."""
    env = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    env.filters["prose"] = prose
    env.globals["inline_svg"] = inline_svg
    env.globals["flag_words"] = words_of
    env.globals["pack_samples"] = pack_samples
    return env


def inline_svg(figure: Figure) -> Markup:
    """Renders a figure as markup."""
    return Markup(figure.canvas.page_svg(title=figure.title, description=figure.finding))


def _finalize(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value)
    return value


def _style() -> str:
    light, dark = css_variables(LIGHT), css_variables(DARK)
    # print comes last, because paper is always light
    themes = (
        f":root{{color-scheme:light;{light}}}"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}"
        f"@media print{{:root:root:root{{color-scheme:light;{light}}}}}\n"
    )
    return themes + _read("report.css")


def _read(name: str) -> str:
    return resources.files("hambench.reports.page").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
