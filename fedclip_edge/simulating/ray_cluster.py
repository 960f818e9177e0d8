"""Hosts of a run's devices on the machines of a Ray cluster (https://docs.ray.io).

Each worker is an actor with one core and one host. Features and labels are put into Ray's object
store once, which copies them once to each machine; the workers there share them.

Law: with equal processors and library versions, the results are those of one machine, byte for
byte. Partial sums are exact, so it does not matter which machine trains which device.
"""

from __future__ import annotations

import importlib.metadata
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from fedclip_edge.errors import ConfigError, RunError
from fedclip_edge.records import F32, I64
from fedclip_edge.simulating import workers
from fedclip_edge.simulating.host import Announcement, Answer, Host, Task
from fedclip_edge.simulating.pool import Pool
from fedclip_edge.simulating.splits import Device

_ANSWER_S = 5.0
_START_S = 300.0
_HOW_TO_START = (
    "start one with `ray start --head`, and join other machines with `ray start --address`"
)
_COMPARED = ("numpy", "torch")  # their versions decide about the bytes of a result


@dataclass(frozen=True)
class _Worker:
    actor: Any
    machine: str


class RayWorkers:
    """A context manager that starts workers on a Ray cluster, and ends them with the context.

    `address` is HOST:PORT of the cluster's head, or "auto" for the cluster that this machine
    belongs to. `count` is the number of workers; None takes all free cores. Entering the context
    raises ConfigError if Ray is not installed, for a malformed address or for more workers than the
    cluster has cores. It raises RunError if no cluster answers, if its machines have other versions
    than this one, and if the workers cannot be started.
    """

    def __init__(self, pool: Pool, address: str, count: int | None) -> None:
        self._pool = pool
        self._address = address
        self._count = count
        self._workers: list[_Worker] = []
        self._busy: list[_Worker] = []

    def __enter__(self) -> RayWorkers:
        try:
            self._start()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _start(self) -> None:
        _check_address(self._address)
        ray = _ray()
        _connect(ray, self._address)
        try:
            _check_versions(ray)
            count = _cores(ray, self._count)
            data = [ray.put(its) for its in (self._pool.vectors, self._pool.labels)]
            actor = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(RemoteHost)
            actors = [actor.remote(*data) for _ in range(count)]
            machines = ray.get([one.machine.remote() for one in actors], timeout=_START_S)
        except ray.exceptions.GetTimeoutError:
            raise RunError(
                f"the Ray cluster did not start its workers within {_START_S:.0f} s; if other jobs "
                "use its cores, wait for them or use fewer --workers"
            ) from None
        except ray.exceptions.RayError as error:
            raise RunError(
                f"the Ray cluster cannot start the workers: {_reason(error)}; `ray status` shows "
                "its machines"
            ) from error
        self._workers = [_Worker(*one) for one in zip(actors, machines, strict=True)]

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if ray := sys.modules.get("ray"):
            ray.shutdown()  # ends this job's actors as well

    def start_run(self, task: Task, devices: Sequence[Device]) -> None:
        """Start a run; all workers get about the same number of training pictures.

        Raises RunError if a worker or its machine is lost.
        """
        ray, parts = _ray(), workers.share_out(devices, len(self._workers))
        shared = ray.put(task)
        busy = [(one, part) for one, part in zip(self._workers, parts, strict=True) if part]
        _results(ray, [(one.machine, one.actor.start_run.remote(shared, its)) for one, its in busy])
        self._busy = [one for one, _ in busy]

    def run_round(self, announced: Announcement) -> list[Answer]:
        """Run one round on every worker that has devices; return one answer for each.

        Raises RunError if a worker or its machine is lost, and any exception that a worker's host
        raised.
        """
        ray = _ray()
        shared = ray.put(announced)
        asked = [(one.machine, one.actor.run_round.remote(shared)) for one in self._busy]
        found = _results(ray, asked)
        for answer in found:
            if isinstance(answer, BaseException):
                raise answer
        return found


class RemoteHost:
    """The actor: one host in a process of its own, on any machine of the cluster."""

    def __init__(self, vectors: F32, labels: I64) -> None:
        workers.prepare_process()
        self._vectors = vectors
        self._labels = labels
        self._host: Host | None = None

    def machine(self) -> str:
        return socket.gethostname()

    def start_run(self, task: Task, devices: Sequence[Device]) -> None:
        self._host = Host(task, devices, self._vectors, self._labels)

    def run_round(self, announced: Announcement) -> Answer | Exception:
        assert self._host is not None
        return workers.answer(self._host, announced)


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError(
            "--ray needs Ray, which is not installed; install it here and on every machine of the "
            "cluster: pip install 'fedclip-edge[simulate,cluster]'"
        ) from error
    return ray


def _check_address(address: str) -> None:
    """Check that the head of a cluster answers; raises ConfigError or RunError."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--ray {address}: expected HOST:PORT of the cluster's head, or auto")
    try:
        is_ray = _speaks_http2(host.strip("[]"), int(port))
    except OSError as error:
        raise RunError(
            f"no Ray cluster answers at {address}: {error.strerror or error}; check the address, "
            f"or {_HOW_TO_START}"
        ) from error
    if not is_ray:
        raise RunError(
            f"the server at {address} is not the head of a Ray cluster; check the port: the "
            "default of `ray start --head` is 6379"
        )


def _connect(ray: Any, address: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    except Exception as error:  # Ray raises errors of many classes here
        raise RunError(
            f"this machine cannot use the Ray cluster {address}: {_reason(error)}; run this "
            f"command on a machine of the cluster, or {_HOW_TO_START}"
        ) from error
    signal.signal(signal.SIGTERM, before)  # Ray's handler would end with another exit code


def _speaks_http2(host: str, port: int) -> bool:
    """Return whether the port's server begins as Ray's does; raises OSError if none answers.

    Ray itself tries for minutes to speak to any other server.
    """
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and empty settings
    with socket.create_connection((host, port), _ANSWER_S) as link:
        if os.environ.get("RAY_USE_TLS") == "1":
            return True
        try:
            link.sendall(preface)
            head = link.recv(9, socket.MSG_WAITALL)
        except (TimeoutError, ConnectionError):
            return False
    return head[3:4] == b"\4"  # the type of a frame with settings


def _check_versions(ray: Any) -> None:
    """Check that all machines of the cluster have this machine's versions; raises RunError."""
    compared = _COMPARED

    def versions() -> dict[str, str]:  # a local function travels as code: no package is needed
        found = {}
        for name in compared:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "none"
        try:
            found["fedclip-edge"] = __import__("fedclip_edge").__version__
        except ModuleNotFoundError:
            found["fedclip-edge"] = "none"
        return found

    nodes = [node for node in ray.nodes() if node["Alive"]]
    affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    task = ray.remote(num_cpus=0)(versions)
    answers = ray.get(
        [
            task.options(scheduling_strategy=affinity(node["NodeID"], soft=False)).remote()
            for node in nodes
        ],
        timeout=_START_S,
    )
    ours = versions()
    for node, theirs in zip(nodes, answers, strict=True):
        for name, version in ours.items():
            if theirs[name] != version:
                raise RunError(
                    f"the machine {node['NodeManagerAddress']} of the Ray cluster has {name} "
                    f"{theirs[name]}, but this one has {version}; install the same version on all "
                    "machines, and start Ray there again"
                )


def _cores(ray: Any, wanted: int | None) -> int:
    """Return the number of workers; raises ConfigError or RunError without enough cores."""
    all_, free = (
        int(its.get("CPU", 0)) for its in (ray.cluster_resources(), ray.available_resources())
    )
    if wanted is not None and wanted > all_:
        raise ConfigError(f"--workers {wanted}: the Ray cluster has only {all_} cores")
    if wanted is None and free < 1:
        raise RunError(
            f"none of the {all_} cores of the Ray cluster is free; wait for its other jobs"
        )
    return wanted or free


def _results(ray: Any, asked: Sequence[tuple[str, Any]]) -> list[Any]:
    """Wait for the results of workers; `asked` names the machine of each.

    Raises RunError if a worker is lost.
    """
    found = []
    for machine, result in asked:
        try:
            found.append(ray.get(result))
        except ray.exceptions.RayTaskError:
            raise  # a fault in our own code
        except ray.exceptions.RayError as error:
            raise RunError(
                f"the Ray cluster lost a worker on the machine {machine}, and with it the state of "
                "its devices; start the simulation again on the machines that `ray status` shows "
                f"(Ray's reason: {_reason(error)})"
            ) from error
    return found


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
