"""Running an ASGI application on a free loopback port."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


@contextlib.contextmanager
def running(app):
    """Serves an ASGI application on a free loopback port; gives its address."""
    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)


def until(holds, *, timeout=20, say=lambda: ""):
    """Waits until something holds; fails with what ``say`` returns if it never does."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"it never came to hold: {say()}"
        time.sleep(0.005)
