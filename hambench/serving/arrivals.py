"""Reading a stream in a thread of its own: what is done with one event does not delay the clock of the next."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Arrivals(Generic[T]):
    """The items of a source, read as they come and handed out in order.

    Args:
        source: Read in the thread, closed by it if it can be, and no longer read once this is closed.
    """

    def __init__(self, source: Iterator[T]) -> None:
        self._source = source
        self._items: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._read, name="hambench-arrivals", daemon=True)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """The next item; the first call starts reading.

        Raises:
            StopIteration: At the source's end.
            Exception: What the source raised.
        """
        if self._ended or self._closed.is_set():
            raise StopIteration
        if self._thread.ident is None:
            self._thread.start()
        item, error = self._items.get()
        if error is None and item is not None:
            return item
        self._ended = True
        raise StopIteration if error is None else error

    def close(self) -> None:
        """Stops reading: a source that is waited for is closed at its next item."""
        self._closed.set()
        if self._thread.ident is None and (close := getattr(self._source, "close", None)):
            close()

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._source:
                if self._closed.is_set():
                    break
                self._items.put((item, None))
        except Exception as raised:  # told where it is waited for
            error = raised
        finally:
            if close := getattr(self._source, "close", None):
                close()
            self._items.put((None, error))
