"""The page as text: self-contained, safe, deterministic, and showing every state of a run."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from page_parser import Parsed

from hambench.reports import ReportOptions, render_html
from hambench.run_notes import Note
from hambench.store import Run


@pytest.fixture(scope="module")
def parsed(html: str) -> Parsed:
    return Parsed(html)


def test_ids_are_unique_and_every_reference_resolves(parsed: Parsed) -> None:
    assert len(parsed.ids) == len(set(parsed.ids))
    assert len(parsed.ids) > 50
    assert set(parsed.references) <= set(parsed.ids)


def test_tags_nest(parsed: Parsed, hostile_html: str) -> None:
    assert parsed.problems == []
    assert Parsed(hostile_html).problems == []


def test_nothing_is_fetched_and_no_style_or_handler_is_inline(parsed: Parsed, hostile_html: str) -> None:
    for page in (parsed, Parsed(hostile_html)):
        assert page.sources == []
        assert page.inline_styles == 0


def test_the_policy_holds_the_hashes_of_the_only_style_and_script(html: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy
    allowed = policy[1].replace("&#39;", "'")
    assert allowed.startswith("default-src 'none'")
    for tag in ("style", "script"):
        bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.S)
        assert len(bodies) == 1
        digest = base64.b64encode(hashlib.sha256(bodies[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in allowed


def test_the_script_stays_small(html: str) -> None:
    script = re.search(r"<script>(.*?)</script>", html, flags=re.S)
    assert script
    assert len(script[1].encode()) <= 25_000


def test_a_page_without_script_has_none(tiny_run: Run) -> None:
    page = render_html([tiny_run], options=ReportOptions(script=False, samples="none"))
    assert "<script" not in page
    assert "script-src" not in page


def test_hostile_text_is_escaped_and_nothing_invisible_stays(hostile_html: str) -> None:
    body = hostile_html.split("</style>", 1)[1].split("<script>")[0]
    assert "<script>window" not in body
    assert "<img" not in body
    for invisible in "\x00\x07\u2028\u2029\u202e\u202c":
        assert invisible not in hostile_html
    hostile_html.encode("utf-8")


def test_lone_surrogates_in_a_run_made_in_memory_do_not_break_the_page(tiny_run: Run) -> None:
    header = replace(tiny_run.header, run_id="half \ud83d emoji", notes=(Note("other", "\udcff"),))
    assert "⟨U+D83D⟩" in render_html(
        [replace(tiny_run, header=header)], options=ReportOptions(samples="none")
    )


def test_the_kind_of_run_is_in_title_strip_and_every_figure(html: str) -> None:
    title = re.search(r"<title>(.*?)</title>", html)
    assert title
    for word in ("simulated", "offline edition", "CPU"):
        assert word in title[1]
    figures = re.findall(r"<svg .*?</svg>", html, flags=re.S)
    marked = [figure for figure in figures if 'class="figure"' in figure]
    assert len(marked) >= 15
    assert all("simulated" in figure and "offline edition" in figure for figure in marked)
    strip = html.split('class="warnings"')[1].split("</ul>")[0]
    assert strip.index("Simulated") < strip.index("Offline edition")


def test_pages_come_in_the_promised_order(html: str) -> None:
    names = re.findall(r'<section id="([a-z]+)"', html)
    assert names == [
        "verdict",
        "identity",
        "pareto",
        "paper",
        "tables",
        "samples",
        "latency",
        "steps",
        "memory",
        "roofline",
        "kernels",
        "history",
        "notes",
    ]


def test_no_absolute_path_is_told_unless_asked(tiny_run: Run) -> None:
    command = ("hambench", "run", "--data", "/home/somebody/rows", "--out=/srv/x/y")
    model = {
        **tiny_run.header.model,
        "name": "/home/somebody/models/m",
        "source": "folder: /home/somebody/models/m",
    }
    told = replace(tiny_run, header=replace(tiny_run.header, command=command, model=model))
    hidden = render_html([told], options=ReportOptions(samples="none"))
    assert "somebody" not in hidden
    assert "…/rows" in hidden
    shown = render_html([told], options=ReportOptions(samples="none", include_host=True))
    assert "/home/somebody/rows" in shown


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes_in_another_process(tiny_run: Run) -> None:
    program = (
        "import sys; from hambench.store import load_run; from hambench.reports import render_html, ReportOptions;"
        "page = render_html([load_run(sys.argv[1])], options=ReportOptions(samples=5));"
        "import hashlib; print(hashlib.sha256(page.encode()).hexdigest())"
    )
    digests = set()
    for seed, language in (("1", "C.UTF-8"), ("2", "POSIX")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": language}
        done = subprocess.run(
            [sys.executable, "-c", program, str(tiny_run.path)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout)
    assert len(digests) == 1


def test_reports_import_neither_torch_nor_methods() -> None:
    program = (
        "import sys, hambench.reports, hambench.reports.page.pages;"
        "bad = [n for n in sys.modules if n.split('.')[0] == 'torch' or n.startswith('hambench.methods')];"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
