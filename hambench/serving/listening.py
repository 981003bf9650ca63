"""Binds the server's address before any slow work, and announces it once the server answers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI

from hambench.errors import HambenchError


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound to an address but does not accept connections yet.

    Args:
        host: Host name or address.
        port: Port; 0 picks a free one.

    Raises:
        HambenchError: If the address can't be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise HambenchError(
            f"can't listen on {host} port {port}: {reason}; choose another --host or --port"
        ) from error
    return listener


def serve(app: FastAPI, listener: socket.socket, announce: Callable[[str], None]) -> None:
    """Serves an application until a signal ends it.

    Args:
        app: The application.
        listener: From :func:`listen`; closed at the end.
        announce: Receives the address once the server answers requests.
    """
    config = uvicorn.Config(app, log_level="warning", server_header=False)
    # Ctrl-C is the normal way to stop a server, not an error
    with contextlib.suppress(KeyboardInterrupt), listener:
        _Announcing(config, announce).run(sockets=[listener])


class _Announcing(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, announce: Callable[[str], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started and sockets:
            self._announce(_url(sockets[0].getsockname()))


def _url(address: Any) -> str:
    host, port = address[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
