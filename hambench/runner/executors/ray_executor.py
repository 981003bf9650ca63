"""Makes records on a Ray cluster: one actor per GPU (or per CPU node), records streamed back to the single store.

All cells of a sample run on one worker, and only workers of one kind take part, so a comparison never mixes devices.
A lost worker is replaced and its sample repeated; a lost driver leaves a run that ``--resume`` finishes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hambench.errors import HambenchError
from hambench.machine.fingerprint import SPEED_KEYS, fingerprint
from hambench.runner.backend import backend_facts
from hambench.runner.executors.shards import Shards, largest_alike, make_shards
from hambench.runner.executors.worker import Worker, mismatch
from hambench.runner.generator import Job, Workload

if TYPE_CHECKING:
    from hambench.runner.generator import Generator
    from hambench.store import RunWriter

log = logging.getLogger(__name__)

MAX_LOST = 3
"""Workers that may be lost, over the whole run, before it gives up."""
_LOST = (ActorDiedError, ActorUnavailableError, RayActorError)
_CONNECT_S = 5.0


@dataclasses.dataclass(frozen=True)
class Place:
    """Node and GPU on which one worker runs."""

    node_id: str
    num_cpus: int
    num_gpus: int

    def __str__(self) -> str:
        device = f"{self.num_gpus} GPU" if self.num_gpus else f"{self.num_cpus} CPU cores"
        return f"node {self.node_id[:8]}: {device}"


@dataclasses.dataclass(eq=False)
class _Member:
    """A worker of this run."""

    name: str
    place: Place
    actor: Any
    job: Job | None = None


class RayExecutor:
    """Runs on a Ray cluster.

    Args:
        address: Address of a running cluster; by default one is started on this machine for the duration of the run.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = address
        self._num_named = 0

    def placement(self) -> tuple[str, ...]:
        """Returns one line per worker that a run would have."""
        with self._connected():
            return tuple(str(place) for place in places())

    def run(self, generator: Generator, writer: RunWriter, work: Workload) -> None:
        """Makes the records of ``work`` and writes each to disk as soon as it arrives.

        Raises:
            HambenchError: If the cluster can't be reached, runs other software, or loses too many workers.
        """
        if not work.jobs:
            return
        with self._connected():
            members = self._start(generator, writer)
            try:
                self._work(members, generator, writer, Shards(make_shards(work.jobs)), work)
            finally:
                for member in members:
                    ray.kill(member.actor)

    def _start(self, generator: Generator, writer: RunWriter) -> list[_Member]:
        """Starts and warms up workers that are of one kind and run the driver's software."""
        members = [self._new_member(place, generator) for place in places()]
        if not members:
            raise HambenchError("the Ray cluster has no CPU or GPU to work on")
        machines = {member: self._check(member, generator, writer) for member in members}
        alike = largest_alike(machines)
        for member in members:
            if member not in alike:
                log.warning("%s (%s) is another kind of machine: left out", member.name, member.place)
                ray.kill(member.actor)
        self._warm_up(alike, writer)
        return alike

    def _new_member(self, place: Place, generator: Generator) -> _Member:
        name = f"w{self._num_named}"
        self._num_named += 1
        options = {
            "num_cpus": place.num_cpus,
            "num_gpus": place.num_gpus,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(place.node_id, soft=False),
        }
        device = "cuda" if place.num_gpus else "cpu"
        facts = backend_facts(cell.kernels for cell in generator.cells)
        actor = (
            ray.remote(Worker).options(**options).remote(generator.cells, generator.options, device, facts)
        )
        return _Member(name, place, actor)

    def _check(self, member: _Member, generator: Generator, writer: RunWriter) -> tuple[object, ...]:
        """Returns a worker's kind of machine after checking that its software and model are the driver's."""
        environment, sha256 = _get(member.actor.describe.remote(), member)
        ours = {**fingerprint(), **backend_facts(cell.kernels for cell in generator.cells)}
        difference = mismatch(ours, environment)
        if difference is not None:
            raise HambenchError(
                f"{member.name} ({member.place}) runs other software: {difference} (driver → worker)"
            )
        if sha256 != generator.target.identity.sha256:
            raise HambenchError(
                f"{member.name} ({member.place}) has other weights under {generator.target.name!r}"
            )
        writer.append_telemetry(
            {"kind": "worker", "worker": member.name, "place": str(member.place), "environment": environment}
        )
        return tuple(environment.get(key) for key in SPEED_KEYS)

    def _warm_up(self, members: Sequence[_Member], writer: RunWriter) -> None:
        pending = {member: member.actor.prepare.remote() for member in members}
        for member, reference in pending.items():
            for reading in _get(reference, member):
                writer.append_telemetry({**reading, "worker": member.name})

    def _work(
        self,
        members: list[_Member],
        generator: Generator,
        writer: RunWriter,
        shards: Shards,
        work: Workload,
    ) -> None:
        running: dict[Any, _Member] = {}
        num_made = num_lost = 0

        def give(member: _Member) -> None:
            member.job = shards.next_job(member)
            if member.job is not None:
                running[member.actor.record.remote(member.job)] = member

        for member in members:
            give(member)
        while running:
            ready, _ = ray.wait(list(running), num_returns=1)
            member = running.pop(ready[0])
            try:
                record = ray.get(ready[0])
            except _LOST as error:
                num_lost += 1
                shards.lose(member)
                members.remove(member)
                if num_lost > MAX_LOST:
                    raise HambenchError(
                        f"{num_lost} Ray workers were lost; what was made is stored: resume it"
                    ) from error
                log.warning("%s (%s) was lost; its sample is made again", member.name, member.place)
                member = self._replace(member, generator, writer)
                members.append(member)
            except RayTaskError as error:
                raise _cause(error) from error
            else:
                assert member.job is not None
                writer.append_record(dataclasses.replace(record, worker=member.name))
                if shards.finish(member.job):
                    num_made += 1
                    work.tell(member.job, num_made)
            give(member)

    def _replace(self, lost: _Member, generator: Generator, writer: RunWriter) -> _Member:
        """Starts a new worker where the lost one ran, or on any node that is left."""
        alive = places()
        place = lost.place if lost.place in alive else next(iter(alive), None)
        if place is None:
            raise HambenchError("the Ray cluster has no node left; what was made is stored: resume it")
        member = self._new_member(place, generator)
        self._check(member, generator, writer)
        self._warm_up([member], writer)
        return member

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        if ray.is_initialized():
            yield
            return
        # nothing about a run is sent anywhere
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if self.address is None:
            # "local": a cluster that happens to run on this machine is joined only when asked for
            options |= {"address": "local", "include_dashboard": False, "object_store_memory": 100 * 2**20}
        else:
            check_address(self.address)
            options["address"] = self.address
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise HambenchError(
                f"can't join the Ray cluster {self.address or '(local)'}: {reason}"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


def places() -> list[Place]:
    """Returns the places for workers: one per GPU, or on a cluster without GPUs one per node with all its cores."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    resources = [(str(node["NodeID"]), node["Resources"]) for node in nodes]
    if any(each.get("GPU", 0) >= 1 for _, each in resources):
        return [Place(node_id, 1, 1) for node_id, each in resources for _ in range(int(each.get("GPU", 0)))]
    return [Place(node_id, int(each["CPU"]), 0) for node_id, each in resources if each.get("CPU", 0) >= 1]


def check_address(address: str) -> None:
    """Checks that something listens at ``host:port``; Ray itself would retry for minutes.

    Raises:
        HambenchError: If nothing listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        if address == "auto":
            return
        raise HambenchError(f"--ray-address is host:port or auto, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise HambenchError(f"no Ray cluster answers at {address}: {error}") from error


def _get(reference: Any, member: _Member) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise _cause(error) from error
    except _LOST as error:
        cause = getattr(error, "cause", None)
        reason = str(cause or error).strip().splitlines()[-1]
        raise HambenchError(f"{member.name} ({member.place}) could not start: {reason}") from error


def _cause(error: RayTaskError) -> Exception:
    """Returns the worker's exception as the local executor would have raised it."""
    cause = getattr(error, "cause", None)
    return (
        cause if isinstance(cause, HambenchError) else HambenchError(f"a Ray worker failed: {cause or error}")
    )
