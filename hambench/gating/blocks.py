"""Paired blocks: base and head run in two fresh processes that alternate prompt by prompt.

The processes are fresh because memory layout and clock state differ between processes. They alternate because a
machine drifts within seconds, so that a disturbance slows both arms. The order of the arms alternates as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hambench.analysis.metrics import decode_seconds, decode_steps, num_decode_tokens
from hambench.gating.checks import CrashedError
from hambench.gating.worker_process import Arm, Side, Turn, Work, Worker, WorkerDiedError
from hambench.records import BUSY_LOAD, GenerationTrace

SIDES: tuple[Side, Side] = ("base", "head")
MAX_FAILED_BLOCKS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The measurements of one pair of fresh processes."""

    number: int
    turns: tuple[Turn, ...] = ()
    error: str | None = None
    """The reason that a process died."""
    throttled: tuple[str, ...] = ()
    """The GPU's own reasons for lowering its clocks."""

    @property
    def disturbed(self) -> bool:
        """Returns whether the GPU throttled, or other load hit every turn of most prompts on one side."""
        least: dict[Side, dict[int, float]] = {}
        for turn in self.turns:
            if turn.other_load is not None:
                seen = least.setdefault(turn.side, {})
                seen[turn.prompt] = min(turn.other_load, seen.get(turn.prompt, 1.0))
        return bool(self.throttled) or any(
            sum(load > BUSY_LOAD for load in seen.values()) > len(seen) / 2 for seen in least.values()
        )

    @property
    def other_load(self) -> float | None:
        """Returns the mean share of the machine's CPU time that other processes took."""
        loads = [turn.other_load for turn in self.turns if turn.other_load is not None]
        return sum(loads) / len(loads) if loads else None

    @property
    def log_ratio(self) -> float | None:
        """Returns ln(head's tokens per second / base's); ``None`` if a side measured nothing."""
        speeds = {}
        for side in SIDES:
            by_prompt: dict[int, list[Turn]] = {}
            for turn in self.turns:
                if turn.side == side:
                    by_prompt.setdefault(turn.prompt, []).append(turn)
            work = [fastest_work([turn.trace for turn in turns]) for turns in by_prompt.values()]
            tokens, seconds = sum(tokens for tokens, _ in work), math.fsum(seconds for _, seconds in work)
            if not tokens or not math.isfinite(seconds) or seconds <= 0:
                return None
            speeds[side] = tokens / seconds
        return math.log(speeds["head"] / speeds["base"])

    def answers(self, side: Side) -> dict[int, GenerationTrace]:
        """Returns the first trace of each prompt."""
        found: dict[int, GenerationTrace] = {}
        for turn in self.turns:
            if turn.side == side:
                found.setdefault(turn.prompt, turn.trace)
        return found

    def readings(self) -> dict[str, Any]:
        """Returns the block's raw readings, ready for JSON."""
        return {
            "number": self.number,
            "error": self.error,
            "throttled": list(self.throttled),
            "disturbed": self.disturbed,
            "turns": [
                {
                    "side": turn.side,
                    "prompt": turn.prompt,
                    "tokens": num_decode_tokens([turn.trace]),
                    "seconds": turn.seconds,
                    "other_load": turn.other_load,
                    "kernels": turn.kernels,
                }
                for turn in self.turns
            ],
        }


Progress = Callable[[str], None]


def fastest_work(traces: Sequence[GenerationTrace]) -> tuple[int, float]:
    """Returns decode tokens and seconds of one prompt, with each step at the fastest of its turns.

    Turns decode the same ids, so step i is the same work each time, and a disturbance can only slow it. A burst of
    other load is longer than a step and shorter than a turn, so it seldom hits the same step in every turn. If the
    answers differ between turns, they have no common steps; tokens and seconds are then those of the turn with the
    fewest seconds per token.
    """
    steps = [tuple(decode_steps([trace])) for trace in traces]
    if len({tuple(step.tokens for step in turn) for turn in steps}) > 1:
        each = [(num_decode_tokens([trace]), decode_seconds([trace])) for trace in traces]
        return min(each, key=lambda work: (work[1] / work[0] if work[0] else math.inf, work[1]))
    seconds = math.fsum(min(step.timed_s for step in same) for same in zip(*steps, strict=True))
    return num_decode_tokens(traces[:1]), seconds


def run_blocks(
    arms: Mapping[Side, Arm],
    work: Work,
    num_blocks: int,
    *,
    progress: Progress | None = None,
    run: Callable[[Mapping[Side, Arm], Work, int], Block] | None = None,
) -> list[Block]:
    """Measures blocks until ``num_blocks`` are good, and returns all of them in order.

    It repeats at most two blocks that died, and at most ``num_blocks`` / 2 disturbed ones.

    Args:
        arms: The two sides.
        work: The work of each block.
        num_blocks: Good blocks wanted.
        progress: Receives one line per block.
        run: Measures one block; tests replace it.

    Raises:
        CrashedError: If more than two blocks die.
    """
    measure = run if run is not None else run_block
    blocks: list[Block] = []
    extra = num_blocks // 2
    good = failed = 0
    while good < num_blocks:
        block = measure(arms, work, len(blocks))
        blocks.append(block)
        if block.error is not None:
            failed += 1
            if failed > MAX_FAILED_BLOCKS:
                raise CrashedError(f"{arms['head'].cell.label}: {block.error}")
        elif block.disturbed and extra > 0:
            extra -= 1
        else:
            good += 1
        if progress is not None:
            progress(_line(block, arms["head"].cell.label, good, num_blocks))
    return blocks


def counted(blocks: Sequence[Block], num_blocks: int) -> list[Block]:
    """Returns the blocks for statistics: the undisturbed ones, then the least disturbed to fill up."""
    alive = [block for block in blocks if block.error is None]
    ranked = sorted(alive, key=lambda block: (block.disturbed, block.other_load or 0.0))[:num_blocks]
    return sorted(ranked, key=lambda block: block.number)


def run_block(arms: Mapping[Side, Arm], work: Work, number: int) -> Block:
    """Measures one block; if a process dies, the block holds the error."""
    turns: list[Turn] = []
    before = _throttles()
    try:
        if work.together:
            with Worker(arms["base"], work) as base, Worker(arms["head"], work) as head:
                workers: dict[Side, Worker] = {"base": base, "head": head}
                for worker in workers.values():
                    worker.wait_until_ready()
                for turn in range(work.turns):
                    for prompt in range(len(work.prompts)):
                        swapped = (number + turn + prompt) % 2 == 1
                        for side in SIDES[::-1] if swapped else SIDES:
                            turns.append(workers[side].take_turn(side, prompt))
        else:
            for side in SIDES[::-1] if number % 2 else SIDES:
                with Worker(arms[side], work) as worker:
                    worker.wait_until_ready()
                    for _ in range(work.turns):
                        turns += [worker.take_turn(side, prompt) for prompt in range(len(work.prompts))]
    except WorkerDiedError as death:
        return Block(number=number, turns=tuple(turns), error=str(death))
    throttled = tuple(sorted({*before, *_throttles()}))
    return Block(number=number, turns=tuple(turns), throttled=throttled)


def _throttles() -> tuple[str, ...]:
    from hambench.machine.nvml import Gpu

    gpu = Gpu.open()
    return (gpu.read().throttles or ()) if gpu is not None else ()


def _line(block: Block, label: str, good: int, wanted: int) -> str:
    if block.error is not None:
        return f"{label}: block {block.number} died ({block.error}); repeating it"
    ratio = block.log_ratio
    shown = "no ratio" if ratio is None else f"x{math.exp(ratio):.3f}"
    others = "" if block.other_load is None else f", others took {block.other_load:.0%}"
    note = " (disturbed)" if block.disturbed else ""
    return f"{label}: block {good} of {wanted}: {shown}{others}{note}"
