"""Fixtures of the tests of HAMburger."""

import pytest


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Accelerate keeps its settings per process: another library's first use must not decide this test's."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
