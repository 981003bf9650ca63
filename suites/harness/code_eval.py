"""The ``code_eval`` metric (pass@k) in hambench's sandbox; replaces the one that lm-eval loads from the hub."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from hambench.errors import HambenchError


class CodeExecutionOffError(HambenchError):
    """Raised if scoring needs to run a program that the model wrote, and that is not allowed."""

    def __init__(self) -> None:
        super().__init__("not scored: running generated code is off; allow it with --allow-code-execution")


class CodeEval:
    """Has the interface of ``evaluate.load("code_eval")``; a program passes if it ends without an error."""

    def __init__(self) -> None:
        self.allowed = False
        self._importing = False

    @contextlib.contextmanager
    def allow(self, allowed: bool) -> Iterator[None]:
        """Allows or forbids running programs in the context."""
        before, self.allowed = self.allowed, allowed
        try:
            yield
        finally:
            self.allowed = before

    @contextlib.contextmanager
    def importing(self) -> Iterator[None]:
        """Runs no programs in the context, because lm-eval's modules run a test program on import."""
        before, self._importing = self._importing, True
        try:
            yield
        finally:
            self._importing = before

    def compute(
        self,
        *,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        timeout: float = 3.0,
        **_: Any,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """Estimates pass@k (Chen et al. 2021, equation 1) of candidate programs followed by their tests.

        Raises:
            CodeExecutionOffError: If running code was not allowed.
        """
        if self._importing:
            return {f"pass@{each}": 0.0 for each in k}, {}
        if not self.allowed:
            raise CodeExecutionOffError
        from hambench.suites.sandbox.supervisor import default_sandbox

        sandbox = default_sandbox()
        outcomes: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        for index, (test, candidates) in enumerate(zip(references, predictions, strict=True)):
            outcomes[index] = []
            for number, candidate in enumerate(candidates):
                outcome = sandbox.run(f"{candidate}\n{test}", timeout_s=timeout)
                outcomes[index].append((number, {"passed": outcome.passed, "result": outcome.reason}))
        totals = [(len(tries), sum(found["passed"] for _, found in tries)) for tries in outcomes.values()]
        return {
            f"pass@{each}": sum(pass_at_k(n, c, each) for n, c in totals) / len(totals)
            for each in k
            if all(n >= each for n, _ in totals)
        }, outcomes


def pass_at_k(num_tries: int, num_passed: int, k: int) -> float:
    """Returns the probability that one of ``k`` tries drawn without replacement from ``num_tries`` passes."""
    if num_tries - num_passed < k:
        return 1.0
    return 1.0 - math.comb(num_tries - num_passed, k) / math.comb(num_tries, k)


CODE_EVAL = CodeEval()
"""The instance that lm-eval's code tasks use once they are imported."""
