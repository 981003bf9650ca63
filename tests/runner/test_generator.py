"""What belongs to one answer alone: its noise, and its peak of memory."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from types import SimpleNamespace

import torch
from fakes_hamburger import save_tiny_hamburger
from native_fixtures import need_compiler
from synthetic import write_run

from hambench.machine import load
from hambench.machine.bandwidth import Bandwidth
from hambench.machine.load import CpuLoadMeter
from hambench.methods.common.sampling import choose, generator_for
from hambench.models import target as models
from hambench.records import Cell, Sample
from hambench.runner import generator as generator_module
from hambench.runner.generator import DecodingOptions, Generator, Job, Workload, noise_seed, schedule
from hambench.runner.work import NUM_TIMED_PROMPTS, timed_prompts
from hambench.store import RECORDS, RunWriter, load_run


def sample(doc_id: int, *, prompt: str = "abcd") -> Sample:
    return Sample(
        sample_id=f"s/t/{doc_id}",
        suite="s",
        task="t",
        category="c",
        doc_id=doc_id,
        prompt=prompt,
        stop=(),
        max_new_tokens=4,
    )


def test_forty_questions_with_four_equal_answers_are_not_all_answered_alike() -> None:
    options = DecodingOptions(temperature=1.0)
    logits = torch.zeros(4)
    for repeat in range(8):
        drawn = Counter()
        for doc_id in range(40):
            params = options.params(sample(doc_id), repeat)
            drawn[choose(logits, params, generator_for(params, torch.device("cpu")))] += 1
        # 40 draws of four letters: the commonest is seen 25 times or more in one of 100,000
        assert max(drawn.values()) < 25


def test_noise_differs_by_seed_sample_and_repeat_and_is_the_same_for_every_method() -> None:
    seeds = {noise_seed(seed, f"s/{i}", repeat) for seed in (0, 1) for i in range(50) for repeat in range(3)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert noise_seed(3, "s/1", 2) == noise_seed(3, "s/1", 2)


def test_a_peak_of_memory_is_that_of_its_answer_and_a_cpu_has_none(target, monkeypatch) -> None:
    cell = Cell(method="vanilla", label="vanilla", knobs={}, model="m", dtype="float32")
    generator = Generator(target, (cell,), DecodingOptions())
    assert generator.record(Job(cell, sample(0), 0), CpuLoadMeter()).peak_memory_bytes is None

    # an allocator whose peak only falls when it is reset, as a GPU's
    allocator = SimpleNamespace(peak=10_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: setattr(allocator, "peak", 500))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: allocator.peak)
    reset, peak = load.reset_peak_memory, load.allocator_peak_bytes
    monkeypatch.setattr("hambench.runner.generator.reset_peak_memory", lambda device: reset("cuda"))
    monkeypatch.setattr("hambench.runner.generator.allocator_peak_bytes", lambda device: peak("cuda"))
    assert generator.record(Job(cell, sample(0), 0), CpuLoadMeter()).peak_memory_bytes == 500


CELLS = tuple(
    Cell(method=method, label=label, knobs=knobs, model="m", dtype="float32")
    for method, label, knobs in (
        ("vanilla", "vanilla", {}),
        ("prompt_lookup", "prompt_lookup", {}),
        ("speculative", "speculative[k=2]", {"num_draft_tokens": 2}),
    )
)


def records_of(target, options, samples, *, cells=CELLS, repeats=2):
    generator = Generator(target, cells, options)
    return [generator.record(job, CpuLoadMeter()) for job in schedule(cells, samples, repeats)]


def test_a_prompt_is_read_once_per_sample_and_every_cell_is_timed_in_its_turn(target) -> None:
    samples = [sample(number, prompt=f"abcd{number}" * 4) for number in range(NUM_TIMED_PROMPTS + 3)]
    each = records_of(target, DecodingOptions(prefill="each"), samples)
    shared = records_of(target, DecodingOptions(), samples)
    assert all(record.trace.ttft_s is not None for record in each)
    assert [record.trace.token_ids for record in shared] == [record.trace.token_ids for record in each]
    by_sample: dict[tuple[str, int], list[str]] = {}
    for record in shared:
        if record.trace.ttft_s is not None:
            by_sample.setdefault((record.sample_id, record.repeat), []).append(record.cell)
    # every cell reads the first few, so that times to first token compare; a repeat of them does not
    labels = [cell.label for cell in CELLS]
    for number in range(NUM_TIMED_PROMPTS):
        assert sorted(by_sample.pop((f"s/t/{number}", 0))) == sorted(labels)
    # who comes first reads for all others, and a repeat reads again
    assert len(by_sample) == 2 * len(samples) - NUM_TIMED_PROMPTS
    assert all(len(timed) == 1 for timed in by_sample.values())
    assert {cell for timed in by_sample.values() for cell in timed} == set(labels)


def test_the_prompts_that_all_cells_time_are_the_first_of_each_task_and_no_conversations() -> None:
    rows = [
        dataclasses.replace(sample(n), sample_id=f"{task}/{n}", task=task) for task in "ab" for n in range(4)
    ]
    assert timed_prompts(rows) == {"a/0", "b/0", "a/1"}
    talks = [dataclasses.replace(row, conversation="c") for row in rows[:4]]
    assert timed_prompts([*talks, *rows[4:]]) == {"b/0", "b/1", "b/2"}
    assert timed_prompts(talks) == frozenset()


def test_a_cell_that_is_asked_again_reads_again(target) -> None:
    """A timing that was disturbed is replaced by a timing."""
    generator, load_meter = Generator(target, CELLS, DecodingOptions()), CpuLoadMeter()
    first, again = (generator.record(Job(CELLS[0], sample(0), 0), load_meter) for _ in range(2))
    other = generator.record(Job(CELLS[1], sample(0), 0), load_meter)
    assert first.trace.ttft_s is not None
    assert again.trace.ttft_s is not None
    assert other.trace.ttft_s is None


def test_a_prompt_that_failed_to_be_read_is_read_by_the_next_cell(target, monkeypatch) -> None:
    generator, load_meter = Generator(target, CELLS, DecodingOptions()), CpuLoadMeter()
    read, calls = type(target.llama).prefill, []

    def fail_once(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return read(self, *args, **kwargs)

    monkeypatch.setattr(type(target.llama), "prefill", fail_once)
    failed, second, third = (
        generator.record(Job(cell, sample(0), 0), load_meter) for cell in CELLS[:2] + CELLS[1:2]
    )
    assert "out of memory" in failed.error
    assert second.trace.ttft_s is not None
    assert third.trace.ttft_s is not None


def test_one_cell_alone_and_a_gpu_share_nothing(target, monkeypatch) -> None:
    assert Generator(target, CELLS[:1], DecodingOptions())._prompts is None
    assert Generator(target, CELLS, DecodingOptions(prefill="each"))._prompts is None
    assert Generator(target, CELLS, DecodingOptions())._prompts is not None
    # there an answer's peak of memory is its own
    monkeypatch.setattr(type(target), "device", torch.device("cuda"))
    assert Generator(target, CELLS, DecodingOptions())._prompts is None


def test_every_number_of_threads_has_a_probe_of_its_own(target, tmp_path, monkeypatch) -> None:
    def probe(device: str) -> Bandwidth:
        return Bandwidth(device=device, read=1.0, copy=1.0, buffer_bytes=1, threads=torch.get_num_threads())

    monkeypatch.setattr("hambench.runner.generator.measure_bandwidth", probe)
    stored = load_run(write_run(tmp_path / "run"))
    before = torch.get_num_threads()
    for counts in ((1, 2, 1), (None,)):
        cells = [
            Cell(method="vanilla", label=f"{i}", knobs={}, model="m", dtype="float32", threads=threads)
            for i, threads in enumerate(counts)
        ]
        with RunWriter.create(tmp_path / f"{len(counts)}", stored.header, []) as writer:
            Generator(target, cells, DecodingOptions())._probe(writer, "start")
        read = [item["threads"] for item in load_run(writer.folder).telemetry if item["kind"] == "bandwidth"]
        assert read == [before if threads is None else threads for threads in dict.fromkeys(counts)]
    assert torch.get_num_threads() == before


REMEMBERING = Cell(
    method="suffix", label="suffix[cache=4]", knobs={"earlier_answers": 4}, model="m", dtype="float32"
)


def test_a_method_is_built_with_its_cell_s_threads(target, monkeypatch) -> None:
    """A program that a peer starts takes as many as the other cells do."""
    built: list[int] = []

    class Config:
        def build(self, target):
            built.append(torch.get_num_threads())
            return SimpleNamespace()

    monkeypatch.setattr(generator_module, "config_of", lambda cell: Config())
    before = torch.get_num_threads()
    for threads in (before + 1, None):
        cell = dataclasses.replace(CELLS[0], threads=threads)
        Generator(target, (cell,), DecodingOptions()).method(cell)
    assert built == [before + 1, before]
    assert torch.get_num_threads() == before


def counts_of(record):
    return [(step.drafted, step.accepted) for step in record.trace.steps]


def test_neither_a_warm_up_nor_an_earlier_repeat_is_among_the_earlier_answers(target) -> None:
    """Made-up answers of the warm-up were, and the second repeat proposed the first one's answers."""
    asked = [dataclasses.replace(sample(i, prompt="abcd" * (i + 1)), max_new_tokens=24) for i in range(2)]
    options = DecodingOptions(ignore_eos=True)
    cold = records_of(target, options, asked, cells=(REMEMBERING,), repeats=1)
    generator = Generator(target, (REMEMBERING,), options)
    generator.warm_up_cell(REMEMBERING)
    warm = [generator.record(job, CpuLoadMeter()) for job in schedule((REMEMBERING,), asked, 2)]
    assert [counts_of(record) for record in warm] == 2 * [counts_of(record) for record in cold]
    # within a repeat they are remembered
    alone = records_of(target, options, asked[1:], cells=(REMEMBERING,), repeats=1)
    assert counts_of(alone[0]) != counts_of(cold[1])


def test_a_disturbed_timing_is_taken_again_but_where_the_answer_would_find_itself(
    target, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(generator_module, "_is_contaminated", lambda record: True)
    monkeypatch.setattr(Generator, "_probe", lambda self, writer, when: None)
    stored = load_run(write_run(tmp_path / "other"))
    cells = (*CELLS[:1], REMEMBERING)
    asked = [sample(i) for i in range(10)]
    header = dataclasses.replace(stored.header, cells=cells, num_samples=len(asked))
    with RunWriter.create(tmp_path / "run", header, asked) as writer:
        Generator(target, cells, DecodingOptions()).run(writer, Workload.of(cells, asked, 1))
    lines = (tmp_path / "run" / RECORDS).read_text().splitlines()
    made = Counter(json.loads(line)["cell"] for line in lines)
    assert made["suffix[cache=4]"] == len(asked)
    # four extra: a fifth of the twenty records
    assert made["vanilla"] == len(asked) + 4


def test_grafts_that_the_native_engine_packs_are_warmed_up_each(tmp_path, tiny_model) -> None:
    """Their macro-steps asked nothing of a model that a warm-up saw; the engine's base was the same for both."""
    need_compiler()
    cells = [
        Cell(
            method="hamburger",
            label=f"{seed} {confidence}",
            knobs={"checkpoint": str(folder), "confidence": confidence},
            model="m",
            dtype="bfloat16",
            kernels="native",
        )
        for seed in (0, 1)
        for folder in [save_tiny_hamburger(tmp_path / str(seed), seed=seed)]
        for confidence in (0.3, 1.1)
    ]
    generator = Generator(models.load(str(tiny_model), dtype="bfloat16"), cells, DecodingOptions())
    shares = [generator.warm_up_cell(cell)["shares"] for cell in cells]
    assert shares == [None, "0 0.3", None, "0 0.3"]


def test_a_cell_is_warm_only_if_all_that_it_uses_for_the_first_time_is(target, tmp_path) -> None:
    """Other grafts on the same base were taken for warm, and so was a cache of 8 bits after one of the model's type."""
    folders = [str(save_tiny_hamburger(tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    settings = [
        *(
            {"method": "hamburger", "checkpoint": folder, "confidence": c}
            for folder in folders
            for c in (0.3, 0.4)
        ),
        *(
            {"method": "hamburger", "checkpoint": folder, "confidence": 0.3, "verify": True}
            for folder in folders
        ),
        *({"method": "vanilla", "kv_dtype": dtype} for dtype in ("model", "int8")),
        *(
            {"method": "kv_press", "press": p, "ratio": r}
            for p in ("streaming", "knorm")
            for r in (0.5, 0.25)
        ),
    ]
    cells = [
        Cell(method=method, label=str(number), knobs=knobs, model="m", dtype="float32")
        for number, (method, knobs) in enumerate((each.pop("method"), each) for each in settings)
    ]
    generator = Generator(target, cells, DecodingOptions())
    shares = [generator.warm_up_cell(cell)["shares"] for cell in cells]
    assert shares == [None, "0", None, "2", "0", "2", None, None, None, "8", None, "10"]
