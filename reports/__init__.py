"""Reports, made from records without importing torch.

A report is made in three separate steps. :mod:`hambench.reports.view` derives metrics and comparisons. The modules in
:mod:`hambench.reports.sections` turn them into values (figures, tables, sentences). :mod:`hambench.reports.page.html`
and :mod:`hambench.reports.export` write the values to files.
"""

from __future__ import annotations

from hambench.reports.export import export, write_html
from hambench.reports.latex import latex_table
from hambench.reports.markdown import markdown_summary
from hambench.reports.options import ReportOptions
from hambench.reports.page.html import render_html

__all__ = ["ReportOptions", "export", "latex_table", "markdown_summary", "render_html", "write_html"]
