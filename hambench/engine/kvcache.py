"""The KV cache of one sequence: preallocated, and indexed by slots rather than positions.

A *slot* is one key/value entry in every layer. A *position* is the rotary index by which a key was rotated before it
was stored. The two differ as soon as a method merges several tokens into one slot. So the cache counts slots only,
and the code that runs the layers chooses the positions. Rolling back sets a counter: nothing is copied or freed.
Eviction makes a smaller cache, each head with slots of its own; positions continue as if nothing had been evicted.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
from collections.abc import Callable

import torch

from hambench.errors import ContextOverflowError

SCALE_BYTES = 2
"""Bytes of the bfloat16 scale behind the codes of an int8 row."""
LARGEST_CODE = 127


class KVCache:
    """Keys and values of one sequence, ``[num_layers, KVH, capacity, Dh]`` each.

    Within a layer, a head's rows are contiguous slot after slot, as attention kernels read them.

    Args:
        num_layers: Layers that write to the cache.
        num_kv_heads: Key/value heads of a layer (KVH).
        head_dim: Elements of one head (Dh).
        capacity: Slots reserved.
        dtype: Element type.
        device: Where the storage lives.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be >= 1, got {capacity}")
        self._dtype = dtype
        row, stored = self._row(head_dim)
        size = (num_layers, num_kv_heads, capacity, row)
        self.keys = torch.empty(size, dtype=stored, device=device)
        self.values = torch.empty(size, dtype=stored, device=device)
        self._layers = list(zip(self.keys.unbind(0), self.values.unbind(0), strict=True))
        self.owns_storage = True
        """Whether nobody else uses the storage; a pool's must keep its size."""
        self._slots = 0
        self._num_evicted = 0
        self._fixed_slots = 0

    def _row(self, head_dim: int) -> tuple[int, torch.dtype]:
        """Returns elements and type of one head's row as it is stored."""
        return head_dim, self._dtype

    @property
    def slots(self) -> int:
        """Slots in use."""
        return self._slots

    @property
    def num_evicted(self) -> int:
        """Slots that were evicted, per head."""
        return self._num_evicted

    @property
    def fixed_slots(self) -> int:
        """Slots that an eviction has left, which can't be rolled back: positions among them have gaps."""
        return self._fixed_slots

    @property
    def next_position(self) -> int:
        """Rotary position of the next slot by default: evicted slots count."""
        return self._slots + self._num_evicted

    @property
    def is_plain(self) -> bool:
        """Whether slots are positions and elements are the model's: what every kernel can read."""
        return self._num_evicted == 0

    @property
    def rows_in_use(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the storage in use, ``[num_layers, KVH, slots, row]`` each."""
        return self.keys.narrow(2, 0, self._slots), self.values.narrow(2, 0, self._slots)

    @property
    def in_use(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values in use, ``[num_layers, KVH, slots, Dh]`` each: views."""
        return self.rows_in_use

    @property
    def capacity(self) -> int:
        """Slots reserved."""
        return self.keys.shape[2]

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of one slot: keys and values of every layer."""
        num_layers, num_kv_heads, _, head_dim = self.keys.shape
        return 2 * num_layers * num_kv_heads * head_dim * self.keys.element_size()

    @property
    def bytes_used(self) -> int:
        """Bytes of the slots in use."""
        return self._slots * self.bytes_per_slot

    @property
    def storage_bytes(self) -> int:
        """Bytes reserved, used or not."""
        return self.keys.untyped_storage().nbytes() + self.values.untyped_storage().nbytes()

    def truncate(self, slots: int) -> None:
        """Forgets every slot from ``slots`` on.

        Raises:
            ValueError: If ``slots`` is negative or more than are in use, or fewer than an eviction has left: those are
                no longer in the order of their positions.
        """
        if not self._fixed_slots <= slots <= self._slots:
            raise ValueError(
                f"slots must be in {self._fixed_slots}..{self._slots} (the slots in use), got {slots}"
            )
        self._slots = slots

    def evict(self, kept: torch.Tensor, *, spare: int) -> int:
        """Keeps some slots of each head and gives the memory of the others back.

        Args:
            kept: Slots to keep ``[num_layers, KVH, n]``, increasing in each head; ``n`` is at most the slots in use.
                Positions go on from where they were.
            spare: Slots reserved beyond the kept ones.

        Returns:
            The most bytes in use meanwhile: those before, since kept slots move to the front of the same storage; where
            that belongs to a pool, those of the smaller copy as well.
        """
        before, num_kept = self.bytes_used, kept.shape[2]
        self.keys, self.values = (
            _compacted(part, kept, num_kept + spare, in_place=self.owns_storage)
            for part in (self.keys, self.values)
        )
        self._layers = list(zip(self.keys.unbind(0), self.values.unbind(0), strict=True))
        self._num_evicted += self._slots - num_kept
        self._slots = self._fixed_slots = num_kept
        if self.owns_storage:
            return before
        self.owns_storage = True
        return before + self.bytes_used

    def require(self, slots: int) -> None:
        """Checks that ``slots`` more fit.

        Raises:
            ContextOverflowError: If they do not fit.
        """
        needed = self._slots + slots
        if needed > self.capacity:
            raise ContextOverflowError(f"the KV cache holds {self.capacity} slots, {needed} are needed")

    def expect(self, slots: int) -> None:
        """Prepares for ``slots`` more to be written: where they fill at least half of a CPU's cache, on large pages.

        A step reads the whole cache, and for each page a core looks up where it is and fetches nothing meanwhile. All
        heads lie in one tensor, so a large page has slots of several: few slots in a large cache would touch, and
        clear, nearly all of it.
        """
        if self.keys.device.type == "cpu" and self.owns_storage and 2 * slots >= self.capacity:
            ask_for_large_pages(self.keys)
            ask_for_large_pages(self.values)

    def write(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores ``[KVH, T, Dh]`` after the slots in use; returns all keys and values of the layer up to the new ones.

        Every layer writes to the same slots; :meth:`advance` then counts them once.
        """
        past, new = self._slots, keys.shape[1]
        layer_keys, layer_values = self._layers[layer]
        layer_keys.narrow(1, past, new).copy_(keys)
        layer_values.narrow(1, past, new).copy_(values)
        return layer_keys.narrow(1, 0, past + new), layer_values.narrow(1, 0, past + new)

    def advance(self, slots: int) -> None:
        """Counts ``slots`` more as in use.

        Raises:
            ContextOverflowError: If they do not fit.
        """
        self.require(slots)
        self._slots += slots


def _compacted(part: torch.Tensor, kept: torch.Tensor, capacity: int, *, in_place: bool) -> torch.Tensor:
    """Moves the kept rows of each head to the front of a smaller tensor ``[num_layers, KVH, capacity, row]``.

    Rows only move forward, head after head, so the smaller tensor can be the front of the same storage, cut to size.
    """
    num_layers, num_kv_heads, num_kept = kept.shape
    size = (num_layers, num_kv_heads, capacity, part.shape[3])
    smaller = part.view(-1)[: math.prod(size)].view(size) if in_place else part.new_empty(size)
    for layer in range(num_layers):
        for head in range(num_kv_heads):
            smaller[layer, head, :num_kept] = part[layer, head].index_select(0, kept[layer, head])
    if in_place:
        smaller.untyped_storage().resize_(smaller.nbytes)
    return smaller


class Int8KVCache(KVCache):
    """Keys and values in 8 bits, ``[num_layers, KVH, capacity, Dh + 2]`` bytes each: (Dh + 2) / (2 Dh) of bfloat16's.

    A row of Dh elements is Dh symmetric codes and one scale. Rows are quantised as they are written and never again.
    ``dtype`` is the type of the elements that attention gets; ``head_dim`` must be even.
    """

    def _row(self, head_dim: int) -> tuple[int, torch.dtype]:
        if head_dim % 2:
            raise ValueError(f"head_dim must be even for an int8 cache, got {head_dim}")
        return head_dim + SCALE_BYTES, torch.uint8

    @property
    def is_plain(self) -> bool:
        """See :class:`hambench.engine.kvcache.KVCache`."""
        return False

    @property
    def in_use(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What keys and values in use stand for, ``[num_layers, KVH, slots, Dh]`` each: copies."""
        keys, values = self.rows_in_use
        return dequantize_rows(keys, self._dtype), dequantize_rows(values, self._dtype)

    def write(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`hambench.engine.kvcache.KVCache`. What is returned was rounded, the new rows too."""
        seen_keys, seen_values = super().write(layer, quantize_rows(keys), quantize_rows(values))
        return dequantize_rows(seen_keys, self._dtype), dequantize_rows(seen_values, self._dtype)


def quantize_rows(rows: torch.Tensor) -> torch.Tensor:
    """Quantises rows ``[..., Dh]`` to bytes ``[..., Dh + 2]``: codes, then the scale.

    The scale is the largest magnitude of the row / 127, rounded to bfloat16; codes are multiples of the rounded scale.
    """
    wide = rows.float()
    scales = (wide.abs().amax(-1, keepdim=True) / LARGEST_CODE).to(torch.bfloat16)
    divisors = torch.where(scales == 0, torch.ones_like(scales), scales).float()
    codes = (wide / divisors).round().clamp(-LARGEST_CODE, LARGEST_CODE).to(torch.int8)
    return torch.cat([codes.view(torch.uint8), scales.view(torch.uint8)], dim=-1)


def dequantize_rows(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns what bytes ``[..., Dh + 2]`` of :func:`quantize_rows` stand for, ``[..., Dh]``."""
    codes = rows[..., :-SCALE_BYTES].view(torch.int8)
    scales = rows[..., -SCALE_BYTES:].view(torch.bfloat16)
    return (codes.float() * scales.float()).to(dtype)


def ask_for_large_pages(tensor: torch.Tensor) -> bool:
    """Asks the system to give a tensor large pages where it has not been written to yet.

    Returns:
        Whether the system takes such requests. It may still give small pages.
    """
    madvise = _madvise()
    if madvise is None or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return False
    # only whole pages may be named: the first and the last may have other owners
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    return end > first and madvise(first, end - first, mmap.MADV_HUGEPAGE) == 0


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """Returns the C library's function; ``None`` on systems other than Linux."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is None:
        return None
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    madvise: Callable[[int, int, int], int] = function
    return madvise
