import mmap
import re
from pathlib import Path

import pytest
import torch

from hambench.engine import kvcache
from hambench.engine.kvcache import KVCache, ask_for_large_pages
from hambench.errors import ContextOverflowError


@pytest.fixture
def cache():
    return KVCache(num_layers=2, num_kv_heads=3, head_dim=4, capacity=8, dtype=torch.float32, device="cpu")


def rows(num_rows, value):
    return torch.full((3, num_rows, 4), float(value))


def write(cache, num_rows, value):
    for layer in range(2):
        seen = cache.write(layer, rows(num_rows, value), rows(num_rows, -value))
    cache.advance(num_rows)
    return seen


def test_every_layer_writes_to_the_same_slots_and_they_count_once(cache):
    write(cache, 3, 1)
    keys, values = write(cache, 2, 2)
    assert cache.slots == 5
    assert keys[0, :, 0].tolist() == [1, 1, 1, 2, 2]
    assert values[2, :, 3].tolist() == [-1, -1, -1, -2, -2]


def test_truncated_slots_are_overwritten_and_earlier_ones_kept(cache):
    write(cache, 4, 1)
    cache.truncate(2)
    keys, _ = write(cache, 1, 9)
    assert keys[0, :, 0].tolist() == [1, 1, 9]


@pytest.mark.parametrize("slots", [-1, 4])
def test_truncating_to_slots_that_are_not_in_use_is_refused(cache, slots):
    write(cache, 3, 1)
    with pytest.raises(ValueError, match=f"got {slots}"):
        cache.truncate(slots)


def test_a_full_cache_says_how_many_slots_are_needed(cache):
    write(cache, 8, 1)
    with pytest.raises(ContextOverflowError, match="holds 8 slots, 9 are needed"):
        cache.require(1)
    with pytest.raises(ContextOverflowError):
        cache.advance(1)


def test_bytes_in_use_follow_the_slots_and_bytes_reserved_the_capacity(cache):
    assert cache.bytes_per_slot == 2 * 2 * 3 * 4 * 4
    write(cache, 3, 1)
    assert cache.bytes_used == 3 * cache.bytes_per_slot
    cache.truncate(1)
    assert cache.bytes_used == cache.bytes_per_slot
    assert cache.storage_bytes == 8 * cache.bytes_per_slot


def test_a_cache_without_room_for_one_slot_is_refused():
    with pytest.raises(ValueError, match="capacity must be >= 1, got 0"):
        KVCache(num_layers=1, num_kv_heads=1, head_dim=1, capacity=0, dtype=torch.float32, device="cpu")


def numbered(cache, num_slots):
    """Slot i of layer l, head h holds 100 l + 10 h + i in its key, and the negative of it in its value."""
    heads = 10.0 * torch.arange(3)[:, None, None]
    keys = (heads + torch.arange(float(num_slots))[None, :, None]).expand(3, num_slots, 4)
    for layer in range(2):
        cache.write(layer, keys + 100 * layer, -(keys + 100 * layer))
    cache.advance(num_slots)


@pytest.mark.parametrize("owns_storage", [True, False])
def test_eviction_keeps_the_chosen_slots_of_each_head_and_goes_on_counting_positions(cache, owns_storage):
    cache.keys.fill_(torch.nan)  # free slots hold whatever was there before
    numbered(cache, 6)
    whole, per_slot = cache.keys, cache.bytes_per_slot
    before = whole.clone()
    cache.owns_storage = owns_storage
    kept = torch.tensor([[[0, 1, 5], [2, 3, 4], [0, 2, 4]], [[3, 4, 5], [0, 1, 2], [1, 3, 5]]])
    assert cache.evict(kept, spare=2) == (6 if owns_storage else 6 + 3) * per_slot
    keys, values = cache.in_use
    expected = kept + torch.tensor([0, 100])[:, None, None] + 10 * torch.arange(3)[None, :, None]
    assert torch.equal(keys[..., 0], expected.float())
    assert torch.equal(values[..., 3], -expected.float())
    assert (cache.slots, cache.capacity, cache.num_evicted, cache.next_position) == (3, 5, 3, 6)
    assert cache.bytes_used == 3 * per_slot
    assert cache.storage_bytes == 5 * per_slot
    if not owns_storage:  # a pool's storage keeps its size and its content
        assert torch.equal(whole.view(torch.int32), before.view(torch.int32))
    seen, _ = write(cache, 1, 9)
    assert seen[1, :, 0].tolist() == [*(kept[1, 1] + 110).tolist(), 9]
    assert cache.evict(torch.zeros(2, 3, 1, dtype=torch.int64), spare=1) == 4 * per_slot
    assert (cache.slots, cache.next_position) == (1, 7)


def test_slots_that_an_eviction_left_cant_be_rolled_back(cache):
    numbered(cache, 6)
    cache.evict(torch.arange(4).expand(2, 3, 4), spare=3)
    write(cache, 2, 1)
    cache.truncate(4)
    with pytest.raises(ValueError, match=r"slots must be in 4\.\.4 .*, got 3"):
        cache.truncate(3)


def flags_of(tensor):
    """What the system says of the memory in which a tensor begins."""
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        pytest.skip("the system does not say which memory was asked to lie on large pages")
    inside = False
    for line in smaps.read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            first, end = (int(number, 16) for number in bounds.groups())
            inside = first <= tensor.data_ptr() + mmap.PAGESIZE < end
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("the tensor's memory is not listed")


@pytest.fixture
def large_cache():
    """40 MiB each of keys and values: a mapping of its own, unless memory that others have given back is as large."""
    return KVCache(
        num_layers=40, num_kv_heads=4, head_dim=64, capacity=2048, dtype=torch.bfloat16, device="cpu"
    )


@pytest.mark.parametrize(("slots", "large"), [(2048, True), (1024, True), (1023, False)])
def test_large_pages_are_asked_for_where_at_least_half_of_a_cache_will_be_read(
    large_cache, slots, large, monkeypatch
):
    asked = []
    monkeypatch.setattr(kvcache, "ask_for_large_pages", lambda tensor: asked.append(tensor.data_ptr()))
    large_cache.expect(slots)
    assert asked == ([large_cache.keys.data_ptr(), large_cache.values.data_ptr()] if large else [])


def test_memory_that_is_asked_to_lie_on_large_pages_is_marked_by_the_system():
    # of its own: an allocator may give again what others have marked
    mapped = mmap.mmap(-1, 2**26, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    tensor = torch.frombuffer(mapped, dtype=torch.uint8)
    before = flags_of(tensor)
    if not ask_for_large_pages(tensor):
        pytest.skip("the system has no large pages to ask for")
    assert ("hg" in before, "hg" in flags_of(tensor)) == (False, True)
