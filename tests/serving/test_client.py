"""The measuring client against servers that misbehave."""

import json

import httpx2
import pytest

from hambench.errors import HambenchError
from hambench.methods.peers.endpoint import EndpointConfig
from hambench.serving.address import check_url
from hambench.serving.client import EndpointClient, EndpointError, parse_event
from hambench.serving.counters import read_counters
from hambench.serving.dialect import Dialect

KEY = "sk-very-secret"
MODELS = {"object": "list", "data": [{"id": "one"}, {"id": "two"}]}


def event(text, finish=None):
    return f"data: {json.dumps({'choices': [{'index': 0, 'text': text, 'finish_reason': finish}]})}\n\n"


def client(handler, **options):
    waits = []
    made = EndpointClient(
        "http://server", key=KEY, sleep=waits.append, transport=httpx2.MockTransport(handler), **options
    )
    return made, waits


def streaming(*parts):
    def handler(request):
        def body():
            for part in parts:
                if isinstance(part, Exception):
                    raise part
                yield part.encode()

        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body())

    return handler


def read(made):
    return [chunk.text for chunk in made.stream("/v1/completions", {"model": "one"})]


def test_a_stream_gives_its_pieces_up_to_done():
    made, _ = client(streaming(event("a"), event("b", "stop"), "data: [DONE]\n\n", event("never")))
    assert read(made) == ["a", "b"]


def test_line_separators_inside_a_piece_do_not_break_it():
    made, _ = client(
        streaming(
            "data: " + json.dumps({"choices": [{"text": "a\u2028b\x85c"}]}, ensure_ascii=False) + "\n\n",
            "data: [DONE]\n\n",
        )
    )
    assert read(made) == ["a\u2028b\x85c"]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((event("a"), httpx2.RemoteProtocolError("peer closed")), "broke off after 1 events"),
        ((event("a"), httpx2.ReadTimeout("slow")), "sent nothing for 60 s after 1 events"),
        ((event("a"),), "ended its answer after 1 events without finishing"),
        ((event("a"), "data: {nonsense\n\n"), "sent an invalid event: '{nonsense'"),
        (("data: [1, 2]\n\n",), "sent an invalid event"),
        (('data: {"choices": [{"token_ids": ["x"]}]}\n\n',), "sent an invalid event"),
        (('data: {"error": {"message": "out of memory"}}\n\n',), "the server failed: out of memory"),
    ],
)
def test_a_stream_that_goes_wrong_is_told_in_one_line(parts, said):
    made, _ = client(streaming(*parts))
    with pytest.raises(EndpointError) as raised:
        read(made)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_busy_server_is_asked_again_after_a_growing_wait_or_the_one_it_names():
    answers = iter([(429, {}), (503, {"retry-after": "7"}), (502, {})])

    def handler(request):
        status, headers = next(answers, (200, {}))
        return httpx2.Response(status, headers=headers, json=MODELS)

    made, waits = client(handler)
    assert made.models() == ["one", "two"]
    assert waits == [0.5, 7.0, 2.0]
    assert made.num_retried == 3


def test_retries_end():
    def handler(request):
        raise httpx2.ConnectError("refused")

    made, waits = client(handler, retries=2)
    with pytest.raises(EndpointError, match="http://server does not answer: refused"):
        made.models()
    assert len(waits) == 2


def test_a_refused_request_is_not_repeated():
    made, waits = client(lambda request: httpx2.Response(400, json={"error": {"message": "too long"}}))
    with pytest.raises(EndpointError, match="answered 400: too long"):
        read(made)
    assert waits == []


def test_the_key_is_sent_and_never_told():
    seen = []

    def handler(request):
        seen.append(request.headers["authorization"])
        return httpx2.Response(400, json={"error": f"bad header: Bearer {KEY}"})

    made, _ = client(handler)
    with pytest.raises(EndpointError) as raised:
        read(made)
    assert seen == [f"Bearer {KEY}"]
    assert KEY not in str(raised.value)
    assert "***" in str(raised.value)


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (
            httpx2.Response(404, html="<h1>Not found</h1>"),
            "not an OpenAI-compatible server: /v1/models answered 404",
        ),
        (
            httpx2.Response(200, html="<h1>Welcome</h1>"),
            "not an OpenAI-compatible server: /v1/models does not return a list",
        ),
        (httpx2.Response(200, json={"data": [1]}), "does not return a list of models"),
        (httpx2.Response(401, json={}), "refuses the key"),
    ],
)
def test_an_address_that_is_no_such_server_is_told(response, said):
    made, _ = client(lambda request: response)
    with pytest.raises(EndpointError, match=said):
        made.models()


def test_a_model_the_server_does_not_have_is_named_with_those_it_has():
    made, _ = client(lambda request: httpx2.Response(200, json=MODELS))
    assert made.choose_model(None, "two") == "two"
    with pytest.raises(HambenchError, match="'onn'; did you mean one"):
        made.choose_model("onn", "two")
    with pytest.raises(HambenchError, match="'ours'; known: one, two"):
        made.choose_model(None, "ours")
    with pytest.raises(HambenchError, match=r"serves 2 models: name one of one, two as served_model$"):
        made.choose_model(None)
    with pytest.raises(HambenchError, match="''; known: one, two"):
        made.choose_model("")


def test_a_server_without_models_is_told():
    made, _ = client(lambda request: httpx2.Response(200, json={"data": []}))
    with pytest.raises(EndpointError, match=r"serves no model: load one there"):
        made.choose_model(None, "ours")


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e12])
def test_a_time_limit_that_no_connection_can_have_is_refused(seconds):
    with pytest.raises(ValueError, match=r"timeout_s must be > 0 and at most 86400 seconds, got"):
        EndpointClient("http://127.0.0.1:9", timeout_s=seconds)
    with pytest.raises(ValueError, match=r"timeout_s must be > 0 and at most 86400 seconds, got"):
        EndpointConfig(timeout_s=seconds)


@pytest.mark.parametrize(
    "url", ["server:80", "ftp://x", "http://me:pw@host", "http://host/v1?key=1", "http://"]
)
def test_an_address_that_can_not_be_stored_is_refused(url):
    with pytest.raises(ValueError, match="url must"):
        check_url(url)


def test_addresses_may_end_in_v1_or_not():
    assert {check_url(url) for url in ("http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/")} == {
        "http://h:1/v1"
    }


def test_chat_and_completion_events_read_alike():
    assert parse_event('{"choices": [{"delta": {"content": "x"}}]}').text == "x"
    assert parse_event('{"choices": [{"delta": {"role": "assistant", "content": null}}]}').text == ""
    assert parse_event('{"choices": [], "usage": {"completion_tokens": 3}}').usage == {
        "prompt_tokens": None,
        "completion_tokens": 3,
    }


def test_vllms_counters_are_summed_over_engines_and_subtracted():
    def text(scale):
        return (
            "".join(
                f"# TYPE vllm:spec_decode_num_{name} counter\n"
                f'vllm:spec_decode_num_{name}_total{{engine="0"}} {scale * value}\n'
                f'vllm:spec_decode_num_{name}_total{{engine="1"}} {value}\n'
                for name, value in (("drafts", 10), ("draft_tokens", 40), ("accepted_tokens", 20))
            )
            + 'vllm:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 9\n'
        )

    before, after = read_counters(text(1)), read_counters(text(3))
    assert before.drafted == 80
    assert after.since(before).acceptance_rate == 0.5
    assert after.since(before).mean_acceptance_length == 3
    assert before.since(before).acceptance_rate is None


@pytest.mark.parametrize("text", [None, "", "<html>", "other_metric 1\n"])
def test_a_server_without_counters_has_no_acceptance(text):
    assert read_counters(text) is None


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thinking_in_a_field_of_its_own_is_read(name):
    chunk = parse_event(json.dumps({"choices": [{"delta": {name: "Hmm", "content": None}}]}))
    assert (chunk.reasoning, chunk.text) == ("Hmm", "")


@pytest.mark.parametrize(
    ("delta", "text"),
    [
        ({"refusal": "No."}, "No."),
        ({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]}, "f{}"),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "12"}}]}, "12"),
        ({"function_call": {"name": "f", "arguments": ""}}, "f"),
        ({"content": [{"type": "text", "text": "ab"}]}, "ab"),
        ({"content": "a\ud83d"}, "a\ufffd"),
    ],
)
def test_every_piece_that_is_made_of_tokens_counts(delta, text):
    assert parse_event(json.dumps({"choices": [{"delta": delta}]})).text == text


@pytest.mark.parametrize(
    "event",
    [
        {"choices": {"0": {}}},
        {"choices": ["x"]},
        {"choices": [{"delta": "x"}]},
        {"choices": [{"text": 5}]},
        {"choices": [{"token_ids": [-1]}]},
        {"choices": [{"token_ids": [True]}]},
        {"choices": [{"finish_reason": 3}]},
        {"choices": [{"delta": {"tool_calls": [7]}}]},
        {"usage": 7},
        {"usage": {"completion_tokens": "many"}},
        {"usage": {"completion_tokens": -1}},
        {"choices": [{"hambench": {"drafted": 1, "accepted": 2}}]},
        {"choices": [{"hambench": {"kv_slots": 1.5}}]},
    ],
)
def test_an_event_of_another_shape_is_told_in_one_line(event):
    with pytest.raises(EndpointError, match="sent an invalid event"):
        parse_event(json.dumps(event))


def test_an_event_nested_beyond_reason_is_told_in_one_line():
    with pytest.raises(EndpointError, match="sent an invalid event"):
        parse_event("[" * 100_000)


def refusing(refuses):
    """A server that answers 400 while ``refuses`` says so of a body, and keeps what it was asked."""
    asked = []

    def handler(request):
        body = json.loads(request.content)
        asked.append(body)
        error = refuses(body)
        return (
            httpx2.Response(400, json={"error": error})
            if error
            else streaming(event("a", "stop"), "data: [DONE]\n\n")(request)
        )

    return client(handler)[0], asked


def blames(field, message=""):
    return lambda body: (
        {"message": message or f"Unsupported: {field}", "param": field} if field in body else None
    )


BODY = {
    "model": "one",
    "max_tokens": 7,
    "temperature": 0.5,
    "seed": 3,
    "stream_options": {"include_usage": True},
    "return_token_ids": True,
}


def ask(dialect, made, body=BODY):
    return [chunk.text for chunk in dialect.ask(made, "/v1/chat/completions", body)]


def test_a_server_that_wants_the_newer_limit_gets_it_from_then_on():
    message = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
    made, asked = refusing(blames("max_tokens", message))
    dialect = Dialect()
    assert ask(dialect, made) == ask(dialect, made) == ["a"]
    assert [body.get("max_completion_tokens") for body in asked] == [None, 7, 7]


@pytest.mark.parametrize("field", ["seed", "temperature", "stream_options", "return_token_ids"])
def test_a_field_that_a_server_blames_is_left_out_and_the_others_stay(field):
    made, asked = refusing(blames(field))
    told = []
    assert ask(Dialect(told.append), made) == ["a"]
    assert asked[-1] == {name: value for name, value in BODY.items() if name != field} | {"stream": True}
    # only what could alter the answers is worth a word
    assert bool(told) == (field in ("seed", "temperature"))


def test_several_refusals_are_followed_one_by_one():
    made, asked = refusing(
        lambda body: blames("return_token_ids")(body) or blames("max_tokens")(body) or blames("seed")(body)
    )
    assert ask(Dialect(), made) == ["a"]
    assert len(asked) == 4


def test_a_server_that_refuses_all_we_can_leave_out_field_by_field_is_followed_to_the_end():
    fields = ("return_token_ids", "ignore_eos", "add_special_tokens", "cache_salt", "cache_prompt")
    fields += ("stream_options", "seed", "top_p", "temperature", "max_tokens")
    made, asked = refusing(
        lambda body: next((error for name in fields if (error := blames(name)(body))), None)
    )
    assert ask(Dialect(), made, {"model": "one", **dict.fromkeys(fields, 1)}) == ["a"]
    assert asked[-1] == {"model": "one", "max_completion_tokens": 1, "stream": True}
    assert len(asked) == len(fields) + 1


@pytest.mark.parametrize(
    ("refused", "told_of"),
    [
        (("cache_salt",), None),
        (("cache_prompt",), None),
        (
            ("cache_salt", "cache_prompt"),
            "refuses cache_prompt and cache_salt: it may read prompts out of its cache",
        ),
        (("add_special_tokens",), "refuses add_special_tokens=False: it may add special tokens"),
    ],
)
def test_one_guard_against_cached_prompts_is_enough_and_what_changes_the_prompt_is_said(refused, told_of):
    made, asked = refusing(
        lambda body: next((error for name in refused if (error := blames(name)(body))), None)
    )
    body = {"max_tokens": 7, "cache_salt": "a1", "cache_prompt": False, "add_special_tokens": False}
    told = []
    dialect = Dialect(told.append)
    assert ask(dialect, made, body) == ask(dialect, made, body) == ["a"]
    assert not set(refused) & set(asked[-1])
    assert len(told) == (told_of is not None)
    assert told_of is None or told_of in told[0]


def test_a_refusal_that_no_change_mends_is_raised_and_changes_nothing():
    made, asked = refusing(lambda body: {"message": "the prompt is too long"})
    dialect = Dialect()
    for _ in range(2):
        with pytest.raises(EndpointError, match="the prompt is too long"):
            ask(dialect, made)
    assert asked[0] == asked[len(asked) // 2], "the second time everything is tried again"


def test_a_failure_is_not_mistaken_for_a_refusal():
    made, _ = client(lambda request: httpx2.Response(500, json={"error": {"message": "max_tokens"}}))
    with pytest.raises(EndpointError, match="answered 500"):
        ask(Dialect(), made)
