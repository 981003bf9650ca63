"""Seeded runs for tests of everything downstream of the store: simulated times, invented answers, real formats.

No model is involved: a small cost model makes the figures plausible, and the header says "simulated" so that no
reader takes them for a measurement.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hambench.models.sizes import SHAPES
from hambench.records import (
    SCHEMA_VERSION,
    Cell,
    Fidelity,
    GenerationTrace,
    RunHeader,
    Sample,
    SampleRecord,
    Score,
    StepRecord,
    answer_key,
)
from hambench.run_notes import Note
from hambench.store import RunWriter

HOSTILE = (
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=2</script>",
    '"><img src=x onerror="window.pwned=3">',
    "{{7*7}} {% raw %}",
    "line\u2028sep\u2029end",
    "nul\x00bell\x07",
    "\u202eright to left\u202c שלום",
    "emoji split \U0001f468\u200d\U0001f469\u200d\U0001f467 ok",
    "&lt;already&amp;escaped&gt;",
    "${alert(1)} `tick` \\u003c",
)

SLOT_BYTES = 2 * 30 * 3 * 64 * 2  # key + value, layers, kv heads, head dim, bf16


@dataclass(frozen=True)
class Task:
    suite: str
    name: str
    category: str
    prompt_tokens: int
    answer_tokens: int
    accuracy: float
    metric: str = "exact_match"
    graded: bool = False


TASKS = (
    Task("standard", "gsm8k_cot_llama", "math", 180, 90, 0.42),
    Task("standard", "humaneval_instruct", "code", 160, 110, 0.33, "pass@1"),
    Task("longbench", "lcc", "code", 1900, 48, 0.48, "code_sim_score", True),
    Task("longbench", "multifieldqa_en", "single-doc", 3000, 40, 0.36, "qa_f1_score", True),
    Task("longbench", "passage_retrieval_en", "synthetic", 3600, 8, 0.12, "retrieval_score"),
    Task("longbench", "gov_report", "summarisation", 4200, 120, 0.22, "rouge_score", True),
)


def cells(confidences: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9)) -> tuple[Cell, ...]:
    """Vanilla, speculation with two k, prompt lookup, HAMburger over its confidence, and its one-token control."""

    def cell(method: str, label: str, **knobs: int | float | str) -> Cell:
        return Cell(method=method, label=label, knobs=knobs, model="toy", dtype="bfloat16")

    return (
        cell("vanilla", "vanilla"),
        cell("speculative", "speculative[k=2]", num_draft_tokens=2),
        cell("speculative", "speculative[k=4]", num_draft_tokens=4),
        cell("prompt_lookup", "prompt_lookup[k=8]", num_draft_tokens=8),
        *(cell("hamburger", f"hamburger[confidence={c:g}]", confidence=c) for c in confidences),
        cell("hamburger", "hamburger[confidence=1.01]", confidence=1.01),
    )


def header(run_cells: Sequence[Cell], *, num_samples: int, **changes: object) -> RunHeader:
    base = RunHeader(
        schema_version=SCHEMA_VERSION,
        run_id="simulated-0001",
        created_at="2026-01-02T03:04:05Z",
        hambench_version="0.1.0",
        commit="0123456789ab",
        command=("hambench", "run", "--methods", "all", "--suite", "longbench"),
        suites=("standard", "longbench"),
        edition="offline",
        data_source="offline edition",
        data_hashes={task.name: "0" * 64 for task in TASKS},
        cells=tuple(run_cells),
        num_samples=num_samples,
        limit=None,
        repeats=1,
        seed=0,
        temperature=0.0,
        top_p=1.0,
        max_new_tokens=None,
        model={
            "name": "toy",
            "sha256": "ab" * 32,
            "weight_bytes": 269_000_000,
            "context_length": 8192,
            **SHAPES["smollm2-135m"].as_scalars(),
        },
        environment={"cpu_model": "Simulated CPU", "cpu_count": 2, "torch": "2.13.0", "device": "cpu"},
        notes=(
            Note("simulated", "simulated: times and answers were invented by a test, nothing was measured"),
        ),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def simulate(
    run_cells: Sequence[Cell],
    *,
    tasks: Sequence[Task] = TASKS,
    per_task: int = 12,
    seed: int = 7,
    hostile: bool = False,
    error_rate: float = 0.01,
    lone_error_rate: float = 0.0,
) -> tuple[list[Sample], list[SampleRecord], list[Score]]:
    """Samples with, for each cell, a record and its score.

    A share ``error_rate`` of the samples fails in every cell, ``lone_error_rate`` of the answers in one cell only.
    """
    samples: list[Sample] = []
    records: list[SampleRecord] = []
    scores: list[Score] = []
    for task in tasks:
        for doc_id in range(per_task):
            rng = random.Random(f"{seed}/{task.name}/{doc_id}")
            sample = _sample(task, doc_id, rng, hostile=hostile)
            samples.append(sample)
            difficulty, length = rng.random(), rng.random()
            fails = rng.random() < error_rate
            for cell in run_cells:
                cell_rng = random.Random(f"{seed}/{task.name}/{doc_id}/{cell.label}")
                lone = cell_rng.random() < lone_error_rate
                record = _record(task, sample, cell, cell_rng, base=length, fails=fails or lone)
                records.append(record)
                if record.error is None:
                    scores.append(_score(task, record, cell, difficulty, cell_rng))
    return samples, records, scores


def write_run(folder: Path, run_cells: Sequence[Cell] | None = None, **options: object) -> Path:
    """Writes a simulated run folder and returns it; ``header_changes`` replaces header fields."""
    changes = options.pop("header_changes", {})
    run_cells = cells() if run_cells is None else run_cells
    samples, records, scores = simulate(run_cells, **options)  # type: ignore[arg-type]
    return write(folder, header(run_cells, num_samples=len(samples), **changes), samples, records, scores)  # type: ignore[arg-type]


def write(
    folder: Path,
    run_header: RunHeader,
    samples: Sequence[Sample],
    records: Sequence[SampleRecord],
    scores: Sequence[Score],
) -> Path:
    with RunWriter.create(folder, run_header, samples) as writer:
        writer.append_records(records)
        writer.append_scores(scores)
        writer.append_fidelity(judge(records))
        for cell in run_header.cells:
            added = {"speculative": 135_000_000, "hamburger": 287_000_000}.get(cell.method, 0)
            writer.append_telemetry(
                {"kind": "warmup", "cell": cell.label, "cold_s": 0.5, "passes_s": [0.1] * 3, "settled": True,
                 "extra_weight_bytes": added}
            )  # fmt: skip
        for when, read in (("before", 62e9), ("after", 64e9)):
            writer.append_telemetry(
                {"kind": "bandwidth", "when": when, "device": "cpu", "read": read, "copy": read}
            )
    return folder


def judge(records: Sequence[SampleRecord]) -> list[Fidelity]:
    """An invented judgement of each distinct answer: the shared tokens are the target's own choice, the others cost."""
    judged = {}
    for record in records:
        if record.trace is None:
            continue
        key, rng = answer_key(record), random.Random(answer_key(record))
        own = [
            random.Random(f"{record.sample_id}/{i}").randrange(49152)
            for i in range(len(record.trace.token_ids))
        ]
        regrets = tuple(
            0.0 if mine == other else round(rng.expovariate(0.8), 6)
            for mine, other in zip(record.trace.token_ids, own, strict=True)
        )
        judged[key] = Fidelity(
            sample_id=record.sample_id,
            answer=key,
            regrets=regrets,
            logprobs=tuple(round(-0.4 - regret, 6) for regret in regrets),
            gaps=tuple(0.03125 if i % 5 == 0 else 1.25 for i in range(len(regrets))),
        )
    return list(judged.values())


_PROSE = "the of model answer so that it can be read in one step and then more after a while number"
_SOURCE = "def return self . ( ) : = + value key for in range if not import x y [ ] total"


def task_samples(**counts: int | tuple[int, int]) -> list[Sample]:
    """Returns samples of one suite, by task: a number, or a number and the most tokens of an answer (10 otherwise)."""
    return [
        Sample(
            sample_id=f"s/{task}/{i}",
            suite="s",
            task=task,
            category="c",
            doc_id=i,
            prompt="x" * 50,
            stop=(),
            max_new_tokens=limit,
        )
        for task, asked in counts.items()
        for count, limit in [asked if isinstance(asked, tuple) else (asked, 10)]
        for i in range(count)
    ]


def _words(rng: random.Random, count: int, *, code: bool) -> list[str]:
    choices = (_SOURCE if code else _PROSE).split()
    words = [" " + rng.choice(choices) for _ in range(count)]
    for index in range(9, count, 11):
        words[index] = "\n    " if code else ".\n"
    return words


def _sample(task: Task, doc_id: int, rng: random.Random, *, hostile: bool) -> Sample:
    body = "".join(_words(rng, min(task.prompt_tokens, 400), code=task.category == "code"))
    if hostile:
        body = " ".join(HOSTILE) + body
    return Sample(
        sample_id=f"{task.suite}/{task.name}/{doc_id}",
        suite=task.suite,
        task=task.name,
        category=task.category,
        doc_id=doc_id,
        prompt=body,
        stop=("\n\n",),
        max_new_tokens=task.answer_tokens * 2,
        references=(HOSTILE[doc_id % len(HOSTILE)] if hostile else str(rng.randint(1, 999)),),
        edition="offline",
    )


def _record(
    task: Task, sample: Sample, cell: Cell, rng: random.Random, *, base: float, fails: bool
) -> SampleRecord:
    if fails:
        return SampleRecord(
            cell=cell.label,
            sample_id=sample.sample_id,
            prompt_hash=sample.prompt_hash,
            error="ContextOverflowError: the prompt has 9000 tokens, the context 8192",
        )
    num_tokens = max(2, int(task.answer_tokens * (0.6 + 0.8 * base)))
    # a lossless method gives vanilla's text; HAMburger leaves it sooner or later
    own = f"{sample.sample_id}/{cell.label}"
    shared = num_tokens if cell.method != "hamburger" else min(num_tokens, int(rng.expovariate(1 / 60)))
    code = task.category == "code"
    words = _words(random.Random(sample.sample_id), num_tokens, code=code)[:shared]
    words += _words(random.Random(own), num_tokens - shared, code=code)
    ids = [random.Random(f"{sample.sample_id}/{index}").randrange(49152) for index in range(shared)]
    ids += [random.Random(f"{own}/{index}").randrange(49152) for index in range(shared, num_tokens)]
    if HOSTILE[0] in sample.prompt:
        words = [
            word + HOSTILE[index % len(HOSTILE)] if index % 3 == 0 else word
            for index, word in enumerate(words)
        ]
    drift = 1 + 0.05 * rng.random()
    prefill = StepRecord(
        tokens=(ids[0],),
        seconds=task.prompt_tokens / 2500 * drift,
        kv_slots=task.prompt_tokens,
        kv_bytes=task.prompt_tokens * SLOT_BYTES,
    )
    steps, pieces, position, slots = [prefill], [words[0]], 1, task.prompt_tokens
    while position < num_tokens:
        step = _step(task, cell, rng, ids[position:], slots, drift)
        slots = step.kv_slots
        pieces.append("".join(words[position : position + len(step.tokens)]))
        position += len(step.tokens)
        steps.append(step)
    return SampleRecord(
        cell=cell.label,
        sample_id=sample.sample_id,
        prompt_hash=sample.prompt_hash,
        trace=GenerationTrace(prompt_tokens=task.prompt_tokens, steps=tuple(steps), finish="eos"),
        text="".join(words),
        step_texts=tuple(pieces),
        truncated_tokens=120 if task.prompt_tokens > 4000 else 0,
        peak_memory_bytes=900_000_000,
        other_load=0.02,
        started_at=1_767_323_045.0,
    )


def _step(
    task: Task, cell: Cell, rng: random.Random, ids: Sequence[int], slots: int, drift: float
) -> StepRecord:
    noise = drift * rng.lognormvariate(0, 0.08)
    vanilla = 0.0082 + task.prompt_tokens * 6e-7
    easy = {"code": 0.8, "synthetic": 0.75}.get(task.category, 0.6)
    left = len(ids)
    if cell.method in ("speculative", "prompt_lookup"):
        k = int(cell.knobs["num_draft_tokens"])  # type: ignore[arg-type]
        rate = easy * (1.1 if cell.method == "speculative" else 0.55)
        accepted = 0
        while accepted < k and rng.random() < rate:
            accepted += 1
        kept = min(accepted + 1, left)
        draft_time = 0.6 * k * vanilla if cell.method == "speculative" else 0.0003
        copies = 2 if cell.method == "speculative" else 1
        return StepRecord(
            tokens=tuple(ids[:kept]),
            seconds=(vanilla * (1 + 0.04 * k) + draft_time) * noise,
            draft_forwards=k if cell.method == "speculative" else 0,
            drafted=k,
            accepted=accepted,
            kv_slots=slots + kept,
            kv_bytes=(slots + kept) * SLOT_BYTES * copies,
            discarded=accepted + 1 - kept,
        )
    if cell.method == "hamburger":
        confidence = float(cell.knobs["confidence"])  # type: ignore[arg-type]
        probs: list[float] = []
        while len(probs) < min(4, left):
            probs.append(min(0.999, rng.betavariate(5 * easy, 2)))
            if probs[-1] < confidence:
                break
        return StepRecord(
            tokens=tuple(ids[: len(probs)]),
            seconds=vanilla * (1 + 0.22 * (len(probs) - 1)) * noise,
            micro_forwards=len(probs) - 1,
            kv_slots=slots + 1,
            kv_bytes=(slots + 1) * SLOT_BYTES,
            continue_probs=tuple(probs),
        )
    return StepRecord(
        tokens=(ids[0],), seconds=vanilla * noise, kv_slots=slots + 1, kv_bytes=(slots + 1) * SLOT_BYTES
    )


def _score(task: Task, record: SampleRecord, cell: Cell, difficulty: float, rng: random.Random) -> Score:
    ability = task.accuracy
    if cell.method == "hamburger":
        ability -= 0.16 * max(0.0, 0.9 - float(cell.knobs["confidence"]))  # type: ignore[arg-type]
    if task.graded:
        own = rng.gauss(0, 0.04) if cell.method == "hamburger" else 0.0
        value = min(1.0, max(0.0, ability + 0.35 * (0.5 - difficulty) + own))
    else:
        flip = cell.method == "hamburger" and rng.random() < 0.06
        value = float((difficulty < ability) != flip)
    return Score(
        cell=cell.label,
        sample_id=record.sample_id,
        repeat=0,
        metric=task.metric,
        value=value,
        scorer="simulated",
    )
