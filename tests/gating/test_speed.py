"""The speed gate: silent where nothing changed, and not silent where something did.

The noise is simulated and its model is an assumption: processes that differ by 1 %, drift that wanders by 2 %, 3 % from
turn to turn, and bursts of other load that slow one turn in four by up to half. The verdicts are the gate's own.
"""

import dataclasses
import math
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_fixtures import need_compiler

from hambench.errors import HambenchError, UnknownNameError
from hambench.gating.blocks import Block, counted, run_blocks
from hambench.gating.checks import CrashedError, ExitCode, Verdict
from hambench.gating.config import SpeedGate, decide, validate_speed
from hambench.gating.noise import Calibration, load_calibration, refuse_below_floor, save_calibration
from hambench.gating.speed import (
    Pair,
    confirmed,
    gate_speed,
    loss_found,
    mean_log_ratio,
    near_exact_check,
    noise_floor,
    speed_check,
    t_quantile,
)
from hambench.gating.worker_process import Arm, Turn, Work
from hambench.records import Cell, GenerationTrace, StepRecord

CELL = Cell(method="vanilla", label="vanilla", knobs={}, model="toy", dtype="float32")
NUM_RUNS = 500


def simulated_logs(num_runs, *, slowdown=0.0, num_blocks=10, prompts=3, turns=3, seed=0):
    """ln(head / base) ``[num_runs, num_blocks]`` as blocks would give it: the fastest turn of each prompt counts."""
    rng = np.random.default_rng(seed)
    shape = (num_runs, num_blocks, turns, prompts, 2)
    process = rng.normal(0, 0.01, (num_runs, num_blocks, 1, 1, 2))
    walk = np.cumsum(rng.normal(0, 0.004, (num_runs, num_blocks * turns * prompts * 2)), axis=1)
    # the order of the two sides alternates from turn to turn, prompt to prompt, block to block
    indices = np.indices(shape[1:-1]).sum(axis=0) % 2 == 1
    drift = walk.reshape(shape)
    drift = np.where(indices[None, ..., None], drift[..., ::-1], drift)
    burst = np.where(rng.random(shape) < 0.25, rng.uniform(0, 0.5, shape), 0.0)
    seconds = np.exp(process + drift + rng.normal(0, 0.03, shape) + burst)
    seconds[..., 1] *= 1 + slowdown
    best = seconds.min(axis=2).sum(axis=2)
    return np.log(best[..., 0] / best[..., 1])


def called(threshold, **options):
    """Share of simulated gates that end as regressed: both the first set of blocks and the fresh one say so."""
    logs = simulated_logs(2 * NUM_RUNS, **options)
    first = [speed_check("vanilla", run, threshold=threshold) for run in logs[:NUM_RUNS]]
    again = [speed_check("vanilla", run, threshold=threshold) for run in logs[NUM_RUNS:]]
    both = [
        confirmed(a, b).verdict if a.verdict == "regressed" else a.verdict
        for a, b in zip(first, again, strict=True)
    ]
    return both.count("regressed") / NUM_RUNS


@pytest.mark.parametrize("threshold", [0.01, 0.03, 0.05])
def test_false_alarms_stay_below_the_nominal_rate(threshold):
    assert called(threshold, seed=1) <= 0.025


def test_without_an_effect_threshold_one_set_of_blocks_errs_at_its_nominal_rate():
    logs = simulated_logs(NUM_RUNS, seed=2)
    results = [mean_log_ratio(run) for run in logs]
    wrong = sum(result.high < 0 for result in results) / NUM_RUNS
    # 2.5 % nominal; five standard errors of 500 runs
    assert wrong <= 0.025 + 5 * math.sqrt(0.025 * 0.975 / NUM_RUNS)


@pytest.mark.parametrize(
    ("slowdown", "threshold", "power"), [(0.10, 0.05, 0.95), (0.10, 0.03, 0.99), (0.05, 0.03, 0.80)]
)
def test_slowdowns_are_found_with_the_stated_power(slowdown, threshold, power):
    assert called(threshold, slowdown=slowdown, seed=3) >= power


def test_a_change_below_the_threshold_is_no_regression():
    assert called(0.05, slowdown=0.02, seed=4) <= 0.025


def test_drift_does_not_favour_the_side_that_comes_first():
    # a machine that slows by 4 % within each block: orders that take turns cancel it
    logs = simulated_logs(NUM_RUNS, seed=5)
    assert abs(logs.mean()) < 5 * logs.std() / math.sqrt(logs.size)


@given(st.lists(st.floats(-1, 1), min_size=6, max_size=16), st.sampled_from([0.01, 0.05]))
def test_swapping_the_arms_mirrors_the_verdict(logs, threshold):
    there = speed_check("vanilla", logs, threshold=threshold)
    back = speed_check("vanilla", [-value for value in logs], threshold=threshold)
    mirror = {"regressed": "improved", "improved": "regressed"}
    assert mirror.get(there.verdict, there.verdict) == back.verdict
    assert there.p_value == pytest.approx(back.p_value)


def test_identical_blocks_are_equivalent_and_identical_losses_are_losses():
    assert speed_check("vanilla", [0.0] * 10, threshold=0.05).verdict == "equivalent"
    assert speed_check("vanilla", [-0.1] * 10, threshold=0.05).verdict == "regressed"


def test_a_single_block_decides_nothing():
    assert speed_check("vanilla", [-0.7], threshold=0.05).verdict == "inconclusive"


def test_five_blocks_are_too_few_for_a_difference():
    logs = [-0.3, -0.31, -0.29, -0.3, -0.32]
    assert speed_check("vanilla", logs, threshold=0.05).verdict == "inconclusive"


@pytest.mark.parametrize("logs", [[], [None], [None] * 10, [0.0] * 9 + [None]])
def test_a_block_that_measured_nothing_is_not_a_smaller_n(logs):
    check = speed_check("vanilla", logs, threshold=0.05)
    assert check.verdict == "not comparable"


def test_the_noise_floor_is_the_half_width_of_an_interval():
    assert noise_floor(0.05, 10) == pytest.approx(math.expm1(t_quantile(10) * 0.05 / math.sqrt(10)))
    assert noise_floor(0.05, 24) < noise_floor(0.05, 10)


@pytest.mark.parametrize("sd", [0.02, 0.04, 0.06])
def test_the_smallest_loss_that_is_printed_is_found_four_times_in_five_after_both_rounds(sd):
    rng = np.random.default_rng(6)
    printed = [
        speed_check("vanilla", rng.normal(0, sd, 10), threshold=0.05).minimum_detectable_effect
        for _ in range(200)
    ]
    loss = math.log1p(-float(np.mean(printed)))
    called_twice = 0
    for _ in range(400):
        first, second = (speed_check("vanilla", rng.normal(loss, sd, 10), threshold=0.05) for _ in range(2))
        called_twice += first.verdict == "regressed" and confirmed(first, second).verdict == "regressed"
    assert called_twice / 400 == pytest.approx(0.8, abs=0.07)
    assert loss_found(sd, 10, 0.05) == pytest.approx(float(np.mean(printed)), rel=0.05)


def test_a_loss_of_the_noise_floor_is_not_what_a_gate_finds():
    rng = np.random.default_rng(7)
    floor = noise_floor(0.06, 10)
    found = [
        speed_check("vanilla", rng.normal(math.log1p(-floor), 0.06, 10), threshold=0.01).verdict
        for _ in range(200)
    ]
    assert found.count("regressed") / 200 < 0.7
    assert loss_found(0.06, 10, 0.01) > floor


def test_calibration_tells_the_floor_from_the_loss_that_is_found():
    calibration = Calibration(
        schema_version=1, created_at="2026-01-02T03:04:05+00:00", machine="m", model="t", dtype="float32",
        method="vanilla", num_blocks=10, effect=0.0, sd=0.02,
    )  # fmt: skip
    note = refuse_below_floor(0.05, 10, calibration)
    assert f"{calibration.floor(10):.1%}" in note
    assert f"a loss of {calibration.loss_found(10, 0.05):.1%} would be detected 4 times in 5" in note


def plain_trace(num_tokens, *, first=0, seconds=0.01):
    steps = tuple(StepRecord(tokens=(first + i,), seconds=seconds) for i in range(num_tokens + 1))
    return GenerationTrace(prompt_tokens=3, finish="eos", steps=steps)


def test_turns_that_answer_differently_count_tokens_and_seconds_of_the_same_turn():
    turns = (
        Turn(side="base", prompt=0, trace=plain_trace(24)),
        Turn(side="base", prompt=0, trace=plain_trace(24)),
        Turn(side="head", prompt=0, trace=plain_trace(24)),
        Turn(side="head", prompt=0, trace=plain_trace(12, first=5)),
    )
    # every step of both sides takes 10 ms
    assert Block(number=0, turns=turns).log_ratio == pytest.approx(0, abs=1e-9)


# blocks of invented turns from here on


def trace(seconds, *, tokens=4, kv=100):
    steps = [StepRecord(tokens=(1,), seconds=1.0, kv_slots=3, kv_bytes=kv)]
    steps += [
        StepRecord(tokens=(2,), seconds=seconds / tokens, kv_slots=4, kv_bytes=kv) for _ in range(tokens)
    ]
    return GenerationTrace(prompt_tokens=3, steps=tuple(steps), finish="length")


def block(number=0, base=1.0, head=1.0, **changes):
    load = changes.pop("load", 0.0)
    turns = tuple(
        Turn(side=side, prompt=prompt, trace=trace(seconds), other_load=load)
        for side, seconds in (("base", base), ("head", head))
        for prompt in range(2)
    )
    return Block(number=number, turns=turns, **changes)


ARMS = {"base": Arm(cell=CELL), "head": Arm(cell=CELL)}


def test_the_fastest_turn_of_each_prompt_counts():
    slow = Turn(side="head", prompt=0, trace=trace(9.0))
    disturbed = block(base=2.0, head=2.0)
    disturbed = dataclasses.replace(disturbed, turns=(*disturbed.turns, slow))
    assert disturbed.log_ratio == pytest.approx(0.0)


def test_bursts_that_never_meet_one_step_twice_leave_no_trace():
    """Each turn is disturbed, but no step in all of them: the fastest whole turn would be 50 % off."""
    calm = block(base=2.0, head=2.0)
    turns = [turn for turn in calm.turns if turn.side == "base"]
    for disturbed in ((0, 1), (2, 3)):
        steps = list(trace(2.0).steps)
        for index in disturbed:
            steps[1 + index] = dataclasses.replace(steps[1 + index], seconds=1.0)
        turns.append(Turn(side="head", prompt=0, trace=dataclasses.replace(trace(2.0), steps=tuple(steps))))
    assert Block(number=0, turns=tuple(turns)).log_ratio == pytest.approx(0.0)


def test_a_stall_in_the_same_step_of_every_turn_counts():
    steps = list(trace(2.0).steps)
    steps[2] = dataclasses.replace(steps[2], seconds=1.5)
    stalled = Turn(side="head", prompt=0, trace=dataclasses.replace(trace(2.0), steps=tuple(steps)))
    base = Turn(side="base", prompt=0, trace=trace(2.0))
    assert Block(number=0, turns=(base, stalled, base, stalled)).log_ratio == pytest.approx(math.log(2 / 3))


def test_turns_that_answer_differently_count_whole():
    other = trace(2.0)
    steps = (*other.steps[:-1], dataclasses.replace(other.steps[-1], tokens=(3,)))
    turns = [
        Turn(side="base", prompt=0, trace=trace(2.0)),
        Turn(side="head", prompt=0, trace=trace(4.0)),
        Turn(side="head", prompt=0, trace=dataclasses.replace(other, steps=steps)),
    ]
    assert Block(number=0, turns=tuple(turns)).log_ratio == pytest.approx(0.0)


def test_speed_is_a_ratio_of_sums_over_prompts():
    turns = [Turn(side="base", prompt=p, trace=trace(s)) for p, s in ((0, 1.0), (1, 9.0))]
    turns += [Turn(side="head", prompt=p, trace=trace(s)) for p, s in ((0, 2.0), (1, 9.0))]
    assert Block(number=0, turns=tuple(turns)).log_ratio == pytest.approx(math.log(10 / 11))


@pytest.mark.parametrize("seconds", [math.nan, math.inf, 0.0])
def test_a_block_without_a_usable_time_has_no_ratio(seconds):
    assert block(head=seconds).log_ratio is None
    assert block(base=seconds).log_ratio is None


def test_an_answer_without_decode_tokens_has_no_ratio():
    short = GenerationTrace(prompt_tokens=1, steps=(StepRecord(tokens=(1,), seconds=1.0),), finish="eos")
    turns = tuple(Turn(side=side, prompt=0, trace=short) for side in ("base", "head"))
    assert Block(number=0, turns=turns).log_ratio is None


def measured_by(blocks):
    waiting = iter(blocks)
    return lambda arms, work, number: dataclasses.replace(next(waiting), number=number)


WORK = Work(prompts=())


def test_a_killed_block_is_taken_again():
    blocks = run_blocks(
        ARMS, WORK, 3, run=measured_by([block(), block(error="killed by signal 9"), block(), block()])
    )
    assert [b.error is None for b in blocks] == [True, False, True, True]
    assert len(counted(blocks, 3)) == 3


def test_blocks_that_keep_dying_are_a_crash_with_the_last_words():
    with pytest.raises(CrashedError, match="out of memory"):
        run_blocks(ARMS, WORK, 6, run=lambda *_: block(error="exit code 1: out of memory"))


def test_disturbed_blocks_are_taken_again_but_not_for_ever():
    blocks = run_blocks(ARMS, WORK, 6, run=lambda arms, work, number: block(number, load=0.6))
    assert len(blocks) == 6 + 3
    assert len(counted(blocks, 6)) == 6


def test_undisturbed_blocks_are_preferred():
    blocks = [block(0, load=0.5), block(1), block(2, load=0.3), block(3)]
    assert [b.number for b in counted(blocks, 3)] == [1, 2, 3]


def test_a_block_is_disturbed_only_if_most_prompts_had_no_quiet_turn():
    busy = block(load=0.5)
    quiet = tuple(dataclasses.replace(turn, other_load=0.0) for turn in busy.turns)
    assert busy.disturbed
    assert not dataclasses.replace(busy, turns=busy.turns + quiet).disturbed
    others = [dataclasses.replace(turn, prompt=number) for turn in quiet for number in (1, 2)]
    assert not dataclasses.replace(busy, turns=(*busy.turns, *others)).disturbed
    assert dataclasses.replace(busy, turns=(*busy.turns, *others[:1])).disturbed


def gate(logs_of_rounds, *, threshold=0.05, num_blocks=10, **changes):
    """The gate over blocks whose head is slower by given logs, a list a round."""
    rounds = iter(logs_of_rounds)
    pair = Pair(label="vanilla", base=ARMS["base"], head=ARMS["head"])
    outcome = gate_speed(
        [pair],
        WORK,
        num_blocks=num_blocks,
        threshold=threshold,
        base="a",
        head="b",
        measure=lambda arms, wanted: [
            block(i, head=math.exp(-log), **changes) for i, log in enumerate(next(rounds))
        ],
    )
    return decide(outcome, (), kind="speed", classes=("speed",))


def jitter(mean, seed):
    return list(np.random.default_rng(seed).normal(mean, 0.01, 10))


def test_a_confirmed_loss_fails_and_keeps_both_rounds():
    outcome = gate([jitter(-0.1, 0), jitter(-0.1, 1)])
    assert outcome.exit_code() == ExitCode.REGRESSED
    assert len(outcome.measurements["blocks"]["vanilla"]) == 2


def test_a_loss_that_fresh_blocks_do_not_show_is_undecided():
    outcome = gate([jitter(-0.1, 0), jitter(0.0, 1)])
    assert outcome.exit_code() == ExitCode.FINE
    assert outcome.exit_code(strict=True) == ExitCode.UNDECIDED
    assert "not confirmed" in outcome.checks[0].reason


@pytest.mark.parametrize("second", get_args(Verdict))
def test_only_blocks_that_say_so_take_a_loss_back(second):
    first = speed_check("vanilla", jitter(-0.1, 0), threshold=0.05)
    assert first.verdict == "regressed"
    again = dataclasses.replace(
        speed_check("vanilla", jitter(0.0, 1), threshold=0.05), verdict=second, reason="why"
    )
    check = confirmed(first, again)
    if second == "regressed":
        assert check.verdict == "regressed"
    elif second == "not comparable":
        assert check.verdict == "not comparable"
        assert check.reason == f"a loss of x{first.effect.value:.3f} could not be measured again; why"
    else:
        assert check.verdict == "inconclusive"
        assert "not confirmed: fresh blocks gave x" in check.reason


def test_a_loss_that_could_not_be_measured_again_does_not_pass():
    rounds = iter([{}, {"throttled": ("power cap",)}])
    pair = Pair(label="vanilla", base=ARMS["base"], head=ARMS["head"])
    outcome = gate_speed(
        [pair],
        WORK,
        num_blocks=10,
        threshold=0.05,
        base="a",
        head="b",
        measure=lambda arms, wanted: [
            block(i, head=math.exp(-log), **changes)
            for changes in [next(rounds)]
            for i, log in enumerate(jitter(-0.1, 0))
        ],
    )
    decided = decide(outcome, (), kind="speed", classes=("speed",))
    assert decided.exit_code() == ExitCode.INCOMPLETE
    assert "could not be measured again" in decided.checks[0].reason


def test_what_is_not_a_loss_is_not_measured_again():
    # a second round would end the iterator with an error
    assert gate([jitter(0.0, 0)]).exit_code(strict=True) == ExitCode.FINE
    assert gate([jitter(+0.2, 0)]).checks[0].verdict == "improved"


def test_throttled_blocks_give_no_verdict():
    outcome = gate([jitter(0.0, 0)], throttled=("power cap",))
    assert outcome.exit_code() == ExitCode.INCOMPLETE
    assert "power cap" in outcome.checks[0].reason


def test_a_crash_of_one_method_does_not_hide_the_others():
    def measure(arms, wanted):
        if arms["head"].cell.label == "broken":
            raise CrashedError("broken: exit code 1")
        return [block(i) for i in range(wanted)]

    broken = dataclasses.replace(CELL, label="broken")
    pairs = [Pair(label=c.label, base=Arm(cell=c), head=Arm(cell=c)) for c in (broken, CELL)]
    outcome = gate_speed(pairs, WORK, num_blocks=6, threshold=0.05, base="a", head="b", measure=measure)
    outcome = decide(outcome, (), kind="speed", classes=("speed",))
    assert outcome.exit_code() == ExitCode.CRASHED
    assert "vanilla" in {check.cell for check in outcome.checks}


def test_allocator_peaks_are_equal_within_a_whisker():
    gib = 2**30
    assert near_exact_check("vanilla", gib, gib + 2**20).verdict == "equivalent"
    assert near_exact_check("vanilla", gib, gib + 2**23).verdict == "regressed"
    assert near_exact_check("vanilla", gib, gib - 2**23).verdict == "improved"
    assert near_exact_check("vanilla", 0, 2**23).effect is None


# the noise floor


def calibration(sd=0.02, **changes):
    base = Calibration(
        schema_version=1,
        created_at="2026-01-31T12:00:00+00:00",
        machine="cpu-1",
        model="toy",
        dtype="float32",
        method="vanilla",
        kernels="auto",
        num_blocks=10,
        effect=0.001,
        sd=sd,
    )
    return dataclasses.replace(base, **changes)


def test_a_threshold_below_the_machines_noise_is_refused():
    noisy = calibration(sd=0.2)
    with pytest.raises(HambenchError, match="noise floor"):
        refuse_below_floor(0.05, 10, noisy)
    assert "noise floor" in refuse_below_floor(0.5, 10, noisy)
    assert "hambench calibrate" in refuse_below_floor(0.05, 10, None)


def test_the_newest_calibration_of_the_machine_and_model_counts(tmp_path):
    for made in (
        calibration(sd=0.5),
        calibration(sd=0.1, created_at="2026-02-01T12:00:00+00:00"),
        calibration(sd=0.9, created_at="2026-03-01T12:00:00+00:00", model="other"),
        calibration(sd=0.7, created_at="2026-03-01T12:00:00+00:00", kernels="reference"),
        calibration(sd=0.8, created_at="2026-03-01T12:00:00+00:00", machine="cpu-2"),
    ):
        save_calibration(tmp_path, made)
    found = load_calibration(tmp_path, machine="cpu-1", model="toy", dtype="float32", kernels="auto")
    assert found is not None
    assert found.sd == 0.1
    assert load_calibration(tmp_path, machine="cpu-3", model="toy", dtype="float32", kernels="auto") is None


# real processes


TOY = SpeedGate(model="toy", dtype="float32", max_new_tokens=8, turns=2)


def sleeping(folder: Path) -> dict[str, str]:
    """Environment of an arm whose vanilla sleeps 60 ms in each step."""
    (folder / "sitecustomize.py").write_text(
        "import time\n"
        "from hambench.methods import vanilla\n"
        "session = vanilla.VanillaSession\n"
        "step = session.step\n"
        "def slow(self):\n"
        "    time.sleep(0.06)\n"
        "    return step(self)\n"
        "session.step = slow\n"
    )
    return {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_sleep_in_one_method_shows_in_fresh_processes_and_its_counts_do_not_move(tmp_path):
    from hambench.gating.blocks import run_block
    from hambench.gating.gate import work_of

    arms = {"base": Arm(cell=CELL), "head": Arm(cell=CELL, environment=sleeping(tmp_path))}
    found = run_block(arms, work_of(TOY), 0)
    assert found.error is None
    # sides changed places from turn to turn
    assert [turn.side for turn in found.turns[:4]] == ["base", "head", "head", "base"]
    steps = [s.seconds for turn in found.turns if turn.side == "head" for s in turn.trace.steps[1:]]
    assert min(steps) >= 0.06
    ids = [{p: t.token_ids for p, t in found.answers(side).items()} for side in ("base", "head")]
    assert ids[0] == ids[1]
    swapped = run_block({"base": arms["head"], "head": arms["base"]}, work_of(TOY), 0)
    assert found.log_ratio < 0 < swapped.log_ratio


@pytest.mark.slow
def test_a_gates_kernels_are_those_of_a_run_and_a_block_says_which_ran():
    """What `hambench run` measures by default is what the gate gates."""
    from hambench.gating.blocks import run_block
    from hambench.gating.gate import single_cell, work_of

    need_compiler()
    asked = [
        single_cell(msgspec.structs.replace(TOY, **how), "vanilla") for how in ({}, {"kernels": "reference"})
    ]
    assert [cell.kernels for cell in asked] == ["auto", "reference"]
    found = run_block({"base": Arm(cell=asked[1]), "head": Arm(cell=asked[0])}, work_of(TOY), 0)
    assert found.error is None
    assert {(turn.side, turn.kernels) for turn in found.turns} == {("base", "reference"), ("head", "native")}
    assert {turn["kernels"] for turn in found.readings()["turns"]} == {"reference", "native"}


@pytest.mark.parametrize(
    ("base", "head", "note"),
    [
        ("native", "native", "measured on the native kernels"),
        ("reference", "native", "the sides ran on different kernels: base on reference, head on native"),
    ],
)
def test_a_gate_says_which_kernels_it_measured(base, head, note):
    def measure(arms, wanted):
        return [
            Block(
                number=number,
                turns=tuple(
                    Turn(side=side, prompt=0, trace=plain_trace(5), kernels=kernels)
                    for side, kernels in (("base", base), ("head", head))
                ),
            )
            for number in range(wanted)
        ]

    pairs = [Pair(label=label, base=Arm(cell=CELL), head=Arm(cell=CELL)) for label in ("a", "b")]
    outcome = gate_speed(pairs, WORK, num_blocks=6, threshold=0.05, base="b", head="h", measure=measure)
    assert outcome.notes == (note,)


def test_a_ratio_of_different_kernels_is_no_verdict_on_a_change():
    """Where a base can't build its kernels, its side runs on others: the head is not faster for that."""
    wanted_blocks = []

    def measured(kernels):
        def measure(arms, wanted):
            wanted_blocks.append(wanted)
            return [
                Block(
                    number=number,
                    turns=tuple(
                        Turn(
                            side=side,
                            prompt=0,
                            trace=plain_trace(5, first=9 * (kernels[side] == "reference")),
                            kernels=kernels[side],
                        )
                        for side in ("base", "head")
                    ),
                )
                for number in range(wanted)
            ]

        pair = Pair(label="a", base=Arm(cell=CELL), head=Arm(cell=CELL))
        outcome = gate_speed([pair], WORK, num_blocks=6, threshold=0.05, base="b", head="h", measure=measure)
        return {check.metric: check for check in outcome.checks}

    for side in ("base", "head"):
        checks = measured({"base": "native", "head": "native", side: "reference"})
        assert checks["tps"].verdict == "not comparable"
        assert "the sides ran on different kernels" in checks["tps"].reason
        # two kernels need not give the same ids, in float32 neither
        assert checks["token_ids"].verdict == "inconclusive"
    # not measured again: fresh blocks would run on the same two
    assert wanted_blocks == [6, 6]
    for kernels in ({"base": "native", "head": "native"}, {"base": None, "head": "native"}):
        # the second one is a base of before kernels were told
        checks = measured(kernels)
        assert {checks[metric].verdict for metric in ("tps", "token_ids")} == {"equivalent"}


def test_unknown_kernels_of_a_gate_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean native"):
        validate_speed(SpeedGate(kernels="natve"))


@pytest.mark.slow
def test_a_process_that_dies_leaves_a_block_with_its_last_words(tmp_path):
    from hambench.gating.blocks import run_block
    from hambench.gating.gate import work_of

    (tmp_path / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    arms = {"base": Arm(cell=CELL, environment={"PYTHONPATH": str(tmp_path)}), "head": Arm(cell=CELL)}
    assert "killed by signal 9" in run_block(arms, work_of(TOY), 0).error
    wrong = dataclasses.replace(CELL, knobs={"no_such_knob": 1})
    found = run_block({"base": Arm(cell=wrong), "head": Arm(cell=wrong)}, work_of(TOY), 0)
    assert "no_such_knob" in found.error


@pytest.mark.slow
def test_an_arm_that_imports_other_code_than_it_should_is_no_measurement(tmp_path):
    from hambench.gating.blocks import run_block
    from hambench.gating.gate import work_of

    arms = {"base": Arm(cell=CELL, code=tmp_path), "head": Arm(cell=CELL)}
    assert "instead of the version to be measured" in run_block(arms, work_of(TOY), 0).error
