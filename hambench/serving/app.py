"""The OpenAI-compatible server: routes, checks and errors around one :class:`~hambench.serving.worker.Worker`."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from hambench._version import __version__
from hambench.decoding import DecodingMethod
from hambench.engine.chat import ChatTemplateError, encode_chat
from hambench.engine.text import encode_text
from hambench.models.target import TargetModel
from hambench.records import GenerationTrace, StepRecord
from hambench.serving.address import LOOPBACK
from hambench.serving.answer_text import AnswerText
from hambench.serving.batch_worker import BatchWorker
from hambench.serving.body_limit import BodyLimit
from hambench.serving.exposition import Exposition
from hambench.serving.requests import ChatRequest, CompletionRequest, GenerationRequest, explain
from hambench.serving.wire import ErrorReply, RefusedError, Reply, error_body, sse, step_extension, usage
from hambench.serving.worker import (
    Event,
    Failed,
    Finished,
    Job,
    ModelThread,
    NotServingError,
    Piece,
    QueueFullError,
    Worker,
)

RETRY_AFTER_S = 1
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": said}
    for status, said in {
        400: "The request is invalid or not supported.",
        401: "The API key is missing or wrong.",
        404: "There is no such model.",
        413: "The body is too large.",
        500: "The server failed; its log has the details under the error's number.",
        503: "Too many requests are waiting, or the server is closing or has failed.",
    }.items()
}


def create_app(
    target: TargetModel,
    method: DecodingMethod,
    *,
    batch: int = 1,
    max_waiting: int = 8,
    max_body_bytes: int = 4 * 2**20,
    allowed_hosts: Sequence[str] = LOOPBACK,
    api_key: str | None = None,
) -> FastAPI:
    """Builds the server as an ASGI application.

    Args:
        target: The model; it needs a tokenizer.
        method: The decoding method, built on the target.
        batch: Maximum number of prompts that are answered together.
        max_waiting: Maximum number of waiting requests; further ones get a 503.
        max_body_bytes: Maximum size of a body; larger ones get a 413.
        allowed_hosts: Accepted ``Host`` headers, so that a web page can't reach a loopback server by another name;
            ``*`` accepts all.
        api_key: Key to require as a bearer token, if given.
    """
    server = _Server(target, method, batch, max_waiting)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        server.worker.close()

    app = FastAPI(
        title="hambench serve", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts))

    async def authorize(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if api_key is not None and not hmac.compare_digest(given, api_key.encode()):
            raise RefusedError(401, "a valid API key is required", "invalid_api_key")

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        if not error.counted:
            server.exposition.count_request("refused")
        kinds = {401: "authentication_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(error.status, "invalid_request_error")
        headers = {"Retry-After": str(RETRY_AFTER_S)} if error.code == "queue_full" else None
        return JSONResponse(error_body(error.message, kind=kind, code=error.code), error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        server.exposition.count_request("refused")
        where, said = explain(error.errors())
        return JSONResponse(error_body(f"{where}: {said}", kind="invalid_request_error", param=where), 400)

    @app.exception_handler(HTTPException)
    async def unknown_route(_: Request, error: HTTPException) -> Response:
        return JSONResponse(error_body(str(error.detail), kind="invalid_request_error"), error.status_code)

    @app.exception_handler(Exception)
    async def broken(_: Request, _error: Exception) -> Response:
        return JSONResponse(error_body("internal error", kind="server_error"), 500)

    @app.get("/health")
    async def health() -> Response:
        state = server.worker.state
        told = {
            "status": state,
            "model": server.name,
            "method": method.name,
            "busy": server.worker.busy,
            "waiting": server.worker.num_waiting,
        }
        return JSONResponse(told, 200 if state == "ok" else 503)

    @app.get("/metrics", dependencies=[Depends(authorize)], response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(server.exposition.render(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", dependencies=[Depends(authorize)])
    async def models() -> dict[str, Any]:
        entry = {
            "id": server.name,
            "object": "model",
            "created": 0,
            "owned_by": "hambench",
            "max_model_len": target.context_length,
            "hambench": {"method": method.name, "sha256": target.identity.sha256},
        }
        return {"object": "list", "data": [entry]}

    asked: dict[str, Any] = {
        "response_model": None,
        "dependencies": [Depends(authorize)],
        "responses": {200: {"content": {"text/event-stream": {}}}, **_ERRORS},
    }

    @app.post("/v1/completions", **asked)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        prompts = server.encode(body)
        return await server.answer(request, body, prompts, body.max_tokens, chat=False)

    @app.post("/v1/chat/completions", **asked)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        prompts = [server.encode_chat(body)]
        return await server.answer(request, body, prompts, body.limit, chat=True)

    describe = app.openapi

    def described() -> dict[str, Any]:
        """Returns the API description without FastAPI's 422, because invalid requests get a 400, as at OpenAI."""
        schema = describe()
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return schema

    app.openapi = described  # type: ignore[method-assign]
    return app


class _Server:
    """State that the routes share."""

    def __init__(self, target: TargetModel, method: DecodingMethod, batch: int, max_waiting: int) -> None:
        if target.tokenizer is None:
            raise ValueError(f"target must have a tokenizer to be served, {target.name} has none")
        self.target, self.method, self.tokenizer = target, method, target.tokenizer
        # do not publish the path of a model loaded from a folder
        self.name = Path(target.name).name if Path(target.name).is_dir() else target.name
        self.worker: ModelThread
        if batch == 1:
            self.worker = Worker(method, self.tokenizer.decode, max_waiting=max_waiting)
        else:
            self.worker = BatchWorker(method, self.tokenizer.decode, size=batch, max_waiting=max_waiting)
        self.exposition = Exposition(lambda: self.worker.num_waiting)

    def encode(self, body: CompletionRequest) -> list[list[int]]:
        """Returns the ids of each prompt of a completion request."""
        if isinstance(body.prompt, str):
            texts_or_ids: list[Any] = [body.prompt]
        else:
            texts_or_ids = [body.prompt] if isinstance(body.prompt[0], int) else list(body.prompt)
        special = body.add_special_tokens is not False
        return [
            encode_text(entry, self.tokenizer, add_special_tokens=special)
            if isinstance(entry, str)
            else entry
            for entry in texts_or_ids
        ]

    def encode_chat(self, body: ChatRequest) -> list[int]:
        """Returns the ids of a conversation, rendered by the model's chat template."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise RefusedError(400, f"{self.name} has no chat template: use /v1/completions")
        turns = [{"role": message.role, "content": message.text} for message in body.messages]
        arguments = {**self.target.chat_arguments, **(body.chat_template_kwargs or {})}
        try:
            return encode_chat(
                self.tokenizer, turns, arguments, add_generation_prompt=not body.continue_final_message
            )
        except ChatTemplateError as error:
            raise RefusedError(400, str(error)) from error

    async def answer(
        self,
        request: Request,
        body: GenerationRequest,
        prompts: list[list[int]],
        max_tokens: int | None,
        *,
        chat: bool,
    ) -> Response:
        """Queues a request and answers it, streamed or whole."""
        limit = self._check(body, prompts, max_tokens)
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit(event: Event) -> None:
            # the event loop has closed, so nobody is listening
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = Job(
            prompts=prompts,
            params=[body.params(limit) for _ in prompts],
            eos_ids=() if body.ignore_eos else self.target.eos_ids,
            stop=body.stops,
            emit=emit,
        )
        try:
            self.worker.submit(job)
        except QueueFullError as error:
            raise RefusedError(503, str(error), "queue_full") from error
        except NotServingError as error:
            raise RefusedError(503, str(error), "not_serving") from error
        answer = _Answer(self, body, Reply(chat, self.name), prompts)
        steps = self._events(request, job, events)
        try:
            first = await anext(steps)
        except StopAsyncIteration:
            return Response(status_code=499)
        if isinstance(first, Failed):
            raise RefusedError(400 if first.by_request else 500, first.message, counted=True)
        if body.stream:
            return StreamingResponse(answer.stream(first, steps), media_type="text/event-stream")
        return await answer.whole(first, steps)

    async def _events(
        self, request: Request, job: Job, events: asyncio.Queue[Event | None]
    ) -> AsyncIterator[Event]:
        """Yields and counts the job's events; if the client disconnects, stops early and cancels the job."""
        num_left, outcome, seen = len(job.prompts), "cancelled", set[int]()
        leaving = asyncio.create_task(_departure(request))
        leaving.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while num_left and (event := await events.get()) is not None:
                if isinstance(event, Piece):
                    first = event.index not in seen
                    seen.add(event.index)
                    num_prompt = len(job.prompts[event.index]) if first else None
                    self.exposition.count_step(event.step, num_prompt_tokens=num_prompt)
                elif isinstance(event, Finished):
                    num_left -= 1
                    outcome = "ok" if not num_left else outcome
                else:
                    num_left, outcome = 0, "failed"
                yield event
        finally:
            leaving.cancel()
            self.worker.cancel(job)
            self.exposition.count_request(outcome)

    def _check(self, body: GenerationRequest, prompts: list[list[int]], max_tokens: int | None) -> int:
        """Checks a request; returns the maximum number of tokens per answer.

        Raises:
            RefusedError: If this model can't answer the request.
        """
        name, size, room = self.name, self.target.llama.shape.vocab_size, self.target.context_length
        if body.model != name:
            raise RefusedError(
                404, f"this server has no model {body.model!r}; it has {name!r}", "model_not_found"
            )
        longest = max(len(prompt) for prompt in prompts)
        if min(len(prompt) for prompt in prompts) == 0:
            raise RefusedError(400, "the prompt is empty: give at least one token")
        wrong = next((token for prompt in prompts for token in prompt if not 0 <= token < size), None)
        if wrong is not None:
            raise RefusedError(400, f"prompt ids must be in 0..{size - 1}, got {wrong}")
        limit = max_tokens if max_tokens is not None else max(1, room - longest)
        if longest + limit > room:
            raise RefusedError(
                400,
                f"a prompt of {longest} tokens and max_tokens = {limit} exceed the context of {room} tokens",
                "context_length_exceeded",
            )
        return limit


class _Answer:
    """Builds one reply from a job's events."""

    def __init__(
        self, server: _Server, body: GenerationRequest, reply: Reply, prompts: list[list[int]]
    ) -> None:
        self._server, self._body, self._reply, self._prompts = server, body, reply, prompts
        ends = () if body.ignore_eos else server.target.eos_ids
        self._texts = [AnswerText(server.tokenizer, body.stops, end_ids=ends) for _ in prompts]
        self._steps: list[list[StepRecord]] = [[] for _ in prompts]
        self._traces: list[GenerationTrace] = []

    async def whole(self, first: Event, events: AsyncIterator[Event]) -> Response:
        texts = [""] * len(self._prompts)
        choices: list[dict[str, Any]] = []
        async for event in _chain(first, events):
            if isinstance(event, Failed):
                raise RefusedError(400 if event.by_request else 500, event.message, counted=True)
            texts[event.index] += self._text_of(event)
            if isinstance(event, Finished):
                choice = self._reply.whole(event.index, texts[event.index], event.finish)
                if self._body.return_token_ids:
                    choice["prompt_token_ids"] = self._prompts[event.index]
                    choice["token_ids"] = list(self._traces[-1].token_ids)
                choices.append(choice)
        if len(choices) < len(self._prompts):
            return Response(status_code=499)
        return JSONResponse(self._reply.envelope(choices, chunk=False) | {"usage": self._usage()})

    async def stream(self, first: Event, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
        begun = set[int]()
        async for event in _chain(first, events):
            if isinstance(event, Failed):
                yield sse(error_body(event.message, kind="server_error"))
                return
            text = self._text_of(event)
            finish = event.finish if isinstance(event, Finished) else None
            is_first = event.index not in begun
            if not (text or finish or is_first or self._body.return_token_ids):
                continue
            begun.add(event.index)
            choice = self._reply.piece(event.index, text, finish, first=is_first)
            if self._body.return_token_ids:
                choice |= self._ids_of(event, is_first=is_first)
            yield sse(self._reply.envelope([choice], chunk=True))
        if len(self._traces) < len(self._prompts):
            return
        if self._body.include_usage:
            yield sse(self._reply.envelope([], chunk=True) | {"usage": self._usage()})
        yield b"data: [DONE]\n\n"

    def _text_of(self, event: Piece | Finished) -> str:
        if isinstance(event, Piece):
            self._steps[event.index].append(event.step)
            return self._texts[event.index].add(event.step.tokens)
        steps, prompt = tuple(self._steps[event.index]), self._prompts[event.index]
        self._traces.append(GenerationTrace(prompt_tokens=len(prompt), steps=steps, finish=event.finish))
        return self._texts[event.index].rest()

    def _ids_of(self, event: Piece | Finished, *, is_first: bool) -> dict[str, Any]:
        ids: dict[str, Any] = {"prompt_token_ids": self._prompts[event.index]} if is_first else {}
        if isinstance(event, Piece):
            ids |= {"token_ids": list(event.step.tokens), "hambench": step_extension(event.step)}
        return ids

    def _usage(self) -> dict[str, Any]:
        return usage(self._traces, self._server.method.name)


async def _chain(first: Event, rest: AsyncIterator[Event]) -> AsyncIterator[Event]:
    yield first
    async for event in rest:
        yield event


async def _departure(request: Request) -> None:
    """Waits until the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
