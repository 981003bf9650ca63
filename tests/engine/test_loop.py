from dataclasses import dataclass, field

import pytest
from fakes import EOS, ByteTokenizer, FakeClock

from hambench.decoding import KVUsage, SamplingParams, Step
from hambench.engine.loop import generate, stream


@dataclass
class Scripted:
    """A method that emits given steps; its session tells how often it was asked."""

    steps: list[tuple[int, ...]]
    name: str = "scripted"
    lossless: bool = True
    extra_weight_bytes: int = 0
    asked: list[int] = field(default_factory=list)

    def warmup(self):
        pass

    def start(self, prompt_ids, params):
        return ScriptedSession(self)


@dataclass
class ScriptedSession:
    method: Scripted
    index: int = 0

    def prefill(self):
        return self.step()

    def step(self):
        self.method.asked.append(self.index)
        self.index += 1
        return Step(tokens=self.method.steps[self.index - 1], drafted=3, accepted=1)

    @property
    def kv(self):
        return KVUsage(slots=10 + self.index, bytes=100 * self.index)


def run(steps, limit=100, **kwargs):
    return generate(Scripted(steps), [1], SamplingParams(max_new_tokens=limit), **kwargs)


def test_tokens_past_eos_within_a_step_are_discarded_and_counted_as_such():
    trace = run([(1, 2), (3, EOS, 4, 5)], eos_ids={EOS})
    assert trace.token_ids == (1, 2, 3, EOS)
    assert (trace.finish, trace.steps[-1].discarded) == ("eos", 2)


def test_eos_in_the_very_first_step_ends_the_answer():
    method = Scripted([(EOS,), (1,)])
    trace = generate(method, [1], SamplingParams(max_new_tokens=9), eos_ids={EOS})
    assert (trace.token_ids, method.asked) == ((EOS,), [0])


def test_overshoot_of_the_limit_is_discarded():
    trace = run([(1, 2, 3), (4, 5, 6)], limit=4)
    assert (trace.token_ids, trace.finish, trace.steps[-1].discarded) == ((1, 2, 3, 4), "length", 2)


def test_eos_at_the_limit_counts_as_eos():
    assert run([(1, EOS)], limit=2, eos_ids={EOS}).finish == "eos"


@pytest.mark.parametrize("eos_ids", [{4, EOS}, {EOS, 9, 4}])
def test_the_first_of_several_end_ids_ends_the_answer(eos_ids):
    trace = run([(1, 2), (3, 4, EOS, 9)], eos_ids=eos_ids)
    assert (trace.token_ids, trace.finish, trace.steps[-1].discarded) == ((1, 2, 3, 4), "eos", 2)


@pytest.mark.parametrize(("stop", "finish"), [("ab", "stop"), ("bc", "length")])
def test_a_stop_string_within_the_limit_is_the_reason(stop, finish):
    trace = run([tuple(b"abcd")], limit=2, stop=[stop], decode_text=ByteTokenizer().decode)
    assert (bytes(trace.token_ids), trace.finish) == (b"ab", finish)


def test_a_stop_string_ends_with_the_token_that_completes_it():
    text = b"abc\n\nrest"
    steps = [tuple(text[:3]), tuple(text[3:])]
    trace = run(steps, stop=["\n\n"], decode_text=ByteTokenizer().decode)
    assert (bytes(trace.token_ids), trace.finish) == (b"abc\n\n", "stop")
    assert trace.steps[-1].discarded == 4


def test_a_stop_string_spread_over_many_single_token_steps_is_found():
    text = "x" * 40 + "Question:" + "y" * 9
    trace = run([(byte,) for byte in text.encode()], stop=["Question:"], decode_text=ByteTokenizer().decode)
    assert bytes(trace.token_ids).decode().endswith("xQuestion:")


def test_max_steps_counts_the_prefill():
    trace = run([(1,), (2,), (3,)], max_steps=2)
    assert (trace.token_ids, trace.finish) == ((1, 2), "steps")


def test_a_step_is_timed_from_call_to_return_and_carries_the_cache_after_it():
    trace = run([(1,), (2, 3)], limit=3, clock=FakeClock(tick=0.5))
    assert [step.seconds for step in trace.steps] == [0.5, 0.5]
    assert [(step.kv_slots, step.kv_bytes) for step in trace.steps] == [(11, 100), (12, 200)]


def test_steps_can_be_taken_one_at_a_time():
    method = Scripted([(1,), (2,), (3,)])
    steps = stream(method, [1], SamplingParams(max_new_tokens=3))
    assert next(steps).tokens == (1,)
    assert method.asked == [0]


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt_ids must hold at least one id"):
        generate(Scripted([(1,)]), [], SamplingParams(max_new_tokens=3))


def test_stop_strings_without_a_decoder_are_refused():
    with pytest.raises(ValueError, match="need decode_text"):
        run([(1,)], stop=["x"])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be >= 1, got 0"),
        ({"max_new_tokens": 1, "temperature": -1.0}, "temperature must be >= 0"),
        ({"max_new_tokens": 1, "temperature": float("nan")}, "temperature must be >= 0 and finite, got nan"),
        ({"max_new_tokens": 1, "top_p": 0.0}, r"top_p must be in \(0, 1\]"),
    ],
)
def test_bad_sampling_parameters_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**kwargs)


def test_a_step_without_tokens_or_with_more_accepted_than_drafted_is_a_bug_of_the_method():
    with pytest.raises(ValueError, match="at least one id"):
        Step(tokens=())
    with pytest.raises(ValueError, match="accepted must be <= drafted"):
        Step(tokens=(1,), drafted=1, accepted=2)


def test_no_stop_string_is_looked_for_before_the_thinking_ends():
    method = Scripted([tuple(b"a.b"), tuple(b"</t>"), tuple(b"c.d")])
    trace = generate(
        method,
        [1],
        SamplingParams(max_new_tokens=30),
        stop=["."],
        think_end="</t>",
        decode_text=ByteTokenizer().decode,
    )
    assert (bytes(trace.token_ids), trace.finish) == (b"a.b</t>c.", "stop")


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.5])
def test_seeds_that_no_generator_takes_are_named(seed):
    with pytest.raises(ValueError, match="seed must be a whole number"):
        SamplingParams(max_new_tokens=1, seed=seed)
    assert SamplingParams(max_new_tokens=1, seed=2**64 - 1).seed == 2**64 - 1
