"""Child processes that answer requests: their answers, errors, deaths and ends."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from system import DEADLINE_S, of_process, running

from fedclip_edge import log
from fedclip_edge.errors import BundleError, ConfigError, DataError, DiskError, WorkerError
from fedclip_edge.processes import heap
from fedclip_edge.processes.child_limits import ChildLimits
from fedclip_edge.processes.children import Children
from fedclip_edge.processes.worker import PausedError, Worker


class Desk:
    """The object of the child in these tests."""

    def __init__(self, start: int = 0) -> None:
        self.total = start

    def add(self, number: int) -> int:
        self.total += number
        return self.total

    def fail(self, error: Exception) -> None:
        log.event("before_the_error")
        raise error

    def fail_with_a_library(self) -> None:
        import sqlite3

        raise sqlite3.OperationalError("disk I/O error")

    def count(self, most: int, progress: Callable[[int, int], None]) -> str:
        for number in range(most):
            log.event("counting", number=number, path=self)
            progress(number + 1, most)
        return "done"

    def die(self, number: int) -> None:
        os.kill(os.getpid(), number)
        time.sleep(DEADLINE_S)

    def die_once(self, mark: str) -> str:
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return "worked"
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def take_memory(self, limit: int) -> int:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return len(bytearray(2 * limit))

    def wait(self, seconds: float) -> str:
        time.sleep(seconds)
        return "waited"

    def processors(self) -> int:
        return len(os.sched_getaffinity(0))

    def hoard(self, mb: int) -> None:
        held = b"x" * (mb * 10**6)
        while held:
            time.sleep(0.1)

    def niceness(self) -> int:
        return os.nice(0)

    def echo(self, data: bytes) -> bytes:
        return data

    def __str__(self) -> str:
        return "the desk"


class Broken:
    def __init__(self) -> None:
        raise BundleError("the bundle is not one; export it again")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the children find this file, and what it imports."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as made:
        yield made


def desk(children: Children, **settings: Any) -> Worker:
    settings.setdefault("arguments", lambda: (100,))
    return Worker(children, "desk", f"{__name__}:Desk", **settings)


@pytest.fixture
def worker(children: Children) -> Worker:
    return desk(children)


def test_it_answers_one_request_after_the_other_with_one_object(worker: Worker) -> None:
    assert worker.pid is None, "nothing was asked yet"
    assert [worker.ask("add", 1), worker.ask("add", 2)] == [101, 103]
    pid = worker.pid
    assert worker.ask("add", 0) == 103
    assert worker.pid == pid, "the same child"


def test_large_requests_and_answers_arrive_whole(worker: Worker) -> None:
    data = os.urandom(20_000_000)
    assert worker.ask("echo", data) == data


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("a: b"),
        BundleError("c"),
        DataError("d"),
        DiskError("e"),
        ValueError("f"),
        FileNotFoundError(2, "No such file or directory", "/nowhere"),
        ModuleNotFoundError("No module named 'torch'", name="torch"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_the_work_is_the_same_here_and_the_child_goes_on(
    worker: Worker, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.ask("add", 1)
    with pytest.raises(type(error)) as raised:
        worker.ask("fail", error)
    assert type(raised.value) is type(error)
    assert str(raised.value) == str(error)
    assert vars(raised.value) == vars(error)
    assert "in fail" in str(raised.value.__cause__), "the cause shows where in the child"
    assert "before_the_error" in capsys.readouterr().out
    assert worker.ask("add", 1) == 102


def test_an_error_of_a_library_is_told_without_loading_the_library_here(worker: Worker) -> None:
    with pytest.raises(RuntimeError, match=r"^OperationalError: disk I/O error$"):
        worker.ask("fail_with_a_library")


def test_an_object_that_cannot_be_made_is_an_error_each_time(children: Children) -> None:
    broken = Worker(children, "broken", f"{__name__}:Broken", tuple)
    for _ in range(2):
        with pytest.raises(BundleError, match="the bundle is not one; export it again"):
            broken.ask("add", 1)
        assert broken.pid is None


def test_log_lines_and_progress_arrive_in_order(
    worker: Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[int, int]] = []
    seen: list[str] = []
    with log.observed(lambda name, fields: seen.append(f"{name} {fields['number']} {len(told)}")):
        assert worker.ask("count", 3, progress=lambda *figures: told.append(figures)) == "done"
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert seen == ["counting 0 0", "counting 1 1", "counting 2 2"]
    assert capsys.readouterr().out.count('path="the desk"') == 3


def test_the_parent_goes_on_with_its_duties_while_it_waits(children: Children) -> None:
    calls: list[float] = []
    worker = desk(children, meanwhile=lambda: calls.append(time.monotonic()))
    worker.ask("add", 0)
    calls.clear()
    worker.ask("wait", 1.0)
    assert len(calls) >= 10


def test_it_is_asked_one_thing_at_a_time(children: Children) -> None:
    worker = desk(children)
    busy: list[bool] = []

    def meanwhile() -> None:
        busy.append(worker.is_busy)
        with pytest.raises(RuntimeError, match="the desk process already has a request"):
            worker.ask("add", 1)
        worker.rest(time.monotonic() + 1000)

    worker.meanwhile = meanwhile
    assert worker.ask("add", 1) == 101
    assert all(busy)
    assert not worker.is_busy


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT], ids=str)
def test_a_child_that_dies_again_is_an_error_with_the_signal(
    worker: Worker, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    said = f"the desk process was killed by {number.name}, twice in a row; often a machine has too"
    with pytest.raises(WorkerError, match=said):
        worker.ask("die", number)
    assert f'worker_died worker=desk reason="was killed by {number.name}"' in (
        capsys.readouterr().out
    )
    assert worker.ask("add", 1) == 101, "a new child works"


def test_work_whose_child_was_killed_is_done_by_another(worker: Worker, tmp_path: Any) -> None:
    assert worker.ask("die_once", str(tmp_path / "mark")) == "worked"


def test_a_child_that_was_killed_between_two_requests_is_replaced(
    worker: Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.ask("add", 1)
    first = worker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert worker.ask("add", 1) == 101
    assert worker.pid != first
    os.kill(worker.pid or 0, signal.SIGKILL)

    def is_taken_away() -> bool:
        worker.rest(time.monotonic())
        return not worker.is_running

    wait_for(is_taken_away)
    assert worker.ask("add", 1) == 101


def test_a_child_that_cannot_start_is_an_error(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WorkerError, match="the desk process ended with code 1, twice in a row"):
        worker.ask("add", 1)


def test_a_child_that_is_out_of_memory_is_an_error_and_ends(worker: Worker) -> None:
    worker.ask("add", 1)
    with pytest.raises(WorkerError, match=r"the desk process ran out of memory .*, twice in a row"):
        worker.ask("take_memory", 2**31)
    assert worker.ask("add", 1) == 101, "another child has no such limit"


def test_work_that_takes_too_long_is_ended(worker: Worker) -> None:
    worker.ask("add", 1)
    pid = worker.pid
    assert pid is not None
    with pytest.raises(WorkerError, match="the desk process took too long and was ended"):
        worker.ask("wait", DEADLINE_S, deadline_s=0.2)
    assert not is_running(pid)
    assert worker.ask("add", 1) == 101


def test_an_interrupt_ends_the_child_at_once(children: Children) -> None:
    worker = desk(children)
    worker.ask("add", 1)
    pid = worker.pid
    assert pid is not None

    def stop() -> None:
        raise SystemExit(0)

    worker.meanwhile = stop
    with pytest.raises(SystemExit):
        worker.ask("wait", DEADLINE_S)
    assert not is_running(pid)
    worker.meanwhile = lambda: None
    assert worker.ask("add", 1) == 101, "the answer is that of this request"


def test_an_error_of_the_duties_is_not_taken_for_a_death(children: Children) -> None:
    def stop() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        desk(children, meanwhile=stop).ask("add", 1)


def test_it_ends_when_it_has_nothing_to_do_and_starts_again(children: Children) -> None:
    worker = desk(children, idle_s=30.0)
    worker.ask("add", 1)
    pid, now = worker.pid, time.monotonic()
    assert pid is not None
    worker.rest(now + 25)
    assert worker.pid == pid
    worker.rest(now + 31)
    assert not worker.is_running
    assert not of_process(pid, "stat"), "not even a zombie is left"
    assert children._children == []
    assert worker.ask("add", 1) == 101


def test_freed_memory_goes_back_when_the_child_ends(worker: Worker) -> None:
    worker.ask("add", 1)
    with mock.patch.object(heap, "trim") as trim:
        worker.end()
        worker.end()  # there is no child any more
    assert trim.call_count == 1


def test_the_child_itself_needs_no_heavy_module() -> None:
    code = "import sys, fedclip_edge.processes.worker_child; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "fedclip_edge.processes.worker"} & set(done.stdout.split())


def test_its_priority_can_be_lower(children: Children) -> None:
    assert desk(children, limits=lambda: ChildLimits(nice=3)).ask("niceness") == min(
        19, os.nice(0) + 3
    )


def test_other_threads_hold_up_no_start(worker: Worker) -> None:
    """The child is spawned, never forked."""
    lock = threading.Lock()
    with lock:
        assert worker.ask("add", 1) == 101


PARENT = """
import os, sys
from fedclip_edge.processes import heap
from fedclip_edge.processes.children import Children
from fedclip_edge.processes.worker import Worker
worker = Worker(Children(), "desk", "test_worker:Desk", tuple)
worker.ask("add", 1)
print(worker.pid, flush=True)
worker.ask("wait", 600.0) if sys.argv[1] == "busy" else sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only the Linux kernel can do this")
@pytest.mark.parametrize("state", ["busy", "idle"])
def test_no_child_outlives_a_parent_that_was_killed(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    words = [sys.executable, "-c", PARENT, state]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with running(words, **pipes) as dies:
        assert dies.stdout is not None
        orphan = int(dies.stdout.readline())
        dies.kill()
    wait_for(lambda: not is_running(orphan))


def is_running(pid: int) -> bool:
    status = of_process(pid, "stat")
    return bool(status) and status.rpartition(")")[2].split()[0] not in "ZX"


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_pause_stops_the_child_and_its_work_goes_on_afterwards(children: Children) -> None:
    states: list[str] = []
    worker = desk(children)

    def meanwhile() -> None:
        if worker.pid is not None:
            states.append(of_process(worker.pid, "stat").rpartition(")")[2].split()[0])

    worker.meanwhile = meanwhile
    worker.is_paused = lambda: states.count("T") < 3
    assert worker.ask("add", 1, deadline_s=DEADLINE_S) == 101
    assert states.count("T") >= 3


def test_a_long_pause_ends_the_child_and_the_work(
    children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedclip_edge.processes.worker.PAUSE_S", 0.3)
    worker, paused = desk(children), [True]
    worker.is_paused = lambda: paused[0]
    with pytest.raises(PausedError):
        worker.ask("add", 1)
    assert not worker.is_running
    assert children._children == []
    paused[0] = False
    assert worker.ask("add", 1) == 101


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells it")
def test_a_child_that_takes_too_much_memory_is_ended(children: Children) -> None:
    worker = desk(children, limits=lambda: ChildLimits(memory_mb=100))
    with pytest.raises(WorkerError, match="MB of memory, more than its limit of 100 MB, twice"):
        worker.ask("hoard", 200, deadline_s=DEADLINE_S)
    assert worker.ask("add", 1) == 101


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux binds processes")
def test_other_limits_count_from_the_next_child_on(children: Children) -> None:
    limits = [ChildLimits()]
    worker = desk(children, limits=lambda: limits[0])
    assert worker.ask("processors") == len(os.sched_getaffinity(0))
    limits[0] = ChildLimits(processors=1)
    worker.rest(time.monotonic())
    assert worker.ask("processors") == 1
    limits[0] = ChildLimits(processors=10_000)
    worker.rest(time.monotonic())
    assert worker.ask("processors") == len(os.sched_getaffinity(0))
