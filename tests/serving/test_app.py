"""The server, driven by the clients people use: openai, lm-eval and plain HTTP."""

import json
import threading

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient
from serving_server import running, until

from hambench.decoding import KVUsage, SamplingParams, Step
from hambench.engine.loop import generate
from hambench.engine.text import answer_text
from hambench.methods.speculative import SpeculativeConfig
from hambench.methods.vanilla import VanillaConfig
from hambench.serving.app import create_app

PROMPT = "The quick brown fox"


@pytest.fixture
def client(speculative_url):
    return openai.OpenAI(base_url=f"{speculative_url}/v1", api_key="none", max_retries=0)


def in_process(target, ids, *, limit=24, stop=()):
    method = SpeculativeConfig(num_draft_tokens=3).build(target)
    params = SamplingParams(max_new_tokens=limit)
    return generate(
        method, ids, params, eos_ids=target.eos_ids, stop=stop, decode_text=target.tokenizer.decode
    )


def ids_of(target, text):
    return target.tokenizer(text)["input_ids"]


def test_a_completion_is_the_methods_own_answer(client, served_target):
    reply = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=24)
    trace = in_process(served_target, ids_of(served_target, PROMPT))
    assert reply.choices[0].text == answer_text(trace, served_target.tokenizer, ())
    assert reply.usage.completion_tokens == len(trace.token_ids)
    assert reply.usage.prompt_tokens == len(ids_of(served_target, PROMPT))


def test_a_stream_joins_to_the_whole_answer_and_ends_with_usage(client):
    whole = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=24)
    pieces = list(
        client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=24, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == whole.choices[0].text
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1] == "length"
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_usage_tells_m_and_acceptance(client, served_target):
    reply = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=24)
    trace = in_process(served_target, ids_of(served_target, PROMPT))
    extension = reply.usage.model_extra["hambench"]
    drafted = sum(step.drafted for step in trace.steps[1:])
    assert extension["acceptance_rate"] == pytest.approx(sum(s.accepted for s in trace.steps) / drafted)
    assert extension["tokens_per_target_forward"] > 1
    assert extension["steps"] == len(trace.steps)


def test_chat_goes_through_the_models_template(client, served_target):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    reply = client.chat.completions.create(model="tiny", messages=messages, max_tokens=12)
    ids = ids_of(served_target, "[system]Be brief.\n[user]Hi\n[assistant]")
    trace = in_process(served_target, ids, limit=12)
    assert reply.choices[0].message.content == answer_text(trace, served_target.tokenizer, ())
    stream = client.chat.completions.create(model="tiny", messages=messages, max_tokens=12, stream=True)
    text = "".join(piece.choices[0].delta.content or "" for piece in stream)
    assert text == reply.choices[0].message.content


def test_a_stop_string_is_never_shown_not_even_its_beginning(client):
    free = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=24).choices[0].text
    stop = free[6:9]
    expected = free[: free.index(stop)]
    whole = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=24, stop=[stop, "never there"])
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (expected, "stop")
    stream = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=24, stop=stop, stream=True)
    assert "".join(piece.choices[0].text for piece in stream) == expected


def test_several_prompts_and_ids_are_answered_in_order(client, served_target):
    texts = ["one", "twenty two"]
    both = client.completions.create(model="tiny", prompt=texts, max_tokens=8)
    ids = [ids_of(served_target, text) for text in texts]
    assert [c.text for c in both.choices] == [
        c.text for c in client.completions.create(model="tiny", prompt=ids, max_tokens=8).choices
    ]
    alone = client.completions.create(model="tiny", prompt=texts[1], max_tokens=8)
    assert both.choices[1].text == alone.choices[0].text


@pytest.mark.parametrize("chat", [False, True], ids=["local-completions", "local-chat-completions"])
def test_lm_eval_drives_the_server(speculative_url, served_target, chat, monkeypatch):
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    path = "chat/completions" if chat else "completions"
    options = {"base_url": f"{speculative_url}/v1/{path}", "model": "tiny", "tokenizer_backend": None}
    lm = (LocalChatCompletion if chat else LocalCompletionsAPI)(
        **options, tokenized_requests=False, max_gen_toks=16
    )
    turns = [{"role": "user", "content": "What is two and two?"}]
    if chat:
        from lm_eval.models.api_models import JsonChatStr

        context = JsonChatStr(json.dumps(turns))
        asked = served_target.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    else:
        context = asked = PROMPT
    request = Instance("generate_until", {}, (context, {"until": ["\n\n"], "max_gen_toks": 16}), 0)
    (answer,) = lm.generate_until([request], disable_tqdm=True)
    trace = in_process(served_target, ids_of(served_target, asked), limit=16, stop=["\n\n"])
    assert answer == answer_text(trace, served_target.tokenizer, ["\n\n"])


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"model": "other"}, 404, "no model 'other'"),
        ({"prompt": ""}, 400, "prompt is empty"),
        ({"prompt": [9999]}, 400, "0..259, got 9999"),
        ({"max_tokens": 600}, 400, "exceed the context of 512 tokens"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"n": 2}, 400, "n: "),
        ({"logprobs": 1}, 400, "logprobs"),
        ({"echo": True}, 400, "echo"),
        ({"stop": [""]}, 400, "stop.0: String should have at least 1 character"),
        ({"stop": ["x"] * 17}, 400, "stop: List should have at most 16 items"),
    ],
)
def test_a_bad_request_gets_one_clear_line(speculative_url, change, status, said):
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 4} | change
    reply = httpx2.post(f"{speculative_url}/v1/completions", json=body)
    assert reply.status_code == status
    assert said in reply.json()["error"]["message"]
    assert "/" not in reply.json()["error"]["message"]


def test_broken_json_and_unknown_routes_are_told_without_traces(speculative_url):
    broken = httpx2.post(
        f"{speculative_url}/v1/completions", content=b"{", headers={"content-type": "application/json"}
    )
    assert broken.status_code == 400
    assert "JSON" in broken.json()["error"]["message"]
    assert httpx2.get(f"{speculative_url}/v1/embeddings").status_code == 404
    assert httpx2.get(f"{speculative_url}/docs").status_code == 404


def test_metrics_count_what_was_served(speculative_url, client):
    def read(name):
        lines = httpx2.get(f"{speculative_url}/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    before = {
        name: read(name)
        for name in ("hambench:generation_tokens_total", 'hambench:requests_total{outcome="ok"}')
    }
    client.completions.create(model="tiny", prompt=PROMPT, max_tokens=24)
    assert [read(name) - value for name, value in before.items()] == [24, 1]
    assert read("hambench:spec_decode_num_accepted_tokens_total") <= read(
        "hambench:spec_decode_num_draft_tokens_total"
    )
    assert httpx2.get(f"{speculative_url}/health").json()["status"] == "ok"


class Held:
    """A method whose steps wait until the test lets them go."""

    name, lossless, extra_weight_bytes = "held", True, 0

    def __init__(self):
        self.go, self.running = threading.Event(), threading.Event()
        self.num_steps = 0

    def warmup(self):
        pass

    def start(self, prompt_ids, params):
        return self

    def prefill(self):
        return self.step()

    def step(self):
        self.running.set()
        self.go.wait(20)
        self.num_steps += 1
        return Step(tokens=(65,))

    kv = KVUsage(1, 1)


def test_a_full_line_answers_503_and_serves_the_ones_that_wait(served_target):
    method = Held()
    replies = []
    body = {"model": "tiny", "prompt": "x", "max_tokens": 2}
    with running(create_app(served_target, method, max_waiting=1)) as url:
        threads = [
            threading.Thread(
                target=lambda: replies.append(httpx2.post(f"{url}/v1/completions", json=body, timeout=20))
            )
            for _ in range(2)
        ]
        threads[0].start()
        assert method.running.wait(20)
        threads[1].start()
        until(lambda: httpx2.get(f"{url}/health").json()["waiting"] == 1)
        refused = httpx2.post(f"{url}/v1/completions", json=body)
        method.go.set()
        for thread in threads:
            thread.join(20)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert [reply.json()["choices"][0]["text"] for reply in replies] == [
        served_target.tokenizer.decode([65, 65])
    ] * 2


def test_a_client_that_leaves_frees_the_server(served_target):
    class Endless(Held):
        def step(self):
            self.num_steps += 1
            self.running.set()
            self.go.wait(0.02)
            return Step(tokens=(65,))

    method = Endless()
    body = {"model": "tiny", "prompt": "x", "max_tokens": 500, "stream": True}
    with running(create_app(served_target, method)) as url:
        with httpx2.stream("POST", f"{url}/v1/completions", json=body) as reply:
            next(reply.iter_lines())
        until(lambda: not httpx2.get(f"{url}/health").json()["busy"])
    assert method.num_steps < 400


def test_a_client_that_leaves_before_its_whole_answer_frees_the_server(served_target):
    class Endless(Held):
        def step(self):
            self.num_steps += 1
            self.running.set()
            self.go.wait(0.02)
            return Step(tokens=(65,))

    method = Endless()
    with running(create_app(served_target, method)) as url:
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(
                f"{url}/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 500}, timeout=0.5
            )
        until(lambda: not httpx2.get(f"{url}/health").json()["busy"])
        metrics = httpx2.get(f"{url}/metrics").text
    assert method.num_steps < 400
    assert 'hambench:requests_total{outcome="cancelled"} 1.0' in metrics


def test_a_client_that_leaves_while_it_waits_gives_its_place_back(served_target):
    method = Held()
    body = {"model": "tiny", "prompt": "x", "max_tokens": 1}
    with running(create_app(served_target, method, max_waiting=1)) as url:
        first = threading.Thread(target=httpx2.post, args=(f"{url}/v1/completions",), kwargs={"json": body})
        first.start()
        assert method.running.wait(20)
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{url}/v1/completions", json=body, timeout=0.5)
        until(lambda: not httpx2.get(f"{url}/health").json()["waiting"])
        assert httpx2.get(f"{url}/health").json()["busy"], "the first is still answered"
        method.go.set()
        assert httpx2.post(f"{url}/v1/completions", json=body).status_code == 200
        first.join(20)
    assert method.num_steps == 2, "the one that left was never begun"


def test_an_error_inside_tells_the_client_a_number_and_no_trace(served_target):
    class Broken(Held):
        def step(self):
            raise RuntimeError("secret in /home/somebody/model.py")

    with running(create_app(served_target, Broken())) as url:
        reply = httpx2.post(f"{url}/v1/completions", json={"model": "tiny", "prompt": "x"})
    assert reply.status_code == 500
    assert reply.json()["error"]["message"].startswith("internal error ")
    assert "secret" not in reply.text


def test_bodies_over_the_limit_are_refused_whether_declared_or_not(served_target):
    app = create_app(
        served_target, VanillaConfig().build(served_target), max_body_bytes=2000, allowed_hosts=["*"]
    )
    with TestClient(app) as client:
        body = json.dumps({"model": "tiny", "prompt": "x" * 3000, "max_tokens": 1}).encode()
        declared = client.post("/v1/completions", content=body)
        chunked = client.post(
            "/v1/completions", content=(body[i : i + 500] for i in range(0, len(body), 500))
        )
        assert [declared.status_code, chunked.status_code] == [413, 413]
        assert "larger than 2000 bytes" in chunked.json()["error"]["message"]


def test_other_host_names_and_missing_keys_are_refused(served_target):
    app = create_app(served_target, VanillaConfig().build(served_target), api_key="s3cret")
    with TestClient(app, base_url="http://evil.example") as client:
        assert client.get("/health").status_code == 400
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/v1/models", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/v1/models", headers={"authorization": "Bearer s3cret"}).status_code == 200
