import pytest
import torch

from hambench.engine.kvcache import KVCache
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
