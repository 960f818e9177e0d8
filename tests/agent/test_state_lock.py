"""The lock of state_dir: held once, and noticed when it is gone."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from fedclip_edge.agent.state_lock import LOCK, LOOK_S, lock_state_dir
from fedclip_edge.errors import ConfigError, DiskError


def test_one_agent_at_a_time_uses_the_folder(tmp_path: Path) -> None:
    with closing(lock_state_dir(tmp_path)) as held:
        held.look(0.0)
        with pytest.raises(ConfigError, match="in use by another process"):
            lock_state_dir(tmp_path)
    lock_state_dir(tmp_path).close()


@pytest.mark.parametrize("how", ["deleted", "replaced", "a file"])
def test_a_folder_that_vanishes_is_noticed_again_and_again(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    with closing(lock_state_dir(folder)) as held:
        held.look(0.0)
        shutil.rmtree(folder)
        if how == "replaced":
            folder.mkdir()
            (folder / LOCK).touch()
        if how == "a file":
            folder.touch()
        held.look(LOOK_S / 2)  # it does not look all the time
        for now in (LOOK_S, LOOK_S + 0.1):
            with pytest.raises(DiskError, match="deleted, replaced or unmounted"):
                held.look(now)
