"""Loops over parts, on a device that is late: order, the part too many, and what the host may read when."""

from __future__ import annotations

import logging

import pytest
import torch
from fake_launches import Queued, ScriptedParts

from hambench.engine.cuda.early_exit import available, loop_maker
from hambench.engine.cuda.graphs import EagerLauncher, GraphLauncher, _nest, log_once
from hambench.engine.cuda.staging import StagingBuffer

COUNTS = [1, 4, 2, 3, 1, 1, 4]


def chain_over(loop, counts, launches):
    state = StagingBuffer(ScriptedParts.FIELDS, "cpu")
    scripted = ScriptedParts(counts, state)
    chain = loop_maker(loop, launches, state).chain(scripted.parts)
    scripted.restart()
    return chain, scripted


@pytest.mark.parametrize("loop", ["run-ahead", "predicated", "conditional"])
def test_every_loop_ends_where_the_flag_says_and_brings_the_state_of_then(loop):
    chain, _ = chain_over(loop, COUNTS, Queued())
    assert [int(chain()["value"]) for _ in COUNTS] == [10 * i + count for i, count in enumerate(COUNTS)]


def test_running_ahead_launches_one_part_too_many_and_never_two():
    launches = Queued()
    chain, scripted = chain_over("run-ahead", [2, 4, 1], launches)
    chain()
    assert scripted.log == ["part 1", "part 2"], "the third is launched, and not waited for"
    assert len(launches.queue) == 1
    chain()
    assert scripted.log[2:] == ["skip 3", "part 1", "part 2", "part 3", "part 4"]
    assert not launches.queue, "there is no part after the last"
    chain()
    launches.flush()
    assert scripted.log[7:] == ["part 1", "skip 2"]


def test_running_ahead_launches_the_next_part_before_it_reads_the_flag_of_the_last():
    launches = Queued()
    chain, _ = chain_over("run-ahead", [4], launches)
    ahead = []
    run_through = launches.run_through

    def spy(number):
        ahead.append(launches.num_launched - number)
        run_through(number)

    launches.run_through = spy
    chain()
    assert ahead == [1, 1, 1, 0]


def test_a_part_too_many_of_the_last_run_does_not_disturb_the_next():
    # its copy to the host comes while the next run is under way: each part has a cell of its own
    chain, _ = chain_over("run-ahead", [1, 2, 1, 2], Queued())
    found = []
    for _ in range(8):
        state = chain()
        found.append((int(state["value"]) % 10, int(state["done"])))
    assert found == [(1, 1), (2, 1)] * 4


def test_stepwise_never_launches_a_part_too_many():
    chain, scripted = chain_over("stepwise", [2, 1], Queued())
    chain(), chain()
    assert scripted.log == ["part 1", "part 2", "part 1"]


def test_a_predicated_loop_is_launched_once_and_runs_every_part():
    launches = Queued()
    chain, scripted = chain_over("predicated", [2], launches)
    before = launches.num_launched
    chain()
    assert launches.num_launched - before == 1
    assert scripted.log == ["part 1", "part 2", "skip 3", "skip 4"]


def test_a_conditional_loop_is_launched_once_and_skips_whole_parts():
    launches = Queued()
    chain, scripted = chain_over("conditional", [2], launches)
    before = launches.num_launched
    chain()
    assert launches.num_launched - before == 1
    assert scripted.log == ["part 1", "part 2"]


def test_chains_share_the_parts_that_they_have_in_common():
    launches = Queued()
    state = StagingBuffer(ScriptedParts.FIELDS, "cpu")
    scripted = ScriptedParts([3], state)
    maker = loop_maker("run-ahead", launches, state)
    maker.chain(scripted.parts)
    maker.chain([lambda: None, *scripted.parts[1:]])
    assert launches.num_captured == 5


def test_without_conditional_nodes_the_loop_is_predicated_and_says_so_once(caplog):
    log_once.cache_clear()
    launches = Queued()
    launches.conditional = False
    with caplog.at_level(logging.WARNING, logger="hambench.engine.cuda.graphs"):
        assert [available("conditional", launches) for _ in range(2)] == ["predicated"] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "the loop is predicated instead of conditional: there is no such thing here"
    ]


def test_what_is_launched_as_it_comes_goes_step_by_step():
    assert available("conditional", EagerLauncher(torch.device("cpu"))) == "stepwise"
    chain, _ = chain_over("run-ahead", [3, 1], EagerLauncher(torch.device("cpu")))
    assert [int(chain()["value"]) for _ in range(2)] == [3, 11]


def test_an_unknown_loop_is_refused():
    with pytest.raises(ValueError, match=r"loop must be one of stepwise, .*, got 'while'"):
        available("while", Queued())


class Recorder:
    """Stands for torch's graph while conditional nodes are captured."""

    def __init__(self, log) -> None:
        self.log = log

    def begin_capture_to_if_node(self, going) -> None:
        self.log.append(f"if {bool(going)}")

    def end_capture_to_conditional_node(self) -> None:
        self.log.append("end")


def test_each_part_is_captured_inside_the_one_before_it():
    done, log = torch.zeros(1, dtype=torch.int32), []
    going = [torch.zeros((), dtype=torch.bool) for _ in range(2)]

    def second():
        log.append("second")
        done.fill_(1)

    _nest(Recorder(log), [lambda: log.append("first"), second, lambda: log.append("third")], going, done)
    # the predicates are computed where the flag stands then: not set, then set
    assert log == ["first", "if True", "second", "if False", "third", "end", "end"]


def test_a_body_that_fails_to_be_captured_ends_its_nodes():
    done, log = torch.zeros(1, dtype=torch.int32), []
    going = [torch.zeros((), dtype=torch.bool) for _ in range(2)]
    with pytest.raises(ZeroDivisionError):
        _nest(Recorder(log), [lambda: None, lambda: None, lambda: 1 // 0], going, done)
    assert log == ["if True", "if True", "end", "end"]


def test_conditional_nodes_need_the_calls_and_a_cuda_that_has_them(monkeypatch):
    graphs = GraphLauncher()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", type("Old", (), {}))
    assert "has no conditional graph nodes" in graphs.conditional_obstacle()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", type("New", (), {"begin_capture_to_if_node": None}))
    for version, there in (("12.4", True), ("13.0", True), ("12.1", False), (None, False)):
        monkeypatch.setattr(torch.version, "cuda", version)
        assert (graphs.conditional_obstacle() is None) is there


def test_packed_vectors_are_aligned_and_copied_together():
    fields = {"ids": (torch.int64, 3), "probs": (torch.float32, 3), "done": (torch.int32, 1)}
    packed = StagingBuffer(fields, "cpu")
    assert [packed[name].data_ptr() % 16 for name in fields] == [0, 0, 0]
    packed["ids"][:] = torch.tensor([4, 5, 6])
    packed["probs"][2], packed["done"][0] = 0.5, 1
    mirror = packed.host_copy()
    mirror.copy_(packed)
    assert mirror["ids"].tolist() == [4, 5, 6]
    assert (float(mirror["probs"][2]), int(mirror["done"])) == (0.5, 1)
    packed["done"].zero_()
    assert int(mirror["done"]) == 1
