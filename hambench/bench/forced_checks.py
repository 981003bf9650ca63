"""Checks the numerics of forced macro-steps before timing: kernels against torch, loops against direct launches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hambench.decoding import answered
from hambench.errors import HambenchError

if TYPE_CHECKING:
    from hambench.engine.cuda.early_exit import Loop
    from hambench.methods.hamburger.model import HamburgerModel


CHECKED_STEPS = 6


TOLERANCE = 0.05
"""Largest difference in P(continue) between torch's operations and the kernels, in bfloat16."""


def check_against_torch(plain: HamburgerModel, fused: HamburgerModel, prompt: list[int]) -> None:
    """Compares macro-steps on the kernels with torch's: while their tokens agree, P(continue) must agree.

    Tokens of random weights may differ after a rounding, which is not a fault; from there on nothing is compared.

    Raises:
        HambenchError: If they disagree.
    """
    from hambench.decoding import SamplingParams
    from hambench.methods.hamburger.device.session import DeviceSession
    from hambench.methods.hamburger.session import HamburgerSession

    settings = {**SETTINGS, "confidence": 0.0}
    params = SamplingParams(max_new_tokens=8)
    want, got = (
        answered(session.prefill())
        for session in (
            HamburgerSession(plain, prompt, params, **settings),
            DeviceSession(fused, prompt, params, **settings, loop="run-ahead"),
        )
    )
    for place, (a, b) in enumerate(zip(want.continue_probs, got.continue_probs, strict=True)):
        if not abs(a - b) <= TOLERANCE:
            raise HambenchError(
                f"P(continue) after token {place + 1} is {b:.4f} on the kernels and {a:.4f} on torch's operations: "
                "no speed is given"
            )
        if want.tokens[: place + 2] != got.tokens[: place + 2]:
            break


def check_loop(eager: HamburgerModel, graph: HamburgerModel, prompt: list[int], loop: Loop) -> None:
    """Compares a loop with direct launches of the same kernels: no bit may differ at any length.

    Raises:
        HambenchError: If they disagree.
    """
    from hambench.decoding import SamplingParams
    from hambench.methods.hamburger.device.session import DeviceSession

    params = SamplingParams(max_new_tokens=8 * CHECKED_STEPS)
    sessions = [DeviceSession(m, prompt, params, **SETTINGS, loop=loop) for m in (eager, graph)]
    for number in range(CHECKED_STEPS):
        steps = []
        for session in sessions:
            if number:
                session.macro_step.force(1 + number % 4)
            steps.append(answered(session.step() if number else session.prefill()))
        if steps[0] != steps[1]:
            raise HambenchError(
                f"macro-step {number} is {steps[1].tokens} in the {loop} loop and {steps[0].tokens} in direct "
                "launches: no speed is given"
            )


SETTINGS: dict[str, Any] = {"confidence": 0.5, "position_convention": "train"}
