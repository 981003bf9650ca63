"""Samples past the first are packed: all there, the same markup, and the page stays light however many there are."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import replace
from typing import Any

import pytest
import synthetic

from hambench.bench.report import grown
from hambench.reports import ReportOptions, render_html
from hambench.reports.page import packing as packed_module
from hambench.reports.page.drilldown import MOST_PLAIN
from hambench.store import Run, load_run

MANY = MOST_PLAIN + 120


def blocks(page: str, kind: str) -> list[Any]:
    found = re.findall(rf'<script type="text/plain" class="{kind}">([^<]*)</script>', page)
    return [json.loads(zlib.decompress(base64.b64decode(block))) for block in found]


def plain_samples(page: str) -> list[str]:
    return re.findall(r'data-sample="([^"]*)"', page)


@pytest.fixture(scope="module")
def large(tiny_run: Run) -> Run:
    return grown(tiny_run, MANY)


@pytest.fixture(scope="module")
def large_page(large: Run) -> str:
    return render_html([large], options=ReportOptions(samples="all"))


def test_a_page_of_many_samples_holds_the_first_as_html_and_packs_the_others(large_page: str) -> None:
    assert len(plain_samples(large_page)) == MOST_PLAIN
    (rows,) = blocks(large_page, "pack-index")
    assert len(rows) == MANY - MOST_PLAIN
    assert len({*plain_samples(large_page), *(row[1] for row in rows)}) == MANY
    # what is laid out does not grow with the run: elements, not bytes, are what opening costs
    elements = len(re.findall(r"<[a-z]", large_page.split("<body>")[1]))
    fewer = len(re.findall(r"<[a-z]", large_page.split('<script type="text/plain"')[0].split("<body>")[1]))
    assert elements - fewer < 5_000


def test_packed_markup_is_what_would_stand_in_the_page(large: Run, large_page: str) -> None:
    plain = render_html([large], options=ReportOptions(samples="all", script=False))
    assert "text/plain" not in plain
    assert len(plain_samples(plain)) == MANY
    markups = [markup for pack in blocks(large_page, "pack") for markup in pack]
    assert len(markups) == MANY - MOST_PLAIN
    for markup in markups:
        assert markup.strip() in plain


def test_the_index_says_where_each_sample_is(
    large_page: str, monkeypatch: pytest.MonkeyPatch, large: Run
) -> None:
    monkeypatch.setattr(packed_module, "PACK_BYTES", 30_000)
    page = render_html([large], options=ReportOptions(samples="all"))
    packs, (rows,) = blocks(page, "pack"), blocks(page, "pack-index")
    assert len(packs) > len(blocks(large_page, "pack")) >= 1
    at = [0] * len(packs)
    for element, sample, flags, tokens, acceptance, search, pack in rows:
        markup = packs[pack][at[pack]]
        at[pack] += 1
        assert f'id="{element}"' in markup
        assert f'data-sample="{sample}"' in markup
        assert f'data-flags="{flags}" data-tokens="{tokens}"' in markup
        assert f'data-acceptance="{"" if acceptance is None else acceptance}"' in markup
        assert search
    assert at == [len(pack) for pack in packs]


def test_growing_repeats_samples_with_their_answers_and_says_that_it_did(tiny_run: Run) -> None:
    run = grown(tiny_run, 7)
    assert len(run.samples) == 7
    assert len(run.measured) == 7 * len(run.header.cells)
    assert {score.sample_id for score in run.scores} <= set(run.samples)
    assert run.header.notes[0].kind == "simulated"
    with pytest.raises(ValueError, match="got none"):
        grown(replace(tiny_run, samples={}), 3)


def test_hostile_text_stays_escaped_in_packs(hostile_run: Run) -> None:
    page = render_html([hostile_run], options=ReportOptions(samples="all", plain_bytes=1))
    markups = [markup for pack in blocks(page, "pack") for markup in pack]
    assert len(markups) > 3
    for markup in markups:
        assert "<script" not in markup
        assert "<img" not in markup
        assert "\u202e" not in markup


def test_a_default_page_packs_what_outgrows_its_plain_share(tmp_path: Any) -> None:
    run = load_run(synthetic.write_run(tmp_path / "run", tasks=synthetic.TASKS[:1], per_task=6))
    page = render_html([run], options=ReportOptions(plain_bytes=60_000))
    shown = plain_samples(page)
    (rows,) = blocks(page, "pack-index")
    assert 1 <= len(shown) < 6
    assert len(shown) + len(rows) == 6
    assert "samples are shown" not in page
