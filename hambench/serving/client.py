"""A measuring client for OpenAI-compatible servers, which retries before the first byte and never after it.

A wrong, incomplete or missing response becomes an :class:`EndpointError` of one line. The key is sent and removed
from every message.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx2

from hambench.errors import UnknownNameError, listed
from hambench.serving.address import check_timeout, check_url, is_loopback
from hambench.serving.events import Chunk, EndpointError, error_message, error_param, parse_event

RETRIED = (408, 429, 502, 503, 504)
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
DONE = "[DONE]"


class EndpointClient:
    """A client of one server.

    Args:
        url: The server's address, with or without ``/v1``.
        key: Key to send as a bearer token.
        timeout_s: Time limit of a connection, and of the wait for each event, in seconds.
        retries: Number of retries on a refused connection or a busy server, with growing waits.
        sleep: Waits for a number of seconds.
        transport: Replaces the network in tests.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 3,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        base = check_url(url)
        check_timeout(timeout_s)
        self.root = base.removesuffix("/v1")
        self.timeout_s, self._retries, self._sleep, self._key = timeout_s, retries, sleep, key
        headers = {"authorization": f"Bearer {key}"} if key else {}
        host = urlsplit(self.root).hostname or ""
        # a proxy of the environment would look for it on its own loopback address
        name = f"[{host}]" if ":" in host else host
        mounts = {f"all://{name}": None} if is_loopback(host) else {}
        self._http = httpx2.Client(headers=headers, timeout=timeout_s, transport=transport, mounts=mounts)
        self.num_retried = 0

    def models(self) -> list[str]:
        """Returns the names of the server's models.

        Raises:
            EndpointError: If it does not answer, or is not an OpenAI-compatible server.
        """
        response = self._send("GET", "/v1/models")
        try:
            response.read()
            return [str(entry["id"]) for entry in response.json()["data"]]
        except (ValueError, LookupError, TypeError, RecursionError, httpx2.RequestError) as error:
            message = (
                f"{self.root} is not an OpenAI-compatible server: /v1/models does not return a list of models"
            )
            raise EndpointError(message) from error
        finally:
            response.close()

    def model_facts(self) -> Mapping[str, Any]:
        """Returns what llama.cpp says of its model in ``/v1/models``, such as ``n_vocab``; empty for other servers."""
        response = self._send("GET", "/v1/models")
        try:
            response.read()
            facts = response.json()["data"][0]["meta"]
        except (ValueError, LookupError, TypeError, RecursionError, httpx2.RequestError):
            return {}
        finally:
            response.close()
        return facts if isinstance(facts, dict) else {}

    def choose_model(self, asked: str | None, preferred: str | None = None) -> str:
        """Chooses the model to ask: the requested one, else one with our model's name, else the only one.

        Raises:
            UnknownNameError: If the server does not have it.
            EndpointError: If the server has no model, or several of which none was named.
        """
        names = self.models()
        if asked is not None:
            if asked not in names:
                raise UnknownNameError(f"model on {self.root}", asked, names)
            return asked
        if preferred in names:
            return preferred
        if len(names) == 1:
            return names[0]
        if not names:
            raise EndpointError(f"{self.root} serves no model: load one there")
        if preferred is None:
            raise EndpointError(
                f"{self.root} serves {len(names)} models: name one of {listed(names, 8)} as served_model"
            )
        raise UnknownNameError(f"model on {self.root}", preferred, names)

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[Chunk]:
        """Yields the events of one answer; sends the request when the first event is requested.

        Raises:
            EndpointError: If the server refuses, sends an invalid event, or breaks off.
        """
        response = self._send("POST", path, {**body, "stream": True})
        num_events, finished = 0, False
        try:
            for event in httpx2.EventSource(response):
                arrived = time.perf_counter()
                if event.data == DONE:
                    return
                chunk = dataclasses.replace(parse_event(event.data), arrived=arrived)
                num_events, finished = num_events + 1, finished or chunk.finish is not None
                yield chunk
        except httpx2.ReadTimeout as error:
            raise EndpointError(
                f"{self.root} sent nothing for {self.timeout_s:g} s after {num_events} events"
            ) from error
        except httpx2.SSEError as error:
            raise EndpointError(self._clean(f"{self.root} does not stream: {error}")) from error
        except httpx2.RequestError as error:
            raise EndpointError(
                f"{self.root} broke off after {num_events} events ({_name(error)})"
            ) from error
        finally:
            response.close()
        if not finished:
            raise EndpointError(
                f"{self.root} ended its answer after {num_events} events without finishing it"
            )

    def metrics_text(self) -> str | None:
        """Returns the text of ``/metrics``; ``None`` if the server has none."""
        try:
            response = self._http.get(f"{self.root}/metrics")
        except httpx2.RequestError:
            return None
        return response.text if response.status_code == 200 else None

    def close(self) -> None:
        """Closes all connections."""
        self._http.close()

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx2.Response:
        """Returns a response with status 200 and an unread body."""
        url = f"{self.root}{path}"
        for attempt in range(self._retries + 1):
            request = self._http.build_request(method, url, json=body)
            try:
                response = self._http.send(request, stream=True)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                if attempt == self._retries:
                    raise EndpointError(
                        self._clean(f"{self.root} does not answer: {_name(error)}")
                    ) from error
                self._wait(attempt, None)
                continue
            except httpx2.ReadTimeout as error:
                raise EndpointError(f"{url} did not answer within {self.timeout_s:g} s") from error
            except httpx2.RequestError as error:
                raise EndpointError(self._clean(f"{url} broke off: {_name(error)}")) from error
            if response.status_code == 200:
                return response
            if response.status_code not in RETRIED or attempt == self._retries:
                raise self._refusal(response, path)
            response.close()
            self._wait(attempt, response.headers.get("retry-after"))
        raise AssertionError("the last attempt returns or raises")

    def _wait(self, attempt: int, asked: str | None) -> None:
        self.num_retried += 1
        seconds = float(asked) if asked and asked.isdigit() else FIRST_BACKOFF_S * 2**attempt
        self._sleep(min(seconds, LONGEST_BACKOFF_S))

    def _refusal(self, response: httpx2.Response, path: str) -> EndpointError:
        status, message, param = response.status_code, None, None
        with contextlib.suppress(ValueError, RecursionError, httpx2.RequestError):
            response.read()
            body = response.json()
            message, param = error_message(body), error_param(body)
        response.close()
        if status in (401, 403):
            return EndpointError(
                f"{self.root} refuses the key ({status}): set it in the environment variable that key_env names",
                status=status,
            )
        said = (
            f"{self.root} is not an OpenAI-compatible server: {path} answered {status}"
            if message is None
            else self._clean(f"{self.root} answered {status}: {message}")
        )
        return EndpointError(said, status=status, param=param)

    def _clean(self, message: str) -> str:
        line = " ".join(message.split())[:400]
        return line.replace(self._key, "***") if self._key else line


def _name(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


__all__ = ["Chunk", "EndpointClient", "EndpointError", "parse_event"]
