import pytest
import torch
from fakes_hamburger import hf_twin, with_shape

from hambench.errors import NotFiniteError
from hambench.methods.hamburger.data import batched
from hambench.methods.hamburger.data.batched import _choices, _Decoder, decode_answers
from hambench.methods.hamburger.data.self_distill import generate

MOST = 9


def prompts_of(*lengths):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(256, (length,), generator=generator).tolist() for length in lengths]


PROMPTS = prompts_of(3, 1, 6, 6, 17, 2, 40, 5, 11)


def qwen(biased):
    """A tiny model with biases, or with norms of its heads that are not ones."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    config, kind = (Qwen2Config, Qwen2ForCausalLM) if biased else (Qwen3Config, Qwen3ForCausalLM)
    torch.manual_seed(0)
    model = kind(
        config(
            vocab_size=260,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return model.float().eval()


MODELS = {
    "llama": hf_twin,
    # as many key heads as query heads
    "ungrouped": lambda: hf_twin(with_shape(num_kv_heads=4)),
    "biased": lambda: qwen(True),
    "head norms": lambda: qwen(False),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


@torch.no_grad()
def one_by_one(model, prompt, eos_ids=frozenset()):
    ids = list(prompt)
    while len(ids) < len(prompt) + MOST:
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in eos_ids:
            break
    return ids[len(prompt) :]


def decoded(model, prompts, eos_ids=frozenset(), **options):
    answers = list(decode_answers(model, prompts, max_new_tokens=MOST, eos_ids=eos_ids, **options))
    assert sorted(index for index, _ in answers) == list(range(len(prompts)))
    return [answer for _, answer in sorted(answers)]


@pytest.mark.parametrize(("rows", "cohort_rows"), [(4, 2), (3, 3), (1, 5), (100, 4)])
def test_answers_equal_one_by_one_decoding_wherever_others_end(model, rows, cohort_rows):
    whole = [one_by_one(model, prompt) for prompt in PROMPTS]
    # tokens that end some answers at once, others later or not at all
    eos_ids = frozenset({whole[0][0], whole[4][3], whole[7][5]})
    expected = [one_by_one(model, prompt, eos_ids) for prompt in PROMPTS]
    lengths = {len(answer) for answer in expected}
    assert 1 in lengths
    assert len(lengths) > 2
    assert decoded(model, PROMPTS, eos_ids, rows=rows, cohort_rows=cohort_rows) == expected
    assert decoded(model, PROMPTS, rows=rows, cohort_rows=cohort_rows) == whole


def test_an_answer_of_one_token_is_cut_there(model):
    answers = list(decode_answers(model, PROMPTS, max_new_tokens=1, eos_ids=frozenset()))
    assert sorted(answers) == [(i, one_by_one(model, p)[:1]) for i, p in enumerate(PROMPTS)]


@pytest.fixture
def steps(monkeypatch):
    """Rows of each step, and the most bytes of caches."""
    taken = []
    step = _Decoder.step

    def spied(decoder, cohorts):
        taken.append((sum(c.num_rows for c in cohorts), sum(c.nbytes for c in cohorts), len(cohorts)))
        step(decoder, cohorts)

    monkeypatch.setattr(_Decoder, "step", spied)
    return taken


def test_places_are_taken_again_before_all_answers_have_ended(steps):
    twin = hf_twin()
    whole = [one_by_one(twin, prompt) for prompt in PROMPTS]
    # every other prompt's answer ends at its first token
    again = [PROMPTS[0], PROMPTS[4]] * 10
    eos_ids = frozenset({whole[0][0]} - set(whole[4]))
    assert eos_ids
    answers = decoded(twin, again, eos_ids, rows=4, cohort_rows=2)
    assert answers == [whole[0][:1], whole[4]] * 10
    rows = [num_rows for num_rows, _, _ in steps]
    # ten long answers of eight steps each, and at most four at once: a batch that waits for its last would halve it
    assert max(rows) <= 4
    assert sum(rows) == 10 * (MOST - 1)
    assert len(rows) <= 10 * (MOST - 1) / 3 + MOST


def test_caches_bound_how_many_answers_there_are(steps, monkeypatch):
    twin = hf_twin()
    prompts = prompts_of(*[8] * 12)
    per_row = _Decoder(twin, 0.0).cache_bytes(1, 8 + MOST)
    assert per_row == 2 * 4 * 2 * 16 * 4 * (8 + MOST)
    monkeypatch.setattr(batched, "CACHE_BYTES", 5 * per_row)
    assert decoded(twin, prompts, cohort_rows=2) == [one_by_one(twin, prompt) for prompt in prompts]
    assert max(num_bytes for _, num_bytes, _ in steps) == 4 * per_row
    # one cohort goes on whatever it takes
    monkeypatch.setattr(batched, "CACHE_BYTES", 1)
    assert decoded(twin, prompts, cohort_rows=2) == [one_by_one(twin, prompt) for prompt in prompts]
    assert steps[-1][2] == 1


def test_room_of_answers_that_have_ended_is_given_back(steps):
    twin = hf_twin()
    whole = [one_by_one(twin, prompt) for prompt in PROMPTS]
    eos_ids = frozenset({whole[0][0]} - set(whole[4]))
    decoded(twin, [PROMPTS[0]] * 3 + [PROMPTS[4]], eos_ids)
    assert steps[0][:2] == (1, _Decoder(twin, 0.0).cache_bytes(1, 17 + MOST))


def test_what_has_begun_is_finished_when_nothing_may_begin():
    twin = hf_twin()
    asked = []

    def may_begin():
        asked.append(1)
        return len(asked) < 2

    answers = dict(
        decode_answers(
            twin,
            PROMPTS,
            max_new_tokens=MOST,
            eos_ids=frozenset(),
            rows=6,
            cohort_rows=2,
            may_begin=may_begin,
        )
    )
    # the first two are not asked for
    assert sorted(answers) == [0, 1, 2, 3]
    assert all(answer == one_by_one(twin, PROMPTS[i]) for i, answer in answers.items())
    assert len(asked) == 2


def test_every_prompt_of_a_mixed_list_gets_its_own_answer():
    twin = hf_twin()
    prompts = prompts_of(*[1 + 7 * i % 23 for i in range(50)])
    answers = dict(generate(twin, prompts, max_new_tokens=MOST, eos_ids=frozenset(), rows=8))
    assert [answers[i] for i in range(50)] == [one_by_one(twin, prompt) for prompt in prompts]


def test_bfloat16_chooses_what_float32_nearly_says():
    twin, half = hf_twin(), hf_twin().to(torch.bfloat16)
    for prompt, answer in zip(PROMPTS, decoded(half, PROMPTS, rows=4, cohort_rows=2), strict=True):
        with torch.no_grad():
            logits = twin(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert (logits.amax(-1) - chosen).max() < 0.05 * logits.std()


@pytest.mark.parametrize("size", [5, 128, 300])
def test_the_greedy_choice_is_the_first_of_the_largest(size):
    generator = torch.Generator().manual_seed(0)
    # few values, so that many are equal
    logits = torch.randint(-9, 0, (40, size), generator=generator).to(torch.bfloat16)
    assert _choices(logits, 0.0).tolist() == logits.argmax(-1).tolist()
    for wrong in (float("nan"), float("inf")):
        logits[7, 3] = wrong
        with pytest.raises(NotFiniteError):
            _choices(logits, 0.0)
    logits[7] = -float("inf")
    with pytest.raises(NotFiniteError):
        _choices(logits, 0.7)


def test_a_model_that_is_not_a_number_is_refused():
    twin = hf_twin()
    with torch.no_grad():
        twin.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    with pytest.raises(NotFiniteError):
        decoded(twin, PROMPTS)


def test_samples_are_as_frequent_as_the_softmax_says():
    torch.manual_seed(1)
    size, temperature, count = 300, 0.7, 20000
    row = torch.randn(size)
    # entries that can't be, in the middle and at the end of the last chunk
    row[[0, 4, 127, 128, 256, 299]] = -float("inf")
    chosen = torch.bincount(_choices(row.expand(count, size), temperature), minlength=size)
    expected = count * torch.softmax(row / temperature, -1)
    assert len(chosen) == size
    assert chosen[expected == 0].sum() == 0
    kept = expected > 5
    square = ((chosen - expected)[kept] ** 2 / expected[kept]).sum()
    # of a chi-squared variable with as many degrees of freedom
    freedom = int(kept.sum())
    assert freedom > 200
    assert abs(square - freedom) < 4 * (2 * freedom) ** 0.5
