"""Reports: read records, never torch."""

from __future__ import annotations

from hambench.reports.html import ReportOptions, render_html

__all__ = ["ReportOptions", "render_html"]
