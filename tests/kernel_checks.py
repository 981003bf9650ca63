"""What the kernel tests share: dtypes, tolerances with their reasons, and the two laws every op keeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

DTYPES = (
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.float16, id="fp16"),
    pytest.param(torch.bfloat16, id="bf16"),
)

RELATIVE_ERROR = {
    # other order of about 1500 float32 additions, and approximate exp and rsqrt on a GPU
    torch.float32: 5e-6,
    # one rounding to 11 bits: at most 2^-11 = 4.9e-4 of each element
    torch.float16: 5e-4,
    # one rounding to 8 bits: at most 2^-8 = 3.9e-3 of each element
    torch.bfloat16: 4e-3,
}
"""Largest ||got - want|| / ||want||, `want` being the float32 reference before it is rounded."""


def assert_close(got: Tensor, want: Tensor) -> None:
    """Compares with the tolerance of `got`'s dtype; NaN anywhere fails."""
    assert got.shape == want.shape
    error = (got.double() - want.double()).norm() / want.double().norm()
    assert error <= RELATIVE_ERROR[got.dtype], f"relative error {error:.3g} in {got.dtype}"


def assert_rows_independent(call: Callable[[Tensor], Tensor], rows: Tensor) -> None:
    """M-invariance: row i of one call for all rows has the bits of the call for that row alone."""
    together = call(rows)
    for i in range(rows.shape[0]):
        assert torch.equal(together[i : i + 1], call(rows[i : i + 1].contiguous())), f"row {i} differs"


def draw(*shape: int, dtype: torch.dtype, device: torch.device, spread: float = 1.0) -> Tensor:
    """Normal numbers, rounded to dtype."""
    return (torch.randn(*shape) * spread).to(dtype).to(device)


def draw_weight(
    rows: int, columns: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """A weight that keeps the size of its input: dense, or int8 with a float32 scale per row."""
    if dtype == torch.int8:
        weight = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, device=device)
        return weight, torch.rand(rows, device=device) * columns**-0.5 / 64
    return draw(rows, columns, dtype=dtype, device=device, spread=columns**-0.5), None


def flag(value: int, device: torch.device) -> Tensor:
    """A device scalar."""
    return torch.tensor([value], dtype=torch.int32, device=device)
