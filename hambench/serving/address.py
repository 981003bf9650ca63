"""Checks server addresses and time limits before anything is sent or stored."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
"""Names of this machine that a request to a loopback server may use as its ``Host``."""

LONGEST_TIMEOUT_S = 86400.0
"""A day; the operating system refuses waits that it can't count."""


def is_loopback(host: str) -> bool:
    """Returns whether a host name or address is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def allowed_hosts(host: str) -> tuple[str, ...]:
    """Returns the ``Host`` headers to accept on a listening address; ``*`` if other machines can reach it."""
    return (*LOOPBACK, host, f"[{host}]") if is_loopback(host) else ("*",)


def check_timeout(seconds: float) -> None:
    """Refuses a time limit that no connection can have.

    Raises:
        ValueError: If it is not above zero and at most a day.
    """
    if not 0 < seconds <= LONGEST_TIMEOUT_S:
        raise ValueError(f"timeout_s must be > 0 and at most {LONGEST_TIMEOUT_S:g} seconds, got {seconds:g}")


def check_url(url: str) -> str:
    """Normalizes an address: without a trailing slash, with ``/v1``.

    Raises:
        ValueError: If it is not an http(s) address, or contains a user, a key or a query, which would be stored.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url must be an http(s) address like http://localhost:8000/v1, got {url!r}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "url must not contain a user, key or query, because it is stored: put the key in an environment variable"
        )
    base = url.rstrip("/")
    return base if base.endswith("/v1") else f"{base}/v1"
