"""Suites, their prompts and their official scorers. See :mod:`hambench.suites.api`."""

from hambench.groups import prompt_hashes
from hambench.suites.api import (
    Capture,
    CaptureRequest,
    capture,
    check,
    check_own_rows,
    check_plans,
    score,
    scoring_notes,
)
from hambench.suites.listing import describe, list_suites
from hambench.suites.task_requests import ChatTemplate

__all__ = [
    "Capture",
    "CaptureRequest",
    "ChatTemplate",
    "capture",
    "check",
    "check_own_rows",
    "check_plans",
    "describe",
    "list_suites",
    "prompt_hashes",
    "score",
    "scoring_notes",
]
