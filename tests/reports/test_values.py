"""Numbers as a reader sees them: absence is never zero, and nothing lies in rounding."""

from __future__ import annotations

import math

import pytest

from hambench.reports.html_text import printable, without_paths
from hambench.reports.number_text import (
    ABSENT,
    bytes_text,
    clip,
    listing,
    ratio_text,
    seconds_text,
    signed,
    significant,
    slug,
)
from hambench.reports.values import Column, Table, number_cell, text_cell


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_shows_as_absent_and_sorts_as_missing(value: float | None) -> None:
    cell = number_cell(value)
    assert cell.text == ABSENT
    assert cell.value is None
    assert bytes_text(value) == ABSENT
    assert seconds_text(value) == ABSENT


def test_numbers_keep_three_digits_at_any_size() -> None:
    assert [significant(v) for v in (0, 0.01234, 1.234, 12.34, 123.4, 12345.6)] == [
        "0",
        "0.0123",
        "1.23",
        "12.3",
        "123",
        "12\u202f346",
    ]


def test_units_suit_the_size() -> None:
    assert bytes_text(512) == "512 B"
    assert bytes_text(3 * 2**20) == "3.00 MiB"
    assert seconds_text(2e-5) == "20.0 µs"
    assert seconds_text(0.25) == "250 ms"
    assert seconds_text(300) == "5 min 0 s"


def test_signed_numbers_have_true_minus_and_no_negative_zero() -> None:
    assert signed(-0.04) == "0.0"
    assert signed(-1.26) == "−1.3"
    assert signed(2) == "+2.0"


def test_slugs_hold_only_what_is_safe_in_ids_and_file_names() -> None:
    assert slug("speculative[k=4]") == "speculative-k-4"
    assert slug("../../etc/<x>") == "etc-x"
    assert slug("שלום") == "x"


def test_listing_reads_as_a_sentence() -> None:
    assert listing([]) == ""
    assert listing(["a", "b", "c"]) == "a, b and c"


def test_invisible_characters_become_visible() -> None:
    assert printable("a\x00b\u202ec\ud800\u200b") == "a␀b⟨U+202E⟩c⟨U+D800⟩⟨U+200B⟩"
    assert printable("keeps\n\ttabs, é, 漢, 👩") == "keeps\n\ttabs, é, 漢, 👩"
    assert clip("two\nlines", 20) == "two lines"
    assert clip("x" * 30, 10) == "x" * 9 + "…"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--data /home/me/rows", "--data …/rows"),
        ("--out=/srv/a/b", "--out=…/b"),
        ("~/models/llama", "…/llama"),
        (r"C:\Users\me\runs", "…/runs"),
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("1/2 and 3/4", "1/2 and 3/4"),
    ],
)
def test_absolute_paths_are_cut_and_nothing_else(text: str, shown: str) -> None:
    assert without_paths(text) == shown


def test_csv_keeps_numbers_unrounded_and_quotes_text() -> None:
    table = Table(
        "t",
        "caption",
        (Column("a,b"), Column("n")),
        ((text_cell('x"y'), number_cell(1 / 3)), (text_cell("z"), number_cell(None))),
    )
    assert table.csv() == f'"a,b",n\n"x""y",{1 / 3!r}\nz,\n'


def test_an_interval_that_says_nothing_is_named_by_its_order() -> None:
    assert [ratio_text(value) for value in (0.0004, 0.1, 1.0, 99.9, 9.4e8)] == [
        "<0.01",
        "0.10",
        "1.00",
        "99.90",
        ">100",
    ]
