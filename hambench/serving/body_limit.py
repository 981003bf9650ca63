"""Rejects request bodies that are too large, before they are held in memory."""

from __future__ import annotations

import json

from fastapi.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hambench.serving.wire import error_body


class BodyLimit:
    """ASGI middleware that answers 413 if a body's declared or counted bytes exceed the limit.

    Args:
        app: The application to protect.
        max_bytes: The limit in bytes.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes
        self._message = f"the request body is larger than {max_bytes} bytes"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or rejects it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await self._refuse(send)
            return
        num_read = 0

        async def counted() -> Message:
            nonlocal num_read
            message = await receive()
            num_read += len(message.get("body", b""))
            if num_read > self._max_bytes:
                # FastAPI reads the body and passes on only its own type of error
                raise HTTPException(413, self._message)
            return message

        await self._app(scope, counted, send)

    async def _refuse(self, send: Send) -> None:
        body = json.dumps(error_body(self._message, kind="invalid_request_error")).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})
