"""How long the fuzzers look: a short while in every test run, ten times as long with HAMBENCH_FUZZ=10."""

import os


def examples(count: int) -> int:
    """Examples of a slow fuzzer, of ``count`` at full effort."""
    return max(5, count * int(os.environ.get("HAMBENCH_FUZZ", "1")) // 10)
