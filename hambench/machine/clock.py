"""The time of day as hambench stores it."""

from __future__ import annotations

import datetime


def now(timespec: str = "seconds") -> str:
    """This moment in UTC, ISO 8601, to the ``seconds`` or ``microseconds``."""
    return utc(datetime.datetime.now(datetime.UTC), timespec)


def utc(moment: datetime.datetime, timespec: str = "seconds") -> str:
    """A moment in UTC, ISO 8601; one without a time zone is taken as UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.astimezone(datetime.UTC).isoformat(timespec=timespec)
