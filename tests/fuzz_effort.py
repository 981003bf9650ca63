"""How long the fuzzers look: a short while at fixed seeds in every test run, longer at random with HAMBENCH_FUZZ=10."""

import os

from hypothesis import HealthCheck, settings

_ASKED = os.environ.get("HAMBENCH_FUZZ")

BOUNDED = settings(
    deadline=None,
    # the same examples in every test run: a find is a change of the code, and no other change turns red because of one
    derandomize=_ASKED is None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)


def examples(count: int) -> int:
    """Examples of a slow fuzzer, of ``count`` at full effort."""
    return max(5, count * int(_ASKED or "1") // 10)
