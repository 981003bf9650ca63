"""What comes from outside: requests to the server, by its own description and at random, and events of an endpoint.

Bounded: the fast part runs a fixed number of examples, the slow part the same for longer. Finds become tests of their
own next to the code they are about, or an ``@example`` here.
"""

from __future__ import annotations

import json
from collections import Counter

import httpx2
import pytest
import schemathesis
from fakes import save_tiny_model
from fastapi.testclient import TestClient
from fuzz_effort import BOUNDED, examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as openapi_checks
from serving_server import running

from hambench.errors import HambenchError
from hambench.methods.vanilla import VanillaConfig
from hambench.models.target import load
from hambench.serving.app import create_app
from hambench.serving.client import EndpointClient, parse_event

CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.negative_data_rejection,
]
FAST, SLOW = settings(BOUNDED, max_examples=60), settings(BOUNDED, max_examples=examples(1500))


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A tiny model with a chat template that uses one variable and refuses system turns."""
    target = load(str(save_tiny_model(tmp_path_factory.mktemp("fuzzed"))), dtype="float32", device="cpu")
    target.name, target.context_length = "tiny", 64
    target.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}\n{% endfor %}{% if enable_thinking %}!{% endif %}"
    )
    return target


def server_of(target):
    return create_app(target, VanillaConfig().build(target), allowed_hosts=["*"], max_waiting=64)


@pytest.fixture(scope="module")
def client(target):
    with TestClient(server_of(target), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def url(target):
    with running(server_of(target)) as url:
        yield url


texts = st.text(max_size=12) | st.text(
    st.characters(categories=["Cs", "Cc", "Cf", "Zl", "Zp", "Lu"]), max_size=4
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted(
    {
        "chat_template_kwargs",
        "echo",
        "ignore_eos",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
    }
    | {"messages", "model", "n", "prompt", "return_token_ids", "seed", "stop", "stream", "stream_options"}
    | {"temperature", "tools", "top_p", "user", "add_special_tokens", "response_format", "metadata"}
)
FINE = {
    "max_tokens": st.integers(1, 12),
    "temperature": st.sampled_from([0, 0.5, 1.0, 2.0]),
    "top_p": st.floats(0.05, 1.0),
    "seed": st.integers(0, 2**31),
    "stop": texts.filter(bool) | st.lists(texts.filter(bool), min_size=1, max_size=3),
    "stream": st.booleans(),
    "ignore_eos": st.booleans(),
    "return_token_ids": st.booleans(),
}
"""Fields of a request that the server honours."""
turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=12)}),
    min_size=1,
    max_size=3,
)
ASKED = {
    "completions": {
        "prompt": st.text(min_size=1, max_size=12) | st.lists(st.integers(0, 255), min_size=1, max_size=6)
    },
    "chat/completions": {"messages": turns},
}
ODD = {
    "model": texts,
    "prompt": texts | st.lists(st.integers(-2, 300), max_size=6) | st.lists(texts, max_size=3),
    "messages": st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "system", "tool"])},
            optional={
                "content": st.none() | texts | st.lists(st.fixed_dictionaries({"text": texts})),
                "x": scalars,
            },
        ),
        max_size=3,
    ),
    "max_tokens": st.integers(-1, 70),
    "temperature": st.floats(-1, 3) | st.sampled_from([1e-40, 1e300]),
    "top_p": st.floats(-0.1, 1.1),
    "seed": st.integers(-(2**65), 2**65),
    "stop": texts | st.lists(texts, max_size=3),
    "chat_template_kwargs": st.dictionaries(st.sampled_from(["enable_thinking", "tokenize", "x"]), scalars),
}
"""Fields near the edge of what is honoured, and beyond."""


@st.composite
def requests(draw):
    """A route and a body: whole, with up to two fields at the edge, with a field of another kind, or anything."""
    path = draw(st.sampled_from(sorted(ASKED)))
    if draw(st.integers(0, 4)) == 0:
        return path, draw(st.dictionaries(st.sampled_from(NAMES), values, max_size=5) | values)
    body = draw(st.fixed_dictionaries({"model": st.just("tiny"), **ASKED[path]}, optional=FINE))
    if draw(st.booleans()):
        body["stream"] = True
    for name in draw(st.lists(st.sampled_from(sorted(ODD)), max_size=2)):
        body[name] = draw(ODD[name])
    if draw(st.integers(0, 4)) == 0:
        body[draw(st.sampled_from(NAMES))] = draw(values)
    return path, body


def answers(client, path, body):
    """Whether a request is answered, or refused as it should be."""
    content = json.dumps(body).encode()
    reply = client.post(f"/v1/{path}", content=content, headers={"content-type": "application/json"})
    assert reply.status_code in (200, 400, 404), (body, reply.status_code, reply.text)
    if reply.status_code == 200 and body.get("stream"):
        events = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
        assert events[-1] == "[DONE]", (body, events)
        assert all(len(event.splitlines()) == 1 and json.loads(event)["choices"] for event in events[:-1])
    elif reply.status_code == 200:
        assert reply.json()["choices"][0]["finish_reason"] in ("stop", "length")
    else:
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
        assert "\n" not in reply.json()["error"]["message"]
    assert client.get("/health").json()["status"] == "ok"
    return reply.status_code, reply.status_code == 200 and bool(body.get("stream"))


def asks_many(client, bounds):
    """Asks what the fuzzer makes up; gives how often there was which status, streamed or not."""
    outcomes = Counter()

    @bounds
    @given(request=requests())
    def ask(request):
        outcomes[answers(client, *request)] += 1

    ask()
    return outcomes


def test_any_request_is_answered_or_refused(client):
    outcomes = asks_many(client, FAST)
    # a server that refused everything would pass the rest
    assert min(outcomes[200, False], outcomes[200, True], outcomes[400, False]) >= 2, outcomes


@pytest.mark.slow
def test_any_request_is_answered_or_refused_for_longer(client):
    outcomes = asks_many(client, SLOW)
    assert min(outcomes[200, False], outcomes[200, True]) > 0.05 * sum(outcomes.values()), outcomes


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics"]
)
def test_the_server_keeps_its_own_description(url, path):
    """Schemathesis reads /openapi.json and asks what it allows, and what it does not."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    get = not path.endswith("completions")
    (operation,) = (result.ok() for result in schema.get_all_operations() if result.ok().path == path)

    def of_our_model(case):
        if isinstance(case.body, dict):
            case.body |= {"model": "tiny", "max_tokens": 2}
        return case

    allowed = operation.as_strategy().map(of_our_model)

    @settings(BOUNDED, max_examples=150)
    @given(case=allowed if get else allowed | operation.as_strategy(GenerationMode.NEGATIVE))
    def ask(case):
        case.call_and_validate(checks=CHECKS)

    ask()


events = st.dictionaries(
    st.sampled_from(["choices", "usage", "error", "prompt_token_ids", "object"]),
    values
    | st.lists(
        st.dictionaries(
            st.sampled_from(["text", "delta", "message", "finish_reason", "token_ids", "hambench", "index"]),
            values
            | st.dictionaries(
                st.sampled_from(
                    ["content", "reasoning", "reasoning_content", "refusal", "tool_calls", "drafted"]
                ),
                values,
                max_size=3,
            ),
            max_size=4,
        ),
        max_size=2,
    ),
    max_size=4,
)


def told_or_done(use):
    """The result, or ``None`` after an error of one line."""
    try:
        return use()
    except HambenchError as error:
        message = str(error)
    assert message.count("\n") == 0
    return None


def reads(text):
    """Whether an event is read, or told in one line."""
    chunk = told_or_done(lambda: parse_event(text))
    if chunk is None:
        return
    # whatever was read can be tokenised, counted and stored
    (chunk.text + chunk.reasoning).encode()
    assert all(count is None or count >= 0 for count in (chunk.usage or {}).values())
    assert all(token >= 0 for token in chunk.token_ids or ())


@settings(BOUNDED, max_examples=300)
@given(event=events.map(json.dumps) | values.map(json.dumps) | texts)
@example(event='{"choices": [{"delta": {"content": "\\ud83d"}}]}')
@example(event='{"usage": {"completion_tokens": 1e999}}')
@example(event='{"error": ["out\\nof", {"memory": 1}]}')
def test_any_event_is_read_or_told(event):
    reads(event)


@pytest.mark.slow
@settings(BOUNDED, max_examples=examples(3000))
@given(event=events.map(json.dumps) | values.map(json.dumps) | texts)
def test_any_event_is_read_or_told_for_longer(event):
    reads(event)


@FAST
@given(
    status=st.sampled_from([200, 400, 401, 404, 422, 500]),
    kind=st.sampled_from(["text/event-stream", "application/json", ""]),
    parts=st.lists(
        st.binary(max_size=40) | events.map(lambda e: b"data: " + json.dumps(e).encode() + b"\n\n")
    ),
    encoding=st.sampled_from([None, None, "gzip", "br"]),
)
def test_any_reply_of_a_server_is_read_or_told(status, kind, parts, encoding):
    headers = {"content-type": kind} | ({"content-encoding": encoding} if encoding else {})

    def handler(_request):
        return httpx2.Response(status, headers=headers, content=iter(parts))

    made = EndpointClient(
        "http://server", retries=0, sleep=lambda _: None, transport=httpx2.MockTransport(handler)
    )
    for use in (made.models, lambda: list(made.stream("/v1/completions", {})), made.metrics_text):
        told_or_done(use)
