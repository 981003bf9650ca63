"""Addresses of servers, checked before anything is sent or stored."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
"""The names of this machine that a request to a loopback server may give as its ``Host``."""


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def allowed_hosts(host: str) -> tuple[str, ...]:
    """The ``Host`` headers that a server answers to, given the address it listens on; ``*`` where others reach it."""
    return (*LOOPBACK, host, f"[{host}]") if is_loopback(host) else ("*",)


def check_url(url: str) -> str:
    """An address without a trailing slash, its ``/v1`` included.

    Raises:
        ValueError: If it is no http(s) address, or holds a name, a key or a query: those would be stored.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url must be an http(s) address like http://localhost:8000/v1, got {url!r}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "url must hold no user, key or query, since it is stored: put the key in an environment variable"
        )
    base = url.rstrip("/")
    return base if base.endswith("/v1") else f"{base}/v1"
