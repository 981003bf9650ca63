"""The page as text: self-contained, safe, deterministic, and showing every state of a run."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import synthetic

from hambench.records import Cell, Sample
from hambench.reports import ReportOptions, render_html
from hambench.store import Run, load_run

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Parsed(HTMLParser):
    """Ids, references, and whether every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.sources: list[str] = []
        self.problems: list[str] = []
        self.inline_styles = 0
        self._open: list[str] = []
        self.feed(html)
        self.problems += [f"never closed: {tag}" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self._open.append(tag)
        self._look(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(attrs)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1] != tag:
            self.problems.append(f"</{tag}> closes {self._open[-1:]}")
        elif self._open:
            self._open.pop()

    def _look(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            value = value or ""
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href") and value.startswith("#"):
                self.references.append(value[1:])
            elif name in ("src", "href", "xlink:href"):
                self.sources.append(value)
            if name in ("aria-labelledby", "aria-describedby", "for"):
                self.references += value.split()
            if name == "style" or name.startswith("on"):
                self.inline_styles += 1
            self.references += re.findall(r"url\(#([^)]+)\)", value)


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
    header = replace(tiny_run.header, run_id="half \ud83d emoji", notes=("\udcff",))
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
    model = {**tiny_run.header.model, "source": "folder: /home/somebody/models/m"}
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
        "import sys, hambench.reports, hambench.reports.pages;"
        "bad = [n for n in sys.modules if n.split('.')[0] == 'torch' or n.startswith('hambench.methods')];"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# degenerate runs


def simulated(tmp_path: Path, cells: tuple[Cell, ...] | None = None, **options: object) -> Run:
    return load_run(synthetic.write_run(tmp_path / "run", cells, **options))


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text.split("</style>")[1].split("<script>")[0]))


def check(page: str) -> str:
    parsed = Parsed(page)
    assert parsed.problems == []
    assert len(parsed.ids) == len(set(parsed.ids))
    text = plain(page)
    for word in ("nan", "NaN", "inf", "Traceback", "Undefined"):
        assert not re.search(rf"(?<![\w.]){word}(?![\w-])", text), word
    # the word may stand in an answer, but not alone where a number should
    assert not re.search(r'>\s*None\s*<|="None"', page)
    return text


ONE = (synthetic.TASKS[0],)
TWO = synthetic.TASKS[:2]
CELLS = (*synthetic.cells()[:2], *synthetic.cells()[4:6])


def test_one_method_has_nothing_to_choose(tmp_path: Path) -> None:
    run = simulated(tmp_path, synthetic.cells()[:1], tasks=ONE, per_task=3)
    text = check(render_html([run]))
    assert "Only vanilla was run" in text
    assert "needs HAMburger cells" in text


def test_one_sample_gives_no_interval_and_no_verdict(tmp_path: Path) -> None:
    run = simulated(tmp_path, CELLS, tasks=ONE, per_task=1, error_rate=0.0)
    text = check(render_html([run]))
    assert "inconclusive" in text


def test_a_run_where_everything_failed_says_so(tmp_path: Path) -> None:
    run = simulated(tmp_path, CELLS, tasks=ONE, per_task=3, error_rate=1.0)
    text = check(render_html([run]))
    assert "every sample failed" in text
    assert "12 of 12 answers failed" in text
    assert "no cell has both numbers" in text


def test_a_run_without_scores_says_nothing_about_accuracy(tmp_path: Path) -> None:
    run = replace(simulated(tmp_path, CELLS, tasks=ONE, per_task=3), scores=())
    text = check(render_html([run]))
    assert "Not scored" in text


def test_a_run_without_baseline_calls_nothing_faster(tmp_path: Path) -> None:
    run = simulated(tmp_path, synthetic.cells()[1:5], tasks=ONE, per_task=3)
    text = check(render_html([run]))
    assert "No baseline" in text
    assert "▲" not in text.split("Notes")[0]


def test_a_run_that_has_not_begun_renders(tmp_path: Path) -> None:
    run = replace(simulated(tmp_path, CELLS, tasks=ONE, per_task=2), records=(), scores=(), telemetry=())
    text = check(render_html([run]))
    assert "Partial run" in text
    assert "0 of 8 answers" in text


def test_nan_and_infinite_scores_are_absent_not_zero(tmp_path: Path) -> None:
    run = simulated(tmp_path, CELLS, tasks=ONE, per_task=4, error_rate=0.0)
    broken = tuple(
        replace(score, value=float("nan") if index % 2 else float("inf"))
        for index, score in enumerate(run.scores)
    )
    text = check(render_html([replace(run, scores=broken)]))
    assert "no score" in text


def test_a_step_that_took_no_time_does_not_break_a_figure(tmp_path: Path) -> None:
    run = simulated(tmp_path, CELLS, tasks=ONE, per_task=2, error_rate=0.0)
    records = []
    for record in run.records:
        assert record.trace is not None
        steps = tuple(replace(step, seconds=0.0) for step in record.trace.steps)
        records.append(replace(record, trace=replace(record.trace, steps=steps)))
    check(render_html([replace(run, records=tuple(records))]))


def test_a_peer_that_tells_only_tokens_and_times_is_shown_without_the_rest(tmp_path: Path) -> None:
    run = simulated(tmp_path, CELLS, tasks=ONE, per_task=3, error_rate=0.0)
    unknown = dict.fromkeys(
        ("target_forwards", "draft_forwards", "micro_forwards", "drafted", "accepted", "kv_slots", "kv_bytes")
    )
    records = []
    for record in run.records:
        if record.cell == CELLS[1].label:
            assert record.trace is not None
            steps = tuple(replace(step, **unknown) for step in record.trace.steps)
            record = replace(record, trace=replace(record.trace, steps=steps))
        records.append(record)
    text = check(render_html([replace(run, records=tuple(records))]))
    assert f"Left out for want of a number: {CELLS[1].label}" in text


@pytest.mark.slow
def test_thirty_methods_with_names_of_eighty_characters_render(tmp_path: Path) -> None:
    cells = (
        synthetic.cells()[0],
        *(
            Cell(
                method=f"method{i}-{'long' * 20}",
                label=f"method{i}-{'name' * 19}",
                knobs={},
                model="toy",
                dtype="x",
            )
            for i in range(30)
        ),
    )
    run = simulated(tmp_path, cells, tasks=ONE, per_task=2)
    text = check(render_html([run], options=ReportOptions(samples=1)))
    assert f"method29-{'name' * 19}" in text


def test_a_task_name_of_eighty_characters_is_cut_in_figures_only(tmp_path: Path) -> None:
    tasks = tuple(replace(task, name=f"{task.name}-{'y' * 80}") for task in TWO)
    run = simulated(tmp_path, synthetic.cells()[:3], tasks=tasks, per_task=2)
    page = render_html([run])
    check(page)
    assert f"{TWO[0].name}-{'y' * 80}" in page


def test_runs_of_one_machine_share_a_plot_and_others_do_not(tmp_path: Path) -> None:
    cells = synthetic.cells()
    one = load_run(synthetic.write_run(tmp_path / "a", cells[:2], tasks=ONE, per_task=3))
    two = load_run(
        synthetic.write_run(
            tmp_path / "b", cells[:1] + cells[3:4], tasks=ONE, per_task=3, header_changes={"run_id": "other"}
        )
    )
    together = render_html([one, two])
    check(together)
    assert together.count('id="verdict"') == 1
    assert "prompt_lookup" in together
    assert "vanilla @other" in together
    elsewhere = replace(two, header=replace(two.header, environment={"cpu": "another"}))
    apart = render_html([one, elsewhere])
    check(apart)
    assert apart.count('id="r0-verdict"') == apart.count('id="r1-verdict"') == 1


def test_runs_of_other_prompts_do_not_share_a_plot(tmp_path: Path) -> None:
    one = simulated(tmp_path, synthetic.cells()[:1], tasks=ONE, per_task=2)
    other = replace(one, header=replace(one.header, data_hashes={"other": "1" * 64}))
    assert 'id="r1-verdict"' in render_html([one, other], options=ReportOptions(samples="none"))


def test_no_run_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        render_html([])


def test_what_the_drilldown_leaves_out_is_said(tiny_run: Run) -> None:
    page = render_html([tiny_run], options=ReportOptions(samples=3))
    assert f"3 of {len(tiny_run.samples)} samples are shown" in page
    assert page.count("data-sample=") == 3
    assert "Left out by" in render_html([tiny_run], options=ReportOptions(samples="none"))


@pytest.mark.slow
def test_a_large_run_stays_within_five_megabytes(tmp_path: Path) -> None:
    # more samples than the cap: past it, only the cap decides the size
    tasks = tuple(replace(synthetic.TASKS[i % 6], name=f"task{i}", answer_tokens=120) for i in range(16))
    cells = (synthetic.cells()[0], synthetic.cells()[2], synthetic.cells()[5])
    run = simulated(tmp_path, cells, tasks=tasks, per_task=14)
    assert isinstance(next(iter(run.samples.values())), Sample)
    page = render_html([run])
    assert len(page.encode()) <= 5_000_000
    assert f"of {16 * 14} samples are shown" in page
