"""Hosts of a run's devices: in this process, or in single-threaded worker processes.

The features are written once to a temporary file, which every worker maps into its memory. In each
round a worker gets one model and returns one partial sum. Workers are forked from a process that
loads torch once for all of them, while the features are being written.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from fedclip_edge import log
from fedclip_edge.errors import DiskError, RunError
from fedclip_edge.processes.blas import limit_blas_threads
from fedclip_edge.records import F32, I64
from fedclip_edge.simulating.host import Announcement, Answer, Host, Task
from fedclip_edge.simulating.pool import Pool
from fedclip_edge.simulating.splits import Device

_END_S = 5.0
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_LOADED_ONCE = ["fedclip_edge.simulating.workers", "fedclip_edge.learning.training"]


class Hosts(Protocol):
    """The hosts of all devices of the current run."""

    def start_run(self, task: Task, devices: Sequence[Device]) -> None:
        """Start a run with these devices; it replaces the previous run."""

    def run_round(self, announced: Announcement) -> list[Answer]:
        """Run one round on every device; return one answer for each host."""


@dataclass(eq=False)
class Here:
    """A single host in this process; the caller sets torch's number of threads."""

    pool: Pool
    _host: Host | None = None

    def start_run(self, task: Task, devices: Sequence[Device]) -> None:
        self._host = Host(task, devices, self.pool.vectors, self.pool.labels)

    def run_round(self, announced: Announcement) -> list[Answer]:
        assert self._host is not None
        return [self._host.run_round(announced)]


class Workers:
    """A context manager that starts worker processes, each with one host.

    The workers end with the context, and also if this process ends. Entering the context raises
    RunError if they cannot be started, and DiskError if the features cannot be written for them.
    """

    def __init__(self, pool: Pool, count: int) -> None:
        self._pool = pool
        self._count = count
        self._links: list[Connection] = []
        self._busy: list[Connection] = []
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Workers:
        try:
            self._start()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _start(self) -> None:
        folder = Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fedclip-edge-"))
        )
        path = folder / "features.npy"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_LOADED_ONCE)
        _load_once()
        try:
            np.save(path, self._pool.vectors)
        except OSError as error:  # numpy's has no file name if the disk is full
            raise DiskError(
                f"the features cannot be written to {path}: {error.strerror or error}; free disk "
                "space there, or name another folder in the environment variable TMPDIR"
            ) from error
        for _ in range(self._count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=work, args=(theirs, path, self._pool.labels), daemon=True
            )
            try:
                process.start()
            except (EOFError, ConnectionError) as error:
                raise RunError(
                    "worker processes cannot be started, because the process that loads torch for "
                    "them ended; free memory if it ran out, otherwise check that "
                    "`python -c 'import torch'` works"
                ) from error
            theirs.close()
            self._links.append(ours)
            self._processes.append(process)

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for link in self._links:
            link.close()
        for process in self._processes:
            process.terminate()  # it has nothing to save, and an orderly shutdown of torch is slow
            process.join(_END_S)
            if process.is_alive():
                process.kill()
                process.join()
        self._stack.close()

    def start_run(self, task: Task, devices: Sequence[Device]) -> None:
        """Start a run; all workers get about the same number of training pictures.

        Raises RunError if a worker process ended.
        """
        parts = share_out(devices, len(self._links))
        self._busy = [link for link, part in zip(self._links, parts, strict=True) if part]
        for link, part in zip(self._links, parts, strict=True):
            if part:
                self._send(link, (task, part))

    def run_round(self, announced: Announcement) -> list[Answer]:
        """Run one round on every worker that has devices; return one answer for each.

        Raises RunError if a worker process ended, and any exception that a worker's host raised.
        """
        for link in self._busy:
            self._send(link, announced)
        answers = []
        for link in self._busy:
            try:
                answer = link.recv()
            except (EOFError, ConnectionError):
                self._gone(link)
            if isinstance(answer, BaseException):
                raise answer
            answers.append(answer)
        return answers

    def _send(self, link: Connection, message: object) -> None:
        try:
            link.send(message)
        except (BrokenPipeError, ConnectionError):
            self._gone(link)

    def _gone(self, link: Connection) -> None:
        process = self._processes[self._links.index(link)]
        process.join(_END_S)
        raise RunError(
            f"a worker process ended with code {process.exitcode}; if memory ran out (code -9), "
            "use fewer --workers or --devices"
        )


def _load_once() -> None:
    """Start the fork server, which loads the common modules; it does not receive Ctrl-C."""
    limit_blas_threads()
    resource_tracker.ensure_running()  # otherwise the fork server starts it and unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work(link: Connection, path: Path, labels: I64) -> None:
    """Main function of a worker process; it ends when the other end of `link` is closed.

    `path` is the file of the pool's features, float32 (N, D); `labels` is (N,).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    prepare_process()
    try:
        vectors: F32 = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        return  # the parent was interrupted while this worker was starting
    host: Host | None = None
    while True:
        try:
            message = link.recv()
            if isinstance(message, Announcement):
                assert host is not None
                link.send(answer(host, message))
            else:
                task, devices = message
                host = Host(task, devices, vectors, labels)
        except (EOFError, ConnectionError):
            return


def share_out(devices: Sequence[Device], workers: int) -> list[list[Device]]:
    """Share the devices among workers, so that all have about as many training pictures."""
    parts: list[list[Device]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for device in sorted(devices, key=lambda one: -len(one.train)):
        lightest = loads.index(min(loads))
        parts[lightest].append(device)
        loads[lightest] += len(device.train) + len(device.test) // 10 + 1
    return parts


def prepare_process() -> None:
    """Set up a process that does nothing but run a host."""
    from fedclip_edge.learning import training

    log.mute()
    training.use_one_thread()
    _keep_freed_memory()
    gc.freeze()  # so that garbage collections skip the loaded modules


def answer(host: Host, announced: Announcement) -> Answer | Exception:
    """Run one round on a host; return the exception that it raised, if any."""
    try:
        return host.run_round(announced)
    except Exception as error:  # noqa: BLE001 - raised again in the parent
        return error


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory for this process's next allocations.

    By default glibc returns blocks of a megabyte to the kernel, and every training step allocates
    them again. The resulting page faults take a tenth of a simulation's time. The function does
    nothing with another libc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # glibc's maximum
        mallopt(_M_TRIM_THRESHOLD, 2**30)
