"""Makes the README's pictures from a run: ``python docs/pictures/make.py RUN``. Needs Chromium and playwright."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hambench.bench.browser import chromium
from hambench.reports import ReportOptions, write_html
from hambench.store import load_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FOLDER = Path(__file__).parent
MAX_BYTES = 300_000


def main() -> None:
    """Writes report-light.png, report-dark.png and pareto.png beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = load_run(parser.parse_args().run)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        page = Path(folder) / "report.html"
        write_html([run], page, options=ReportOptions(samples="none"))
        for scheme in ("light", "dark"):
            picture(browser, page, scheme, FOLDER / f"report-{scheme}.png")
        picture(browser, page, "light", FOLDER / "pareto.png", "#fig-pareto-tps-accuracy svg")


def picture(browser: Browser, page: Path, scheme: str, target: Path, selector: str | None = None) -> None:
    """Takes one picture of the page's top, or of one element."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 1100},
        color_scheme="dark" if scheme == "dark" else "light",
        device_scale_factor=1.5 if selector else 1,
        offline=True,
    )
    tab = context.new_page()
    tab.goto(page.as_uri())
    if selector is None:
        tab.screenshot(path=target)
    else:
        tab.locator(selector).first.screenshot(path=target)
    context.close()
    size = target.stat().st_size
    if size > MAX_BYTES:
        raise SystemExit(f"{target} has {size} bytes, more than {MAX_BYTES}")


if __name__ == "__main__":
    main()
