"""The temporary file of what simulated devices keep between rounds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import system
from hypothesis import given
from hypothesis import strategies as st
from in_memory import class_texts
from simulated import pool, task

from fedclip_edge.learning import training  # torch, before memory is traced
from fedclip_edge.records import Plan
from fedclip_edge.simulating.federation import federate
from fedclip_edge.simulating.settings import Line
from fedclip_edge.simulating.spill import SpillFile
from fedclip_edge.simulating.splits import deal, parse_split
from fedclip_edge.simulating.workers import Here

_NAMES = st.sampled_from(["a", "b", "c"])
_SIZES = st.lists(st.integers(0, 3000), max_size=3)


@given(st.lists(st.tuples(_NAMES, _SIZES), max_size=20))
def test_the_last_object_of_each_name_is_read(writes: list[tuple[str, list[int]]]) -> None:
    spill, expected = SpillFile(), {}
    for number, (name, sizes) in enumerate(writes):
        arrays = {str(n): np.full(size, number, np.float32) for n, size in enumerate(sizes)}
        spill.put(name, arrays)
        expected[name] = arrays
    for name in ("a", "b", "c"):
        found: dict[str, np.ndarray[Any, Any]] | None = spill.get(name, None)
        if name not in expected:
            assert found is None
            continue
        assert found is not None
        assert found.keys() == expected[name].keys()
        for key, array in expected[name].items():
            assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape)
            assert found[key].tobytes() == array.tobytes()


def test_an_array_that_was_read_can_be_changed() -> None:
    spill = SpillFile()
    spill.put("a", np.zeros((3, 4), np.float32))
    found = spill.get("a", np.ones(0, np.float32))
    found += 1
    assert found.sum() == 12


def test_an_object_is_written_over_the_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    spill = SpillFile()
    for number in range(50):
        spill.put("a", np.full(1000, number))
    assert spill._file is not None
    assert os.fstat(spill._file.fileno()).st_size < 3 * 8000


@pytest.mark.parametrize("line", ["federated", "local"])
def test_memory_does_not_grow_with_the_number_of_devices(line: Line) -> None:
    classes = class_texts(("ant", "bee"), 128)
    its = pool(300, classes)
    plan = Plan("fedclip", rounds=2)
    training.use_one_thread()
    size = 4 * (2 * 128 * 128 + 2 * 128)  # bytes of a model, and of a residual

    def after_a_round(devices: int) -> int:
        fleet = deal(its, parse_split("iid"), devices=devices, seed=0)
        tracemalloc.start()
        try:
            rounds = federate(task(plan, line, classes), fleet, Here(its))
            assert [next(rounds).round, next(rounds).round] == [0, 1]
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

    assert after_a_round(44) - after_a_round(4) < 40 * size / 10


_KEEPS = """
import sys, time
import numpy as np
from fedclip_edge.simulating.spill import SpillFile
spill = SpillFile()
for name in range(1000):
    spill.put(str(name), np.zeros(100))
print("written", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_process_that_ends(ending: signal.Signals, tmp_path: Path) -> None:
    with system.running(
        [sys.executable, "-c", _KEEPS],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert system.line_of(process) == "written"
        open_files = [str(p.readlink()) for p in Path(f"/proc/{process.pid}/fd").iterdir()]
        assert sum(str(tmp_path) in name for name in open_files) == 1
        process.send_signal(ending)
        process.wait(system.DEADLINE_S)
    assert list(tmp_path.iterdir()) == []


_FULL = """
import resource, signal, sys
import numpy as np
from simulated import pool, task
from fedclip_edge.errors import DiskError
from fedclip_edge.learning import training  # torch, before memory is traced
from fedclip_edge.records import Plan
from fedclip_edge.simulating.federation import federate
from fedclip_edge.simulating.splits import deal, parse_split
from fedclip_edge.simulating.workers import Here

its = pool()
fleet = deal(its, parse_split("iid"), devices=3, seed=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    list(federate(task(Plan("fedclip", rounds=2), sys.argv[1]), fleet, Here(its)))
except DiskError as error:
    print(error)
"""


@pytest.mark.one_python
@pytest.mark.parametrize("line", ["federated", "local"])
def test_a_full_disk_is_named(line: str, tmp_path: Path) -> None:
    support = Path(__file__).parents[1] / "support"
    ended = subprocess.run(
        [sys.executable, "-c", _FULL, line],
        env={
            **os.environ,
            "TMPDIR": str(tmp_path),
            "PYTHONPATH": f"{support}:{os.environ.get('PYTHONPATH', '')}",
        },
        capture_output=True,
        text=True,
        timeout=system.DEADLINE_S,
        check=False,
    )
    assert ended.stdout.startswith(
        "what the devices keep between rounds cannot be written in a temporary file in "
        f"{tmp_path}: File too large; free disk space there"
    ), ended.stderr
