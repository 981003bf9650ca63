"""Drives a headless Chromium to measure how fast a page opens and how it looks."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
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
    """Starts Chromium, driven by playwright: the system's, else the one that playwright installed.

    Raises:
        HambenchError: If Chromium or playwright is not installed.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise HambenchError("playwright is not installed: `pip install playwright` installs it") from error
    system = next((path for name in NAMES if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        path = system or playwright.chromium.executable_path
        if not Path(path).exists():
            raise HambenchError(
                "Chromium is not installed: install it with `make browser`, `apt-get install chromium` or "
                "`playwright install chromium`"
            )
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def wait_until(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Waits until a condition of a page holds, asking every 5 ms.

    playwright's own ``wait_for_function`` evaluates text inside the page, which the report's content security policy
    forbids: it fails whenever the condition does not hold at once.

    Raises:
        HambenchError: If it does not hold after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise HambenchError(f"the page did not get ready within {seconds:g} s")
        time.sleep(0.005)
