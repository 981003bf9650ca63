"""Makes the records of a run: orders (cell, sample) pairs, decodes each, and fills its record."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from hambench.decoding import DecodingMethod, SamplingParams
from hambench.errors import HambenchError
from hambench.machine.bandwidth import measure_bandwidth
from hambench.machine.load import CpuLoadMeter, allocator_peak_bytes, listening_processes, reset_peak_memory
from hambench.machine.nvml import Gpu, gpu_of
from hambench.records import ALONE_SHARE, BUSY_LOAD, Cell, GenerationTrace, Sample, SampleRecord
from hambench.runner.conversations import Conversations
from hambench.runner.sweep import config_of
from hambench.runner.work import Job as Job
from hambench.runner.work import Opening
from hambench.runner.work import Progress as Progress
from hambench.runner.work import Workload as Workload
from hambench.runner.work import interleave_tasks as interleave_tasks
from hambench.runner.work import schedule as schedule
from hambench.runner.work import torch_threads as torch_threads
from hambench.store import RunWriter, record_key

if TYPE_CHECKING:
    from hambench.engine.requests.shared_prefill import Reader, ReadPrompts
    from hambench.engine.text import Prompt
    from hambench.models.target import TargetModel

Prefill = Literal["shared", "each"]
AfterSample = Callable[[Sequence[SampleRecord], "ReadPrompts"], None]
MAX_REMEASURED_SHARE = 0.2
"""Most extra work a noisy machine may cause, as a share of the run's records."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Decoding options that all methods of a run share."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    ignore_eos: bool = False
    """Decode to the limit whatever is emitted: fixed lengths for speed, no scores."""
    think_end: str | None = None
    """String that ends the model's thinking: what is scored begins behind it, and stop strings count from there."""
    chat_template_args: dict[str, str | int | float | bool | None] = dataclasses.field(default_factory=dict)
    """Variables of the model's chat template."""
    prefill: Prefill = "shared"
    """``shared``: a prompt is read once per sample for all cells with the same weights, and copied (on a CPU; a GPU's
    peak of memory belongs to one answer, which must read for itself). A few prompts are still read by every cell, for
    times to first token that compare. ``each``: every cell reads every prompt."""
    prefill_chunk: int | None = None
    """Rows of the pieces in which every cell reads its prompts, by default the engine's own number. In a batch the
    others wait for a piece; in bfloat16 other pieces may give other bits."""
    max_remeasured: int = 2
    """How often a contaminated timing is taken again."""

    def params(self, sample: Sample, repeat: int) -> SamplingParams:
        """Returns one record's sampling parameters; noise differs by sample and repeat and is equal for all methods."""
        return SamplingParams(
            max_new_tokens=sample.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=noise_seed(self.seed, sample.sample_id, repeat),
        )


def noise_seed(seed: int, sample_id: str, repeat: int) -> int:
    """Returns the seed of one answer (31 bits, which peers accept too), so that samples do not share their noise."""
    digest = hashlib.sha256(f"{seed}/{repeat}/{sample_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4]) >> 1


class Generator:
    """Makes records; builds each cell's method once.

    Args:
        target: The loaded model.
        cells: Cells of the run.
        options: Decoding options of the run.
    """

    def __init__(self, target: TargetModel, cells: Sequence[Cell], options: DecodingOptions) -> None:
        self.target, self.cells, self.options = target, cells, options
        target.chat_arguments = options.chat_template_args
        # before methods are built, whose drafts and grafted bases read their prompts as the target does
        target.llama.prefill_chunk = options.prefill_chunk
        self.after_sample: AfterSample | None = None
        """Called with the records of all cells for a sample and what was read of its prompt, where cells share prompts:
        the work that needs the prompt once more."""
        self._methods: dict[str, DecodingMethod] = {}
        # sample and repeat that prompts are kept for, and the cells that were asked
        self._asked: tuple[tuple[str, int], set[str]] | None = None
        # the repeat that each cell is in
        self._repeats: dict[str, int] = {}
        self._targets: dict[tuple[str, str], TargetModel] = {}
        self._warmed: dict[str, dict[str, Any]] = {}
        # method, engine and threads of each cell that had its whole warm-up, and what it used
        self._warm: dict[str, tuple[tuple[Any, ...], frozenset[Hashable]]] = {}
        self._encoded: dict[tuple[str, int, int], Prompt] = {}
        self._conversations = Conversations(target.tokenizer, options.chat_template_args)

    @cached_property
    def _gpu(self) -> Gpu | None:
        return gpu_of(self.target.device)

    def _target_for(self, cell: Cell) -> TargetModel:
        """Returns the target on the cell's regime and kernels; drafts made from it are not shared between them."""
        key = (cell.regime, cell.kernels)
        if key not in self._targets:
            from hambench.runner.backend import run_by

            self._targets[key] = run_by(self.target, kernels=cell.kernels, regime=cell.regime)
        return self._targets[key]

    @property
    def judge(self) -> TargetModel:
        """The target as the first cell runs it on a CPU: its rounding is that of the answers that it judges."""
        first = self.cells[0]
        return self._target_for(first) if first.kernels == "native" else self.target

    @property
    def judge_reader(self) -> Reader:
        """Who reads the prompts for the judge."""
        import torch

        return id(self.judge.llama), self.cells[0].threads or torch.get_num_threads()

    def method(self, cell: Cell) -> DecodingMethod:
        """Returns the cell's method, built on first use."""
        if cell.label not in self._methods:
            try:
                # a peer that starts a program tells it how many threads to take
                with torch_threads(cell.threads):
                    self._methods[cell.label] = config_of(cell).build(self._target_for(cell))
            except ValueError as error:
                raise HambenchError(f"{cell.label}: {error}") from error
        return self._methods[cell.label]

    def run(self, writer: RunWriter, work: Workload) -> None:
        """Makes the records; each is on disk before the next begins."""
        if not work.jobs:
            return
        self.warm_up(writer.append_telemetry)
        self._probe(writer, "start")
        load = CpuLoadMeter()
        began = time.perf_counter()
        num_made = num_remeasured = 0
        sample_records: list[SampleRecord] = []
        for turn in work.turns(writer.append_samples):
            cell = turn[0].cell
            if cell.batch > 1:
                from hambench.runner.batches import batch_records

                method, device = self.method(cell), str(self.target.device)
                for job, record in batch_records(self, method, turn, device=device):
                    writer.append_record(record)
                    num_made += 1
                    work.tell(job, num_made)
                continue
            for job in turn:
                if sample_records and record_key(sample_records[0])[1:] != job.key[1:]:
                    self._end_sample(sample_records)
                for attempt in itertools.count():
                    record = self.record(job, load)
                    writer.append_record(record)
                    is_last = attempt >= self._most_retakes(cell)
                    most_remeasured = int(MAX_REMEASURED_SHARE * work.num_jobs)
                    if not record.contaminated or is_last or num_remeasured >= most_remeasured:
                        break
                    num_remeasured += 1
                sample_records.append(record)
                num_made += 1
                work.tell(job, num_made)
                # before further samples are asked for: judging belongs to the time of these
                if len(sample_records) == len(self.cells):
                    self._end_sample(sample_records)
        self._end_sample(sample_records)
        writer.append_telemetry({"kind": "samples", "seconds": time.perf_counter() - began})
        self._probe(writer, "end")

    def _end_sample(self, records: list[SampleRecord]) -> None:
        if records and self.after_sample is not None and self._prompts is not None:
            self.after_sample(records, self._prompts)
        records.clear()

    def record(self, job: Job, load: CpuLoadMeter) -> SampleRecord:
        """Makes one record; an exception becomes the record's error, and the run goes on."""
        from hambench.engine.loop import generate

        method = self.method(job.cell)
        self._begin_repeat(job, method)
        opening = Opening(job)
        try:
            ask = self.ask(opening)
            with torch_threads(job.cell.threads):
                reset_peak_memory(str(self.target.device))
                opening.begin(_helpers(method), load)
                trace = generate(method, prompts=self._prompts_for(job), **ask)
                opening.end()
        # whatever one sample raises is that sample's: hours of others must not be lost to it
        except Exception as error:
            return opening.failed(error)
        return self.finished(opening, trace)

    def _begin_repeat(self, job: Job, method: DecodingMethod) -> None:
        """Makes a method forget earlier answers, the warm-up's and the last repeat's, where a cell begins a repeat."""
        if self._repeats.get(job.cell.label) != job.repeat:
            self._repeats[job.cell.label] = job.repeat
            forget = getattr(method, "forget", None)
            if forget is not None:
                forget()

    def _most_retakes(self, cell: Cell) -> int:
        """How often a timing is taken again: never where the method would find its own answer among earlier ones."""
        return 0 if config_of(cell).depends_on_order else self.options.max_remeasured

    def ask(self, opening: Opening) -> dict[str, Any]:
        """Returns the arguments of :func:`hambench.engine.loop.generate` for a record's sample.

        Raises:
            HambenchError: If the sample can't be asked.
        """
        job, target, options = opening.job, self.target, self.options
        assert target.tokenizer is not None
        sample = job.cell.asks(job.sample)
        if sample.turn > 1:
            sample = self._conversations.ask(sample, job.cell.label, job.repeat)
            opening.base["prompt"] = sample.prompt
        positions = job.cell.positions(target.context_length)
        prompt = self._encode(sample, positions)
        opening.sample, opening.num_truncated = sample, prompt.num_truncated
        return {
            "prompt_ids": prompt.ids,
            "params": options.params(sample, job.repeat),
            "eos_ids": () if options.ignore_eos else target.eos_ids,
            "stop": () if options.ignore_eos else sample.stop,
            "think_end": options.think_end,
            "decode_text": target.tokenizer.decode,
        }

    def finished(self, opening: Opening, trace: GenerationTrace) -> SampleRecord:
        """Returns the record of an answer."""
        from hambench.engine.text import answer_text, count_thinking, step_texts

        target, options, job, sample = self.target, self.options, opening.job, opening.sample
        assert target.tokenizer is not None
        try:
            throttles = (self._gpu.read().throttles or ()) if self._gpu is not None else ()
            text = answer_text(trace, target.tokenizer, sample.stop, think_end=options.think_end)
            pieces = step_texts(trace, target.tokenizer)
            self._conversations.note(sample, job.cell.label, job.repeat, text)
            thinking = None
            if options.think_end is not None:
                thinking = count_thinking(trace, target.tokenizer, options.think_end)
        except Exception as error:
            return opening.failed(error)
        record = SampleRecord(
            **opening.base,
            **opening.meanwhile,
            trace=trace,
            text=text,
            step_texts=pieces,
            truncated_tokens=opening.num_truncated,
            thinking_tokens=thinking,
            peak_memory_bytes=allocator_peak_bytes(str(target.device)),
            throttles=throttles,
        )
        return dataclasses.replace(record, contaminated=_is_contaminated(record))

    @cached_property
    def _prompts(self) -> ReadPrompts | None:
        from hambench.engine.requests.shared_prefill import ReadPrompts

        # in a batch cells take turns per block of samples: nobody reads what another has just read
        alone = all(cell.batch == 1 for cell in self.cells)
        shared = self.options.prefill == "shared" and self.target.device.type == "cpu" and alone
        return ReadPrompts() if shared and len(self.cells) > 1 else None

    def _prompts_for(self, job: Job) -> ReadPrompts | None:
        """What other cells have read of this sample; nothing where a cell is to be timed, or is asked again."""
        if self._prompts is not None:
            key = (job.sample.sample_id, job.repeat)
            asked = self._asked
            if asked is None or asked[0] != key or job.cell.label in asked[1] or job.reads_prompt:
                self._prompts.forget()
                asked = self._asked = (key, set())
            asked[1].add(job.cell.label)
        return self._prompts

    def _encode(self, sample: Sample, positions: int) -> Prompt:
        """The sample's prompt as ids, encoded once for all cells that ask it in turn."""
        from hambench.engine.text import encode_prompt

        key = (sample.prompt, sample.max_new_tokens, positions)
        if key not in self._encoded:
            encoded = encode_prompt(sample, self.target.tokenizer, context_length=positions)
            # a few at most: other limits, other contexts, other answers before
            if len(self._encoded) >= 2 * len(self.cells):
                self._encoded.clear()
            self._encoded[key] = encoded
        return self._encoded[key]

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt is read once for all cells with the same weights."""
        return self._prompts is not None

    def warm_up(self, append_telemetry: Callable[[dict[str, Any]], None]) -> None:
        """Builds and warms up every cell's method where that has not been done; calls ``append_telemetry`` for each."""
        for cell in self.cells:
            append_telemetry(self.warm_up_cell(cell))

    def warm_up_cell(self, cell: Cell) -> dict[str, Any]:
        """Warms up one cell once and returns its reading.

        On a CPU, a cell needs one pass if one earlier cell of its method, engine and threads used all that it uses
        (weights, kinds of cache, eviction rules): there is nothing left to pack, compile or page in. On a GPU each
        setting may capture graphs.
        """
        from hambench.engine.warmup import warm_up

        if cell.label in self._warmed:
            return self._warmed[cell.label]
        shares: str | None = None

        def is_warm(used: frozenset[Hashable]) -> bool:
            nonlocal shares
            setting = (cell.method, cell.regime, cell.kernels, cell.threads)
            if self.target.device.type == "cpu" and used:
                warm = (
                    label
                    for label, (own, all_used) in self._warm.items()
                    if own == setting and used <= all_used
                )
                shares = next(warm, None)
            if shares is None:
                self._warm[cell.label] = setting, used
            return shares is not None

        with torch_threads(cell.threads):
            readings = warm_up(
                self.method(cell),
                self.target.context_length,
                temperature=self.options.temperature,
                top_p=self.options.top_p,
                is_warm=is_warm,
            )
        self._warmed[cell.label] = {
            "kind": "warmup",
            "cell": cell.label,
            **dataclasses.asdict(readings),
            "shares": shares,
            "extra_weight_bytes": self.method(cell).extra_weight_bytes,
        }
        return self._warmed[cell.label]

    def _probe(self, writer: RunWriter, when: str) -> None:
        # what all threads read is no ceiling of a cell that has fewer
        for threads in dict.fromkeys(cell.threads for cell in self.cells) or (None,):
            with torch_threads(threads):
                measured = measure_bandwidth(str(self.target.device))
            writer.append_telemetry({"kind": "bandwidth", "when": when, **dataclasses.asdict(measured)})
        # after the probe: a GPU that was idle has had time to raise its clocks
        if self._gpu is not None:
            writer.append_telemetry({"kind": "gpu", "when": when, **dataclasses.asdict(self._gpu.read())})


def _is_contaminated(record: SampleRecord) -> bool:
    busy = (record.other_load or 0.0) > BUSY_LOAD
    return bool(record.throttles) or busy or record.share_alone > ALONE_SHARE


def _helpers(method: DecodingMethod) -> tuple[int, ...] | None:
    """Returns the processes on this machine that do a method's work, or ``None`` if some can't be found."""
    port = getattr(method, "local_port", None)
    found = () if port is None else listening_processes(port)
    # a server in this very process is counted as our own already
    return None if found is None else tuple(pid for pid in found if pid != os.getpid())
