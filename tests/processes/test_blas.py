"""One thread for numpy in agents, in `predict` and in the workers of a simulation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkout import ROOT
from in_memory import class_texts
from system import descendants, of_process

from fedclip_edge.simulating.pool import Pool
from fedclip_edge.simulating.workers import Workers

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
VARIABLE = "OPENBLAS_NUM_THREADS"
COUNT = "import atexit, os; atexit.register(lambda: print(len(os.listdir('/proc/self/task'))))\n"


def threads_after(code: str, **environment: str) -> int:
    """The number of threads of a new interpreter after `code`."""
    inherited = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", COUNT + code],
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return int(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "arguments",
    [["agent", "none.toml"], ["predict", "none.png", "--bundle", "none"]],
    ids=lambda arguments: arguments[0],
)
def test_a_command_has_no_threads_of_blas(arguments: list[str], tmp_path: Path) -> None:
    code = (
        f"import os; os.chdir({str(tmp_path)!r})\n"
        "from fedclip_edge.cli.main import cli\n"
        f"try: cli({arguments!r}, standalone_mode=False)\nexcept Exception: pass\n"
        "import sys; assert 'numpy' in sys.modules\n"
    )
    alone = threads_after(code)
    assert alone == threads_after(code, OPENBLAS_NUM_THREADS="1")
    if threads_after("import numpy") > 1:  # otherwise the machine has one core, or another BLAS
        assert alone < threads_after(code, OPENBLAS_NUM_THREADS="2")


def test_workers_have_no_threads_of_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    classes = class_texts(dim=8)
    nobody = np.zeros(0, np.int64)
    vectors = np.zeros((0, 8), np.float32)
    pool = Pool(classes, "e" * 64, vectors, nobody, np.zeros(0, np.uint8), (), nobody)
    with Workers(pool, 1):
        environments = [of_process(pid, "environ").split("\0") for pid in descendants(os.getpid())]
        assert any(f"{VARIABLE}=1" in its for its in environments)
