"""Child processes: they end when their parent ends, in any way."""

from __future__ import annotations

import os
import platform
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from system import DEADLINE_S, of_process, running

from fedclip_edge.errors import ConfigError
from fedclip_edge.processes.children import Children, how_it_ended, own_command
from fedclip_edge.storage.lock import lock_file

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def says_ready(child: subprocess.Popen[str]) -> None:
    """Wait for the first line of the child."""
    assert child.stdout is not None
    readable, _, _ = select.select([child.stdout], [], [], DEADLINE_S)
    assert readable, "the child printed nothing"
    assert child.stdout.readline() == "ready\n"


def test_children_end_on_leaving_the_last_one_first(tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    code = (
        "import signal, sys\n"
        "def end(*_):\n"
        "    open(sys.argv[1], 'a').write(sys.argv[2]); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    with Children() as children:
        for name in "abc":
            says_ready(
                children.start([sys.executable, "-c", code, str(ends), name], None, pipe=True)
            )
        assert not ends.exists()
    assert ends.read_text() == "cba"


def test_children_end_when_the_parent_fails() -> None:
    with pytest.raises(KeyError), Children() as children:  # noqa: PT012
        child = children.start(SLEEP, None)
        raise KeyError
    assert child.returncode == -signal.SIGTERM


def test_who_does_not_listen_is_killed() -> None:
    deaf = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True)\n"
        "while True: signal.pause()\n"
    )
    with Children() as children:
        child = children.start([sys.executable, "-c", deaf], None, pipe=True, ends_in_s=0.1)
        says_ready(child)
    assert child.returncode == -signal.SIGKILL


def test_who_ended_before_is_left_alone() -> None:
    with Children() as children:
        child = children.start([sys.executable, "-c", "raise SystemExit(3)"], None)
        assert child.wait(DEADLINE_S) == 3
    assert child.returncode == 3


def test_output_goes_where_it_was_asked_to(tmp_path: Path) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr)"
    with Children() as children:
        both = children.start([sys.executable, "-c", code], tmp_path / "both.log")
        assert both.wait(DEADLINE_S) == 0
        again = children.start([sys.executable, "-c", code], tmp_path / "both.log")
        assert again.wait(DEADLINE_S) == 0
        apart = children.start([sys.executable, "-c", code], tmp_path / "err.log", pipe=True)
        assert apart.stdout is not None
        assert apart.stdout.read() == "out\n"
    assert sorted((tmp_path / "both.log").read_text().split()) == ["err", "err", "out", "out"]
    assert (tmp_path / "err.log").read_text() == "err\n"


def test_control_c_reaches_the_parent_alone() -> None:
    with Children() as children:
        child = children.start(SLEEP, None)
        assert os.getpgid(child.pid) == child.pid != os.getpgid(0)


STARTS = """
import os
import threading

import numpy as np

from fedclip_edge.processes.children import Children


def multiply():
    matrix = np.ones((128, 128))
    while True:
        matrix @ matrix


for _ in range(3):
    threading.Thread(target=multiply, daemon=True).start()
with Children() as children:
    for _ in range(10):
        children.start(["/bin/true"], None).wait()
os._exit(0)
"""


def test_what_other_threads_do_holds_no_start_up() -> None:
    """Code between fork and exec made two of three starts hang in a lock of OpenBLAS."""
    for _ in range(4):
        subprocess.run([sys.executable, "-c", STARTS], timeout=DEADLINE_S, check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_command_starts_with_the_signals_that_python_ignores(tmp_path: Path) -> None:
    with Children() as children:
        command = ["grep", "SigIgn", "/proc/self/status"]
        assert children.start(command, tmp_path / "log").wait(DEADLINE_S) == 0
    ignored = int((tmp_path / "log").read_text().split()[1], 16)
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Popen raises it")
def test_a_command_that_is_not_there_says_so(tmp_path: Path) -> None:
    with Children() as children:
        assert children.start(["fedclip-nonesuch"], tmp_path / "log").wait(DEADLINE_S) == 1
    said = (tmp_path / "log").read_text()
    assert said == "fedclip-nonesuch cannot be started: No such file or directory\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only the Linux kernel can do this")
def test_children_end_with_a_parent_that_was_killed() -> None:
    code = (
        "import sys, time\n"
        "from fedclip_edge.processes.children import Children\n"
        "child = Children().start([sys.executable, '-c', 'import time; time.sleep(600)'], None)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    words = [sys.executable, "-c", code]
    with running(words, stdout=subprocess.PIPE, text=True) as dies:
        assert dies.stdout is not None
        orphan = int(dies.stdout.readline())
        assert is_running(orphan)
        dies.kill()
    deadline = time.monotonic() + DEADLINE_S
    while is_running(orphan):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """True if the process exists and is not a zombie (in a container, zombies may remain)."""
    status = of_process(pid, "stat")
    return bool(status) and status.rpartition(")")[2].split()[0] not in "ZX"


def test_our_own_command_is_this_installation() -> None:
    command = own_command("agent", "a b.toml", "--once")
    assert command[0] == sys.executable
    assert command[-3:] == ["agent", "a b.toml", "--once"]


def test_what_one_process_claims_another_cannot(tmp_path: Path) -> None:
    held = lock_file(tmp_path / "lock", "the folder")
    with pytest.raises(ConfigError, match="the folder is in use by another process"):
        lock_file(tmp_path / "lock", "the folder")
    held.close()
    lock_file(tmp_path / "lock", "the folder").close()


FAULTS = """
import resource
import sys

from fedclip_edge.simulating.workers import _keep_freed_memory


def steps():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        held = [bytearray(2**20) for _ in range(8)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


if sys.argv[1] == "keep":
    _keep_freed_memory()
steps()
print(steps())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting exists only in glibc")
def test_freed_memory_is_there_for_the_next_step() -> None:
    """Counts page faults: 50 steps of 8 MB are 100,000 pages."""
    default, kept = (
        int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("default", "keep")
    )
    assert default > 10_000
    assert kept < default / 100


def test_bytes_that_are_no_text_do_not_end_the_reading() -> None:
    code = r"import sys; sys.stdout.buffer.write(b'caf\xe9\nend\n'); sys.exit('why')"
    with Children() as children:
        child = children.start([sys.executable, "-c", code], None, pipe=True, errors_too=True)
        assert child.stdout is not None
        assert child.stdout.read() == "caf\\xe9\nend\nwhy\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended with code 0"),
        (3, "ended with code 3"),
        (-signal.SIGKILL, "was killed by SIGKILL"),
        (-250, "was killed by signal 250"),
    ],
)
def test_the_end_of_a_child_is_said_in_words(code: int, words: str) -> None:
    assert how_it_ended(code) == words
