"""Cost of capturing and scoring a suite, in seconds of a fresh process, imports included."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hambench.errors import HambenchError

FIXED_S, PER_SAMPLE_S = 3.0, 0.005
"""The budget: capturing and scoring together may add this many seconds, plus this many per sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteCost:
    """Cost of one suite in one fresh process."""

    suite: str
    num_samples: int
    capture_s: float
    """Seconds for capturing, imports included."""
    score_s: float
    peak_memory_bytes: int
    failed: int
    """Number of answers that could not be scored."""

    @property
    def total_s(self) -> float:
        """Seconds for capturing and scoring together."""
        return self.capture_s + self.score_s

    @property
    def budget_s(self) -> float:
        """Seconds that the budget allows."""
        return FIXED_S + PER_SAMPLE_S * self.num_samples


def measure(
    suite: str, *, data: Path | None = None, limit: int | None = None, repeats: int = 3
) -> list[SuiteCost]:
    """Measures a suite, each repeat in its own process; scores the gold answers, which cost most to compare.

    Raises:
        HambenchError: If the suite can't be captured.
    """
    request = json.dumps({"suite": suite, "data": None if data is None else str(data), "limit": limit})
    costs = []
    for _ in range(repeats):
        done = subprocess.run(
            [sys.executable, "-m", "hambench.bench.suites", request],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise HambenchError((done.stderr.strip().splitlines() or ["the measuring process failed"])[-1])
        costs.append(SuiteCost(**json.loads(done.stdout.strip().splitlines()[-1])))
    return costs


def _measure_here(request: dict[str, Any]) -> SuiteCost:
    import resource

    begin = time.perf_counter()
    from hambench.records import SampleRecord
    from hambench.suites import CaptureRequest, capture, score

    data = None if request["data"] is None else Path(request["data"])
    captured = capture(CaptureRequest(request["suite"], data=data, limit=request["limit"]))
    captured_at = time.perf_counter()
    records = [
        SampleRecord(
            cell="bench", sample_id=each.sample_id, prompt_hash=each.prompt_hash, text=_gold(each.references)
        )
        for each in captured.samples
    ]
    scores = score(captured.spec, {each.sample_id: each for each in captured.samples}, records)
    scored_at = time.perf_counter()
    return SuiteCost(
        suite=captured.suite,
        num_samples=len(captured.samples),
        capture_s=captured_at - begin,
        score_s=scored_at - captured_at,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        failed=sum(each.points is None for each in scores if each.primary),
    )


def _gold(references: Sequence[str]) -> str:
    return references[0] if references else ""


if __name__ == "__main__":
    from dataclasses import asdict

    print(json.dumps(asdict(_measure_here(json.loads(sys.argv[1])))))
