"""The page in a real browser: nothing leaves it, its numbers are the run's, and it works for everybody."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hambench.analysis import metrics
from hambench.analysis.measurements import measure_run, metric_value
from hambench.bench.browser import wait_until
from hambench.groups import ALL
from hambench.reports import ReportOptions, render_html
from hambench.reports.view import View
from hambench.store import Run

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

OpenPage = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Opens a file off-line; whatever it asks for or complains of is kept on the page object."""
    contexts = []

    def open_(
        path: Path, *, width: int = 1440, fragment: str = "", script: bool = True, scheme: str = "light"
    ) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            java_script_enabled=script,
            color_scheme=scheme,
            offline=True,
        )
        contexts.append(context)
        page = context.new_page()
        page.requests, page.complaints = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("console", lambda message: page.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(path.as_uri() + fragment)
        return page

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def hostile_path(hostile_html: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    path.write_text(hostile_html, encoding="utf-8")
    return path


def test_no_request_leaves_the_file_and_nothing_is_complained_of(
    open_page: OpenPage, page_path: Path
) -> None:
    page = open_page(page_path)
    page.wait_for_timeout(200)
    assert page.requests == [page_path.as_uri()]
    assert page.complaints == []


def test_hostile_text_neither_runs_nor_vanishes(open_page: OpenPage, hostile_path: Path) -> None:
    page = open_page(hostile_path)
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    page.wait_for_timeout(200)
    assert page.evaluate("window.pwned") is None
    assert page.complaints == []
    assert page.requests == [hostile_path.as_uri()]
    text = page.evaluate("document.body.textContent")
    for shown in (
        "<script>window.pwned=1</script>",
        "</script><script>window.pwned=2</script>",
        '"><img src=x onerror="window.pwned=3">',
        "{{7*7}} {% raw %}",
        "⟨U+2028⟩",
        "␀",
        "⟨U+202E⟩",
        "&lt;already&amp;escaped&gt;",
    ):
        assert shown in text, shown
    assert page.evaluate("document.querySelectorAll('img, script:not(body > script)').length") == 0


def test_numbers_in_the_page_equal_numbers_recomputed_from_the_run(
    open_page: OpenPage, page_path: Path, view: View
) -> None:
    page = open_page(page_path)
    shown = page.evaluate(
        """() => [...document.querySelectorAll('#t-summary tbody tr')].map(row => [row.cells[0].textContent,
             Object.fromEntries([...row.cells].filter(cell => cell.dataset.metric)
               .map(cell => [cell.dataset.metric, cell.dataset.value ?? null]))])"""
    )
    assert [label for label, _ in shown] == [cell.label for cell in view.cells]
    compared = 0
    for label, numbers in shown:
        measured = next(m for m in measure_run(view.run) if m.cell == label and m.group == ALL)
        for name in set(numbers) & set(metrics.METRICS):
            expected = metric_value(measured, name)
            if expected is None:
                assert numbers[name] is None, (label, name)
            else:
                assert float(numbers[name]) == pytest.approx(expected, rel=1e-12), (label, name)
                compared += 1
    assert compared > 50


def test_markers_lie_within_a_pixel_of_their_data(open_page: OpenPage, page_path: Path, view: View) -> None:
    page = open_page(page_path)
    points = page.evaluate(
        """() => {
          const svg = document.querySelector('#fig-pareto-tps-accuracy svg');
          const axes = svg.querySelector('[data-axes="0"]'), frame = axes.getBoundingClientRect();
          return [...svg.querySelectorAll('[data-point]')].map(mark => {
            const box = mark.getBoundingClientRect();
            return {label: mark.dataset.point, standing: mark.dataset.standing,
                    px: (box.left + box.right) / 2, py: (box.top + box.bottom) / 2,
                    left: frame.left, right: frame.right, top: frame.top, bottom: frame.bottom,
                    xlim: axes.dataset.xlim, ylim: axes.dataset.ylim};
          });
        }"""
    )
    assert {point["label"] for point in points} == {cell.label for cell in view.cells}
    for point in points:
        measured = view.measured(view.by_label[point["label"]])
        (x0, x1), (y0, y1) = (map(float, point[name].split()) for name in ("xlim", "ylim"))
        assert measured.tps is not None
        assert measured.accuracy is not None
        x = point["left"] + (measured.tps - x0) / (x1 - x0) * (point["right"] - point["left"])
        y = point["bottom"] - (measured.accuracy.value - y0) / (y1 - y0) * (point["bottom"] - point["top"])
        # a cross is drawn from thin arms, so its box may be a little off its centre
        assert math.hypot(point["px"] - x, point["py"] - y) <= 1.0, point["label"]


@pytest.mark.parametrize(
    ("figure", "x", "y", "kinds"),
    [
        ("tps-accuracy", "tps", "accuracy", {"front", "open"}),
        ("tps-regret", "tps", "regret", {"front", "open", "dominated"}),
        ("kv-tps", "kv_bytes_per_position", "tps", {"front", "open", "dominated"}),
    ],
)
def test_standings_in_the_page_equal_a_brute_force_oracle(
    open_page: OpenPage, page_path: Path, view: View, figure: str, x: str, y: str, kinds: set[str]
) -> None:
    page = open_page(page_path)
    drawn = page.evaluate(
        f"""() => [...document.querySelectorAll('#fig-pareto-{figure} [data-standing]')]
                 .map(mark => [mark.dataset.point, mark.dataset.standing, mark.dataset.x, mark.dataset.y])"""
    )
    sign = {"higher": 1, "lower": -1}
    values = {
        cell.label: tuple(
            sign[metrics.METRICS[name].better] * value
            for name in (x, y)
            if (value := metric_value(view.measured(cell), name)) is not None
        )
        for cell in view.cells
    }
    assert {label for label, *_ in drawn} == {label for label, both in values.items() if len(both) == 2}
    best = {
        label
        for label, (a, b) in values.items()
        if not any(c >= a and d >= b and (c > a or d > b) for c, d in values.values())
    }
    along = [view.relation(name, ALL) for name in (x, y)]
    expected = {}
    for label in values:
        words = [[relation(other, label) for relation in along] for other in values if other != label]
        if any("better" in pair and set(pair) <= {"better", "equivalent"} for pair in words):
            expected[label] = "dominated"
        elif all("worse" in pair for pair in words):
            expected[label] = "front"
        else:
            expected[label] = "open"
    standings = {label: standing for label, standing, *_ in drawn}
    assert standings == expected
    # each kind is there, or the rest would say nothing of it
    assert set(standings.values()) == kinds
    # what is shown to be on the front is on the plain one, and nothing on the plain one is shown to be dominated
    assert {label for label, standing in standings.items() if standing == "front"} <= best
    assert not {label for label, standing in standings.items() if standing == "dominated"} & best
    # and marks of other points in the places of these would be noticed
    for label, _, px, py in drawn:
        a, b = values[label]
        scale = {"kv_bytes_per_position": 2**10}
        assert float(px) * scale.get(x, 1) == pytest.approx(abs(a))
        assert float(py) * scale.get(y, 1) == pytest.approx(abs(b))


def test_everything_is_there_without_a_script(open_page: OpenPage, page_path: Path) -> None:
    page = open_page(page_path, script=False)
    for section in page.locator("main section").all():
        assert section.is_visible()
    assert page.locator("svg.figure").count() >= 15
    assert page.locator("#t-summary tbody tr").first.is_visible()
    # controls that would do nothing are not shown
    assert not page.locator("#theme").is_visible()
    assert not page.locator(".chips").first.is_visible()
    summary = page.locator(".samples > details > summary").first
    summary.click()
    assert page.locator(".samples .out").first.is_visible()


def test_tables_sort_both_ways_with_missing_values_last(open_page: OpenPage, page_path: Path) -> None:
    page = open_page(page_path)
    column = page.evaluate(
        """[...document.querySelectorAll('#t-summary thead th')].findIndex(th => th.dataset.title === 'Acceptance')"""
    )
    button = page.locator("#t-summary thead th").nth(column).locator("button")

    def values() -> list[float | None]:
        raw = page.evaluate(
            f"[...document.querySelectorAll('#t-summary tbody tr')]"
            f".map(row => row.cells[{column}].dataset.value ?? null)"
        )
        return [None if value is None else float(value) for value in raw]

    for descending in (False, True):
        button.focus()
        page.keyboard.press("Enter")
        found = values()
        present = [value for value in found if value is not None]
        assert len(present) >= 3
        assert present == sorted(present, reverse=descending)
        assert found[: len(present)] == present, "missing values must come last"


def test_filtering_rows_counts_what_is_left(open_page: OpenPage, page_path: Path) -> None:
    page = open_page(page_path)
    page.locator("#f-tasks").fill("lcc hamburger")
    visible = page.locator("#t-tasks tbody tr:visible").count()
    assert visible == 4
    assert page.locator("#t-tasks-count").inner_text().startswith("4 of ")


def test_a_series_can_be_switched_off_and_on(open_page: OpenPage, page_path: Path) -> None:
    page = open_page(page_path)
    figure = page.locator("#fig-pareto-tps-accuracy")
    button = figure.locator("[data-toggle]").last
    mark = figure.locator(f'[data-series="{button.get_attribute("data-toggle")}"][data-point]').first
    assert mark.is_visible()
    button.click()
    assert not mark.is_visible()
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert mark.is_visible()


def test_a_deep_link_opens_its_sample_and_back_returns(open_page: OpenPage, page_path: Path) -> None:
    page = open_page(page_path, fragment="#sample=longbench%2Flcc%2F2")
    opened = page.locator(".samples > details[open]")
    assert opened.count() == 1
    assert opened.get_attribute("data-sample") == "longbench/lcc/2"
    assert opened.is_visible()
    page.evaluate("location.hash = '#tables'")
    page.go_back()
    assert page.evaluate("location.hash") == "#sample=longbench%2Flcc%2F2"


def test_sample_filters_and_order_work_from_the_keyboard(open_page: OpenPage, page_path: Path) -> None:
    page = open_page(page_path)
    button = page.locator('.sample-bar [data-flag="disagree"]')
    button.focus()
    page.keyboard.press("Enter")
    shown = page.locator(".samples > details:visible")
    assert shown.count() > 0
    assert all("disagree" in (item.get_attribute("data-flags") or "").split() for item in shown.all())
    page.locator('.sample-bar [data-flag="all"]').click()
    page.locator(".sample-bar select").select_option("tokens")
    tokens = [
        int(item.get_attribute("data-tokens")) for item in page.locator(".samples > details:visible").all()
    ]
    assert tokens == sorted(tokens, reverse=True)
    assert len(tokens) > 10


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_no_horizontal_scroll_of_the_page(
    open_page: OpenPage, page_path: Path, hostile_path: Path, width: int
) -> None:
    for path in (page_path, hostile_path):
        page = open_page(path, width=width)
        page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path.name


def test_labels_of_figures_are_neither_clipped_nor_overlapping(open_page: OpenPage, page_path: Path) -> None:
    page = open_page(page_path)
    found = page.evaluate(
        """() => {
          const bad = [];
          for (const svg of document.querySelectorAll('svg.figure')) {
            const name = svg.closest('figure').id, edge = svg.getBoundingClientRect();
            const texts = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()])
              .filter(([text, box]) => text.trim() && box.width > 0);
            for (const [text, box] of texts)
              if (box.left < edge.left - 1 || box.right > edge.right + 1 || box.top < edge.top - 1
                  || box.bottom > edge.bottom + 1) bad.push(`${name}: clipped ${text}`);
            for (let i = 0; i < texts.length; i++) for (let j = i + 1; j < texts.length; j++) {
              const [a, p] = texts[i], [b, q] = texts[j];
              const w = Math.min(p.right, q.right) - Math.max(p.left, q.left);
              const h = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
              // boxes are taller than letters: what only touches in leading is no overlap
              if (w > 1.5 && h > 0.35 * Math.min(p.height, q.height)) bad.push(`${name}: ${a} over ${b}`);
            }
          }
          return bad;
        }"""
    )
    assert found == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_page: OpenPage, page_path: Path, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(page_path, scheme=scheme)
    page.evaluate(
        "document.querySelectorAll('.samples > details').forEach((part, i) => { part.open = i < 3 })"
    )
    response = Axe().run(page).response
    assert len(response["passes"]) > 10, "axe must have looked"
    serious = [
        (violation["id"], [node["html"][:160] for node in violation["nodes"][:3]])
        for violation in response["violations"]
        if violation["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_dark_mode_changes_the_page_and_its_figures_and_print_stays_light(
    open_page: OpenPage, page_path: Path
) -> None:
    page = open_page(page_path, scheme="dark")

    def colours() -> tuple[str, str]:
        background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        label = page.evaluate(
            "getComputedStyle([...document.querySelectorAll('svg.figure text')]"
            ".find(text => text.textContent === 'vanilla')).fill"
        )
        return background, label

    dark = colours()
    page.locator("#theme").click()
    light = colours()
    assert light[0] == "rgb(255, 255, 255)"
    assert dark[0] != light[0]
    assert dark[1] != light[1]
    page.locator("#theme").click()
    assert colours() == dark
    page.emulate_media(media="print")
    assert colours()[0] == "rgb(255, 255, 255)"


def test_the_print_has_every_section_and_selectable_text(
    open_page: OpenPage, page_path: Path, tmp_path: Path
) -> None:
    page = open_page(page_path)
    titles = [title.inner_text() for title in page.locator("main h2").all()]
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    # headings are structure in the PDF only if they are on paper: ask the print layout itself
    page.emulate_media(media="print")
    for title in titles:
        assert page.get_by_role("heading", name=title, exact=True).first.is_visible(), title
    assert not page.locator("nav").first.is_visible()
    assert not page.locator("#theme").is_visible()


@pytest.fixture(scope="module")
def packed_path(hostile_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page whose samples are all packed but one, and hostile at that."""
    path = tmp_path_factory.mktemp("packed") / "report.html"
    options = ReportOptions(samples="all", plain_bytes=1)
    path.write_text(render_html([hostile_run], options=options), encoding="utf-8")
    return path


def wait_for_index(page: Any) -> None:
    count = page.locator(".sample-count")
    wait_until(lambda: not re.search("more to come|Unpacking", count.text_content() or ""))


def test_packed_samples_are_filtered_ordered_and_shown_like_the_others(
    open_page: OpenPage, packed_path: Path, hostile_run: Run
) -> None:
    page = open_page(packed_path)
    wait_for_index(page)
    total = len(hostile_run.samples)
    assert page.locator(".sample-count").inner_text().startswith(f"{total} of {total} samples")
    shown = page.locator(".samples > details")
    assert shown.count() == total
    shown.evaluate_all("all => all.forEach(part => { part.open = true })")
    texts = [record.text for record in hostile_run.measured if record.text]
    seen = page.evaluate(
        "[...document.querySelectorAll('.out')].map(out => out.textContent.replaceAll('↵', ''))"
    )
    assert len(seen) == len(texts)
    assert sum("<script>window.pwned=1</script>" in text for text in seen) > 0
    assert page.evaluate("window.pwned") is None
    page.locator(".sample-bar select").select_option("tokens")
    wait_for_index(page)
    tokens = [int(item.get_attribute("data-tokens")) for item in shown.all()]
    assert tokens == sorted(tokens, reverse=True)
    page.locator('.sample-bar [data-flag="differs"]').click()
    wait_for_index(page)
    assert all("differs" in (item.get_attribute("data-flags") or "").split() for item in shown.all())
    assert page.complaints == []
    assert page.requests == [packed_path.as_uri()]


def test_a_deep_link_reaches_a_packed_sample(
    open_page: OpenPage, packed_path: Path, hostile_run: Run
) -> None:
    page = open_page(packed_path, fragment="#s4")
    page.wait_for_selector("#s4[open]")
    assert page.locator(".samples > details[open]").count() == 1
    assert page.evaluate("document.activeElement.closest('details').id") == "s4"


def test_without_a_script_a_packed_page_says_what_it_cannot_show(
    open_page: OpenPage, packed_path: Path, hostile_run: Run
) -> None:
    page = open_page(packed_path, script=False)
    assert page.locator(".samples > details").count() == 1
    note = page.locator(".no-js")
    assert note.is_visible()
    assert f"{len(hostile_run.samples) - 1} more are packed" in note.inner_text()
    assert not open_page(packed_path).locator(".no-js").is_visible()


def test_steps_tell_what_hovering_tells_by_click_and_by_arrow_keys(
    open_page: OpenPage, page_path: Path
) -> None:
    page = open_page(page_path)
    page.locator(".samples > details > summary").first.click()
    out = page.locator(".samples > details[open] .out:has(i + i)").first
    out.locator("i").nth(1).click()
    told = out.locator("xpath=following-sibling::p[1]")
    assert told.inner_text() == out.locator("i").nth(1).get_attribute("title")
    out.focus()
    page.keyboard.press("ArrowLeft")
    assert told.inner_text() == out.locator("i").first.get_attribute("title")
    page.keyboard.press("ArrowLeft")
    assert told.inner_text().startswith("step ")
