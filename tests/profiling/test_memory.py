from __future__ import annotations

from typing import Any

import torch

from hambench.profiling import memory


def test_kv_formula_equals_the_bytes_of_real_tensors() -> None:
    caches = [torch.zeros(2, 7, 3, 16, dtype=torch.bfloat16) for _ in range(5)]
    formula = memory.kv_formula_bytes(num_layers=5, num_kv_heads=3, head_dim=16, dtype_bytes=2, slots=7)
    assert formula == memory.storage_bytes(caches) == sum(c.numel() * 2 for c in caches)


def test_the_three_numbers_of_a_cache_agree_when_it_is_full_and_differ_when_it_is_not(target: Any) -> None:
    full = memory.measure_kv_memory(target.llama, capacity=32, slots=32)
    half = memory.measure_kv_memory(target.llama, capacity=32, slots=16)
    assert full.formula_bytes == full.storage_bytes == half.storage_bytes == 2 * half.formula_bytes
    assert full.formula_bytes == 32 * target.llama.new_cache(1).bytes_per_slot
    assert full.allocator_bytes is None


def test_views_of_one_storage_are_counted_once_and_in_full() -> None:
    whole = torch.zeros(1000)
    assert memory.storage_bytes([whole[:10], whole[500:], whole.view(10, 100)]) == 4000
