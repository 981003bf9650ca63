"""A headless Chromium, for what only a browser can say of a page: how fast it opens and how it looks."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hambench.errors import HambenchError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium, driven by playwright.

    Raises:
        HambenchError: If either is not installed.
    """
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        raise HambenchError("Chromium is not installed: `apt-get install chromium` installs it")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise HambenchError("playwright is not installed: `pip install playwright` installs it") from error
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()
