"""Memory over the steps of one answer: caches in use, bytes held, activations, and the allocator's peak.

The allocator reports the bytes held: torch's own counters on a GPU, its recorded allocations on a CPU. Counting starts
just before the session opens, so it excludes weights, whose size is known separately. It also misses scratch memory
that a library allocates by itself (oneDNN, cuBLAS outside torch's workspace).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from hambench.decoding import DecodingMethod, SamplingParams
    from hambench.engine.language_model import LanguageModel
    from hambench.records import StepRecord

_RANGE = "hambench memory step"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPoint:
    """Memory at one step; the first is the prefill."""

    num_tokens: int
    """Tokens stored so far."""
    kv_bytes: int | None
    """Bytes of all caches in use after the step, as the method counts them."""
    held_bytes: int
    """Bytes that the allocator holds after the step: the caches' storage, used or not, and other session state."""
    peak_bytes: int
    """Most bytes that the allocator held during the step."""

    @property
    def activation_bytes(self) -> int:
        """Bytes that only the step itself needed: its peak minus the bytes held after it."""
        return self.peak_bytes - self.held_bytes


def memory_timeline(
    method: DecodingMethod, prompt_ids: Sequence[int], params: SamplingParams, *, device: str = "cpu"
) -> tuple[MemoryPoint, ...]:
    """Decodes one answer and reads the allocator around every step; the steps' times are not usable.

    Args:
        method: The built and warm method, so that one-time allocations do not count as activations.
        prompt_ids: The prompt.
        params: Limit and sampling; EOS is ignored.
        device: Device that the method runs on.
    """
    on_gpu = device.startswith("cuda")
    steps, levels = (_on_gpu if on_gpu else _on_cpu)(method, prompt_ids, params, device)
    points, num_tokens = [], 0
    for step, (held, peak) in zip(steps, levels, strict=True):
        num_tokens += len(step.tokens)
        points.append(
            MemoryPoint(num_tokens=num_tokens, kv_bytes=step.kv_bytes, held_bytes=held, peak_bytes=peak)
        )
    return tuple(points)


_Reading = tuple[list["StepRecord"], list[tuple[int, int]]]
"""Steps, and for each step the bytes held after it and its peak."""


def _on_gpu(
    method: DecodingMethod, prompt_ids: Sequence[int], params: SamplingParams, device: str
) -> _Reading:
    import torch

    from hambench.engine.loop import stream

    before = torch.cuda.memory_allocated(device)
    run = stream(method, prompt_ids, params)
    steps: list[StepRecord] = []
    levels: list[tuple[int, int]] = []
    while True:
        torch.cuda.reset_peak_memory_stats(device)
        step = next(run, None)
        if step is None:
            return steps, levels
        steps.append(step)
        held, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        levels.append((held - before, peak - before))


def _on_cpu(
    method: DecodingMethod, prompt_ids: Sequence[int], params: SamplingParams, device: str
) -> _Reading:
    from torch.profiler import ProfilerActivity, profile, record_function

    from hambench.engine.loop import stream

    run = stream(method, prompt_ids, params)
    steps: list[StepRecord] = []
    # a CPU allocator has no counters, but the profiler records every allocation and release
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        while True:
            with record_function(_RANGE):
                step = next(run, None)
            if step is None:
                break
            steps.append(step)
    # the last range held no step
    return steps, list(levels_of(_changes(profiler)))[: len(steps)]


@dataclass(frozen=True, slots=True)
class Change:
    """An allocation (positive), a release (negative), or the end of a step (``None``)."""

    at_ns: int
    num_bytes: int | None


def levels_of(changes: Sequence[Change]) -> Iterator[tuple[int, int]]:
    """Yields for each step the bytes held after it and the most held during it."""
    held = peak = 0
    for change in sorted(changes, key=lambda change: change.at_ns):
        if change.num_bytes is None:
            yield held, peak
            peak = held
        else:
            held += change.num_bytes
            peak = max(peak, held)


def _changes(profiler: Any) -> list[Change]:
    changes = []
    for event in profiler.profiler.kineto_results.events():
        name = event.name()
        if name == "[memory]":
            changes.append(Change(event.start_ns(), event.nbytes()))
        elif name == _RANGE:
            changes.append(Change(event.start_ns() + event.duration_ns(), None))
    return changes


@dataclass(frozen=True, slots=True, kw_only=True)
class KVMemory:
    """KV memory as three numbers not to be mixed: in use, reserved, and reported by the allocator."""

    formula_bytes: int
    """Exact integer: 2 · layers · KV heads · head dim · bytes of the type · slots in use."""
    storage_bytes: int
    """Bytes of the cache tensors' storages, reserved whether used or not."""
    allocator_bytes: int | None
    """Growth of the device's allocator when the cache was created; ``None`` on a CPU, which does not report it."""


def kv_formula_bytes(
    *, num_layers: int, num_kv_heads: int, head_dim: int, dtype_bytes: int, slots: int
) -> int:
    """Returns the bytes of keys and values of ``slots`` cached entries."""
    return 2 * num_layers * num_kv_heads * head_dim * dtype_bytes * slots


def measure_kv_memory(model: LanguageModel, *, capacity: int, slots: int) -> KVMemory:
    """Creates a cache of ``capacity`` slots and measures its memory with ``slots`` of them in use."""
    on_gpu = model.device.type == "cuda"
    before = _allocated(model.device) if on_gpu else 0
    cache = model.new_cache(capacity)
    shape = model.shape
    return KVMemory(
        formula_bytes=kv_formula_bytes(
            num_layers=shape.num_layers,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            dtype_bytes=model.dtype.itemsize,
            slots=slots,
        ),
        storage_bytes=storage_bytes([cache.keys, cache.values]),
        allocator_bytes=_allocated(model.device) - before if on_gpu else None,
    )


def storage_bytes(tensors: list[torch.Tensor]) -> int:
    """Returns the bytes of the distinct storages of some tensors; counts a storage with several views once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _allocated(device: torch.device) -> int:
    import torch

    return int(torch.cuda.memory_allocated(device))
