"""Runs on a two-node cluster on this machine: the local executor's tokens and scores, whatever gets lost."""

import importlib.util
import os
import signal

import psutil
import pytest
from native_fixtures import need_compiler

from hambench.errors import HambenchError
from hambench.runner.executors import get_executor
from hambench.runner.forecast.plan import plan_run, render_plan
from hambench.runner.request import RunRequest
from hambench.runner.start import resume_run, start_run
from hambench.runner.sweep import Sweep
from hambench.store import load_run

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'hambench[ray]'"
)


@pytest.fixture(scope="module")
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    yield made.address
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def asked(tiny_model, rows):
    def request(kernels="reference", **kwargs):
        methods = ("vanilla", "prompt_lookup")
        sweep = Sweep(model=str(tiny_model), methods=methods, dtype="float32", kernels=(kernels,))
        base = {
            "suite": "longbench",
            "tasks": ("lcc", "multifieldqa_en"),
            "data": rows,
            "limit": 3,
            "max_new_tokens": 6,
            "device": "cpu",
        }
        return RunRequest(sweep=sweep, **{**base, **kwargs})

    return request


@pytest.fixture(scope="module")
def local(asked, tmp_path_factory):
    return start_run(asked(), tmp_path_factory.mktemp("runs") / "local")


def tokens_of(run):
    return {(r.cell, r.sample_id, r.repeat): r.trace.token_ids for r in run.measured}


def scores_of(run):
    return {(s.cell, s.sample_id, s.repeat, s.metric): s.value for s in run.scores}


def workers_of(run):
    return {(r.sample_id, r.repeat): r.worker for r in run.measured}


@needs_ray
@pytest.mark.slow
def test_a_cluster_gives_the_same_tokens_and_scores(asked, local, cluster, tmp_path):
    seen = []
    run = start_run(
        asked(executor="ray", ray_address=cluster),
        tmp_path / "ray",
        progress=lambda job, done, of: seen.append((done, of)),
    )
    assert tokens_of(run) == tokens_of(local)
    assert scores_of(run) == scores_of(local)
    assert seen == [(number, len(local.measured)) for number in range(1, len(local.measured) + 1)]
    # both nodes worked, and every cell of a sample on one of them
    assert len(set(workers_of(run).values())) == 2
    assert len({(r.sample_id, r.worker) for r in run.measured}) == len(run.samples)
    named = {item["worker"]: item["environment"] for item in run.telemetry if item["kind"] == "worker"}
    assert all(named[worker]["torch"] for worker in workers_of(run).values())


@needs_ray
@pytest.mark.slow
def test_a_worker_killed_in_mid_run_costs_no_record(asked, local, cluster, tmp_path):
    killed = []

    def kill_one(job, done, of):
        if done == 3 and not killed:
            process = next(p for p in _workers() if p.pid not in killed)
            killed.append(process.pid)
            process.send_signal(signal.SIGKILL)

    run = start_run(asked(executor="ray", ray_address=cluster), tmp_path / "ray", progress=kill_one)
    assert len(killed) == 1
    assert tokens_of(run) == tokens_of(local)
    assert scores_of(run) == scores_of(local)


@needs_ray
@pytest.mark.slow
def test_a_lost_driver_is_resumed(asked, local, cluster, tmp_path):
    def stop(job, done, of):
        if done == 4:
            raise KeyboardInterrupt

    folder = tmp_path / "ray"
    with pytest.raises(KeyboardInterrupt):
        start_run(asked(executor="ray", ray_address=cluster), folder, progress=stop)
    assert not load_run(folder).complete
    run = resume_run(folder, executor="ray", ray_address=cluster)
    assert tokens_of(run) == tokens_of(local)
    assert scores_of(run) == scores_of(local)


@needs_ray
@pytest.mark.slow
def test_workers_with_other_software_are_refused(asked, cluster, tmp_path, monkeypatch):
    from hambench.runner.executors import ray_executor

    ours = ray_executor.fingerprint()
    monkeypatch.setattr(ray_executor, "fingerprint", lambda: ours | {"torch": "1.0"})
    with pytest.raises(HambenchError, match=r"w0 \(node .*\) runs other software: .*torch 1\.0 → "):
        start_run(asked(executor="ray", ray_address=cluster), tmp_path / "ray")


@needs_ray
@pytest.mark.slow
def test_workers_run_the_drivers_instruction_set(asked, cluster, tmp_path, monkeypatch):
    need_compiler()
    # the cluster's processes were started without it
    monkeypatch.setenv("HAMBENCH_CPU_ISA", "portable")
    run = start_run(asked("native", executor="ray", ray_address=cluster), tmp_path / "ray")
    assert run.header.environment["native_instruction_set"] == "portable"
    named = [item["environment"] for item in run.telemetry if item["kind"] == "worker"]
    assert [each["native_instruction_set"] for each in named] == ["portable", "portable"]
    assert {record.error for record in run.measured} == {None}


@needs_ray
@pytest.mark.slow
def test_a_plan_shows_where_the_work_would_be_done(asked, cluster):
    plan = plan_run(asked(executor="ray", ray_address=cluster))
    assert len(plan.placement) == 2
    assert "shared by 2 Ray workers" in render_plan(plan)


@needs_ray
@pytest.mark.parametrize(
    ("address", "said"),
    [("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9"), ("nowhere", "host:port or auto")],
)
def test_an_address_that_does_not_answer_is_one_clear_line(address, said):
    with pytest.raises(HambenchError, match=said):
        get_executor("ray", ray_address=address).placement()


def test_ray_that_is_not_installed_is_told_with_the_line_that_mends_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "hambench.runner.executors.ray_executor", raising=False)
    with pytest.raises(HambenchError, match=r"pip install 'hambench\[ray\]'"):
        get_executor("ray")


def test_other_executors_are_unknown_and_an_address_needs_ray():
    with pytest.raises(HambenchError, match="did you mean local"):
        get_executor("lokal")
    with pytest.raises(HambenchError, match="needs --executor ray"):
        get_executor("local", ray_address="h:1")


@needs_ray
@pytest.mark.slow
def test_the_overhead_of_ray_is_told_apart_from_its_start(tiny_model):
    from hambench.bench.overhead import measure_overhead
    from hambench.models.target import load

    (measured,) = measure_overhead(
        load(str(tiny_model), dtype="float32", device="cpu"),
        methods=("vanilla",),
        num_records=3,
        max_new_tokens=8,
        executor="ray",
    )
    assert measured.num_tokens == 3 * 8
    assert 0 < measured.steps_s < measured.wall_s
    assert measured.start_s > 0


def _workers():
    for process in psutil.Process().children(recursive=True):
        if process.is_running() and " ".join(process.cmdline()).startswith("ray::Worker"):
            yield process
