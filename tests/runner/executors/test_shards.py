"""Who does what on a cluster, without one."""

from hambench.records import Cell, Sample
from hambench.runner.executors.shards import Shards, largest_alike, make_shards
from hambench.runner.executors.worker import mismatch
from hambench.runner.generator import Job


def job(cell, doc_id, repeat=0):
    sample = Sample(
        sample_id=f"s/t/{doc_id}",
        suite="s",
        task="t",
        category="c",
        doc_id=doc_id,
        prompt="p",
        stop=(),
        max_new_tokens=4,
    )
    return Job(Cell(method="vanilla", label=cell, knobs={}, model="m", dtype="float32"), sample, repeat)


JOBS = [job(cell, doc_id, repeat) for repeat in (0, 1) for doc_id in range(3) for cell in ("a", "b")]


def drain(shards, worker):
    done = []
    while (taken := shards.next_job(worker)) is not None:
        shards.finish(taken)
        done.append(taken.key)
    return done


def test_a_shard_is_every_cell_of_one_sample_and_no_job_is_lost():
    shards = make_shards(JOBS)
    assert [{j.sample.sample_id for j in shard} for shard in shards].count({"s/t/0"}) == 2
    assert all({j.cell.label for j in shard} == {"a", "b"} for shard in shards)
    assert sorted(j.key for shard in shards for j in shard) == sorted(j.key for j in JOBS)


def test_two_workers_never_share_a_sample():
    shards = Shards(make_shards(JOBS))
    owners = {}
    for _ in range(len(JOBS) // 2):
        for worker in ("w0", "w1"):
            taken = shards.next_job(worker)
            if taken is not None:
                owners.setdefault((taken.sample.sample_id, taken.repeat), set()).add(worker)
    assert len(owners) == 6
    assert all(len(workers) == 1 for workers in owners.values())


def test_a_lost_workers_sample_is_made_again_whole_and_counted_once():
    shards = Shards(make_shards(JOBS))
    first = shards.next_job("w0")
    assert shards.finish(first)
    second = shards.next_job("w0")
    assert second.sample == first.sample
    shards.lose("w0")
    again = [shards.next_job("w1"), shards.next_job("w1")]
    assert [j.key for j in again] == [first.key, second.key]
    assert [shards.finish(j) for j in again] == [False, True]
    assert len(drain(shards, "w1")) == len(JOBS) - 2


def test_a_worker_lost_between_samples_costs_nothing():
    shards = Shards(make_shards(JOBS))
    shards.lose("w9")
    assert len(drain(shards, "w0")) == len(JOBS)
    assert shards.num_waiting == 0


def test_only_the_most_common_kind_of_machine_works():
    assert largest_alike({"w0": "A", "w1": "B", "w2": "A"}) == ["w0", "w2"]
    assert largest_alike({}) == []


def test_other_software_is_named():
    driver = {"hambench": "0.1.0", "torch": "2.13.0", "cpu": "X"}
    assert mismatch(driver, driver | {"cpu": "Y"}) is None
    assert mismatch(driver, driver | {"torch": "2.11.0"}) == "torch 2.13.0 → 2.11.0"


def test_workers_keep_to_the_runs_instruction_set():
    driver = {"native_instruction_set": "avx512", "native_compiler": "g++ 12"}
    assert mismatch(driver, driver | {"native_compiler": "g++ 14"}) is None
    said = mismatch(driver, driver | {"native_instruction_set": "avx2"})
    assert said == (
        "native_instruction_set avx512 → avx2; set HAMBENCH_CPU_ISA=avx2 where the run is started"
    )
