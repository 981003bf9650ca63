"""Times as hambench stores them."""

import datetime
import re

import pytest

from hambench.machine.clock import now, utc


@pytest.mark.parametrize(("timespec", "shape"), [("seconds", r"\+"), ("microseconds", r"\.\d{6}\+")])
def test_now_is_in_utc(timespec, shape):
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    text = now(timespec)
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d{shape}00:00", text)
    assert before <= datetime.datetime.fromisoformat(text) <= datetime.datetime.now(datetime.UTC)


@pytest.mark.parametrize("text", ["2026-01-31T12:00:00", "2026-01-31T14:00:00+02:00", "2026-01-31T12:00:00Z"])
def test_a_moment_without_a_zone_is_in_utc_and_others_become_it(text):
    assert utc(datetime.datetime.fromisoformat(text)) == "2026-01-31T12:00:00+00:00"
