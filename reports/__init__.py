"""Reports: read records, never torch.

A report is made in three steps that don't mix: :mod:`hambench.reports.view` derives (through metrics and stats), the
modules named after pages turn that into values (figures, tables, sentences), and :mod:`hambench.reports.page.html` and
:mod:`hambench.reports.export` write them down.
"""

from __future__ import annotations

from hambench.reports.export import export, write_html
from hambench.reports.markdown import markdown_summary
from hambench.reports.options import ReportOptions
from hambench.reports.page.html import render_html

__all__ = ["ReportOptions", "export", "markdown_summary", "render_html", "write_html"]
