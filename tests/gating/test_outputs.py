"""What people and programs read: verdict first, worst first, never green for nothing."""

import json
import math
from dataclasses import replace
from typing import get_args
from xml.etree import ElementTree

import msgspec
import pytest

from hambench.gating.checks import Check, ExitCode, Outcome, Verdict, change_word, merge
from hambench.gating.exports import render_action_benchmark, render_json, render_junit
from hambench.gating.markdown import MAX_CHARACTERS, marker, render_markdown
from hambench.records import Estimate
from hambench.records import Verdict as PairVerdict

HOSTILE = "a|b](javascript:x) <script>alert(1)</script> @everyone #1 `x` \x00\x07 \n| new | row |"


def check(verdict="equivalent", *, cell="vanilla", ratio=1.0, primary=True, **changes):
    base = Check(
        cell=cell,
        metric="tps",
        metric_class="speed",
        verdict=verdict,
        base=1.0,
        head=ratio,
        effect=Estimate(value=ratio, low=ratio * 0.99, high=ratio * 1.01, n=10),
        threshold=0.05,
        minimum_detectable_effect=0.03,
        primary=primary,
    )
    return replace(base, **changes)


def outcome(*checks, **changes):
    return replace(Outcome(title="Speed", base="main", head="this", checks=checks, suite="speed"), **changes)


@pytest.mark.parametrize(
    ("checks", "crashes", "strict", "code"),
    [
        (["equivalent"], (), False, 0),
        (["improved"], (), True, 0),
        (["equivalent", "regressed"], (), False, 1),
        (["regressed", "not comparable"], ("x: died",), False, 1),
        (["equivalent"], ("x: died",), False, 5),
        ([], (), False, 3),
        (["not comparable", "equivalent"], (), False, 3),
        (["inconclusive", "not comparable"], (), True, 3),
        (["inconclusive", "equivalent"], (), False, 0),
        (["inconclusive", "equivalent"], (), True, 4),
    ],
)
def test_exit_codes(checks, crashes, strict, code):
    found = outcome(*(check(verdict) for verdict in checks), crashes=crashes)
    assert found.exit_code(strict=strict) == code


@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_every_word_is_shown_by_every_output_and_only_a_loss_fails(verdict):
    found = outcome(check(verdict))
    assert verdict in render_markdown(found)
    assert json.loads(render_json(found))["checks"][0]["verdict"] == verdict
    assert verdict in render_action_benchmark(found)
    suite = ElementTree.fromstring(render_junit(found)).find("testsuite")
    counts = {name: int(suite.get(name)) for name in ("failures", "errors", "skipped")}
    assert counts["failures"] == (verdict == "regressed")
    assert counts["errors"] == (verdict == "not comparable")
    assert counts["skipped"] == (verdict == "inconclusive")
    assert (found.exit_code() == ExitCode.REGRESSED) == (verdict == "regressed")
    assert ("Regressed" in found.headline()) == (verdict == "regressed")


@pytest.mark.parametrize("verdict", get_args(PairVerdict))
def test_only_worse_becomes_a_regression(verdict):
    word = change_word(verdict)
    assert word in get_args(Verdict)
    assert (word == "regressed") == (verdict == "worse")
    assert (word == "improved") == (verdict == "better")


def test_advice_never_decides_and_alone_is_nothing_measured():
    advice = check("regressed", primary=False)
    assert outcome(advice, check()).exit_code() == ExitCode.FINE
    assert outcome(advice).exit_code() == ExitCode.INCOMPLETE


def test_merging_keeps_every_check_and_the_worst_code():
    merged = merge([outcome(check()), outcome(check("regressed")), outcome(crashes=("x",))], title="all")
    assert len(merged.checks) == 2
    assert merged.exit_code() == ExitCode.REGRESSED


def test_markdown_begins_with_its_marker_and_its_verdict():
    lines = render_markdown(outcome(check("regressed", ratio=0.9))).splitlines()
    assert lines[0] == marker(outcome()) == "<!-- hambench:speed -->"
    assert "Regressed: tps of vanilla" in lines[1]


def test_markdown_puts_the_worst_first():
    checks = [check("equivalent", cell="fine"), check("regressed", cell="bad", ratio=0.9)]
    checks += [check("regressed", cell="worse", ratio=0.5), check("improved", cell="better", ratio=1.4)]
    text = render_markdown(outcome(*checks))
    places = [text.index(f"| {cell} |") for cell in ("worse", "bad", "better", "fine")]
    assert places == sorted(places)


def test_markdown_of_very_many_rows_fits_a_comment_and_says_what_it_cut():
    many = [check(cell=f"cell-{i}", reason="r" * 100, primary=i % 2 == 0) for i in range(3000)]
    text = render_markdown(outcome(*many, check("regressed", cell="guilty", ratio=0.8)))
    assert len(text) <= MAX_CHARACTERS + 1
    assert "guilty" in text
    assert "rows cut" in text


def test_labels_and_reasons_stay_text():
    hostile = check("regressed", cell=HOSTILE, reason=HOSTILE)
    text = render_markdown(outcome(hostile, notes=(HOSTILE,), crashes=(HOSTILE,)))
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "@everyone" not in text
    rows = [line for line in text.splitlines() if line.startswith("| 🔴")]
    assert len(rows) == 1
    assert rows[0].replace("\\|", "").count("|") == 9


def test_unchanged_counts_are_folded_away_and_a_changed_one_is_not():
    same = [check(metric=f"n{i}", metric_class="exact") for i in range(5)]
    text = render_markdown(outcome(*same, check("regressed", metric="kv_bytes", metric_class="exact")))
    assert text.index("kv\\_bytes" if "kv\\_bytes" in text else "kv_bytes") < text.index("<details>")
    assert "5 exact counts unchanged" in text


def parse(found, **options):
    return ElementTree.fromstring(render_junit(found, **options))[0]


def test_junit_tells_failures_errors_and_skips_apart():
    found = outcome(
        check("regressed", ratio=0.9),
        check("not comparable", effect=None),
        check("inconclusive"),
        check("regressed", primary=False),
        check(),
        crashes=("prompt_lookup: killed by signal 9",),
    )
    suite = parse(found)
    assert {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": 6,
        "failures": 1,
        "errors": 2,
        "skipped": 2,
    }
    assert len(suite.findall("testcase")) == 6
    assert suite.find("testcase/failure") is not None


def test_junit_of_nothing_is_an_error_and_not_an_empty_green_suite():
    suite = parse(outcome())
    assert int(suite.get("errors")) == 1
    assert suite.find("testcase/error") is not None


def test_junit_survives_any_text():
    suite = parse(outcome(check("regressed", cell=HOSTILE, reason=HOSTILE + "\ud800"), crashes=(HOSTILE,)))
    assert "alert(1)" in suite.find("testcase").get("classname")


def test_json_reads_back_and_carries_code_and_readings():
    found = outcome(check("regressed", ratio=0.9), measurements={"blocks": {"vanilla": [1, 2]}})
    text = render_json(found, strict=True)
    assert json.loads(text)["exit_code"] == 1
    back = msgspec.json.decode(text, type=Outcome)
    assert back.checks == found.checks
    assert back.measurements == found.measurements


def test_json_never_holds_a_number_that_json_has_not():
    text = render_json(outcome(check("not comparable", head=math.nan, p_value=math.inf)))
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text)["checks"][0]["head"] is None


def test_action_benchmark_entries_all_mean_bigger_is_better():
    slower = check("regressed", cell="slow", ratio=0.8)
    heavier = check(
        "regressed", cell="heavy", ratio=1.25, metric="kv_bytes", metric_class="exact", better="lower"
    )
    entries = {
        entry["name"]: entry for entry in json.loads(render_action_benchmark(outcome(slower, heavier)))
    }
    assert [entry["value"] for entry in entries.values()] == pytest.approx([0.8, 0.8])
    assert all({"name", "unit", "value"} <= set(entry) for entry in entries.values())


def test_action_benchmark_leaves_out_what_has_no_ratio():
    assert json.loads(render_action_benchmark(outcome(check(effect=None)))) == []
