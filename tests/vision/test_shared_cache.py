"""The feature cache that commands share: never in the way, and bounded."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
import system
from trained_run import write_mixed

from fedclip_edge.processes.children import own_command
from fedclip_edge.records import F32
from fedclip_edge.storage.user_cache import cache_folder
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.shared_cache import SharedCache, default_path

KEY = "a" * 64
_GOES_ON = "goes on without the feature cache, which only costs time: "


def features(first: int, count: int) -> dict[str, F32]:
    return {f"{n:064x}": np.full(512, n, np.float32) for n in range(first, first + count)}


def quiet(sentence: str) -> None:
    raise AssertionError(sentence)


def test_its_place_is_the_users_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for elsewhere in ("", "relative/folder"):  # the specification ignores relative ones
        monkeypatch.setenv("XDG_CACHE_HOME", elsewhere)
        assert cache_folder() == tmp_path / ".cache" / "fedclip-edge"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_path() == Path("/x/fedclip-edge/features.sqlite")


def test_without_a_home_folder_nothing_is_written_anywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "relative")
    said: list[str] = []
    SharedCache(default_path(), said.append).close()
    assert len(said) == 1
    assert list(tmp_path.iterdir()) == []


def test_it_is_for_the_user_alone(tmp_path: Path) -> None:
    SharedCache(tmp_path / "deep" / "er" / "f.sqlite", quiet).close()
    assert (tmp_path / "deep" / "er").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    with SharedCache(tmp_path / "open" / "f.sqlite", quiet) as cache:
        cache.put(features(0, 3), KEY)
        modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "open").iterdir()}
    assert modes == {0o600}


def test_features_that_were_not_used_for_longest_go_first(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    old, young, unknown = features(0, 300), features(1000, 300), features(2000, 300)
    with FeatureCache(path) as cache:
        for some in (old, young, unknown):
            cache.put(some, KEY)
        cache.note_use([*old, *young], KEY, 100)
        cache.note_use(list(young), KEY, 200)
        cache.note_use(list(young), KEY, 150)  # another process, with a slower clock
        assert cache.trim(5_000_000) == 0
        deleted = cache.trim(1_300_000)
        assert 400 <= deleted < 600
        assert len(cache) == 900 - deleted
        assert cache.get(list(young), KEY).keys() == young.keys()
        assert not cache.get(list(unknown), KEY)
        assert cache.trim(1_300_000) == 0


def test_the_file_does_not_grow_past_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    for start in range(0, 3000, 300):
        with SharedCache(path, quiet, most_bytes=2_000_000) as cache:
            cache.put(features(start, 300), KEY)
            assert len(cache.get(list(features(start, 300)), KEY)) == 300
    assert path.stat().st_size < 4_500_000  # the bound and one run's features
    with FeatureCache(path) as inner:
        assert 300 <= len(inner) <= 1000


@pytest.mark.parametrize("kind", ["below a file", "a folder", "no database", "another database"])
def test_a_file_that_cannot_be_used_is_named_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    if kind == "below a file":
        path.write_text("")
        path /= "g.sqlite"
    elif kind == "a folder":
        path.mkdir()
    elif kind == "no database":
        path.write_bytes(b"no database" * 1000)
    else:
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("CREATE TABLE other (x)")
    said: list[str] = []
    with SharedCache(path, said.append) as cache:
        for _ in range(2):
            assert cache.get(["p"], KEY) == {}
            cache.put({"p": np.ones(3, np.float32)}, KEY)
    (sentence,) = said
    assert sentence.startswith(_GOES_ON)
    assert str(path.parent if kind == "below a file" else path) in sentence


def test_another_file_is_not_called_a_damaged_cache(tmp_path: Path) -> None:
    """Otherwise the advice would be to delete a file that the user needs."""
    path = tmp_path / "thesis.txt"
    path.write_text("Chapter 1\n" * 1000)
    said: list[str] = []
    SharedCache(path, said.append).close()
    assert said[0].startswith(f"{_GOES_ON}{path} is not a feature cache, or is badly damaged; name")
    assert path.read_text() == "Chapter 1\n" * 1000


def test_copies_of_a_picture_count_as_found(tmp_path: Path) -> None:
    with SharedCache(tmp_path / "f.sqlite", quiet) as cache:
        cache.put(features(0, 1), KEY)
        (known,) = features(0, 1)
        cache.get([known, known, "unknown"], KEY)
        assert cache.found == 2


def test_a_file_that_breaks_on_the_way_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    said: list[str] = []
    with SharedCache(path, said.append) as cache:
        cache.put(features(0, 3), KEY)
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("DROP TABLE feature")
        assert cache.get(list(features(0, 3)), KEY) == {}
        cache.put(features(0, 3), KEY)
    assert len(said) == 1


@pytest.mark.parametrize("how", ["an earlier version", "no database", "damaged"])
def test_in_its_own_place_one_that_cannot_be_used_is_made_anew(how: str, tmp_path: Path) -> None:
    own, named = default_path(), tmp_path / "mine.sqlite"
    for path in (own, named):
        FeatureCache(path).close()
        if how == "an earlier version":
            with closing(sqlite3.connect(path, isolation_level=None)) as database:
                database.execute("PRAGMA user_version = 2")
        elif how == "no database":
            path.write_bytes(b"no database" * 1000)
        else:
            path.write_bytes(path.read_bytes()[:4096] + b"\x55" * 9000)
    said: list[str] = []
    with SharedCache(own, said.append) as cache:
        cache.put(features(0, 3), KEY)
    with SharedCache(own, said.append) as cache:
        cache.put(features(0, 3), KEY)
        assert len(cache.get(list(features(0, 3)), KEY)) == 3
    assert len(said) == 1
    before = named.read_bytes()
    with SharedCache(named, said.append) as cache:
        assert cache.get(list(features(0, 3)), KEY) == {}
    assert len(said) == 2
    assert said[1].startswith(_GOES_ON)
    assert named.read_bytes() == before


_WRITER = """
import sys
from pathlib import Path
import numpy as np
from fedclip_edge.vision.shared_cache import SharedCache
first, path = int(sys.argv[1]), Path(sys.argv[2])
for n in range(first, first + 100):
    with SharedCache(path, lambda sentence: sys.exit(sentence)) as cache:
        made = {f"{n:064x}": np.full(64, n, np.float32), f"{n % 50:064x}": np.ones(64, np.float32)}
        cache.put(made, "a" * 64)
        if len(cache.get(list(made), "a" * 64)) != len(made):
            sys.exit("lost")
"""


def test_two_processes_fill_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    with ExitStack() as ends:
        writers = [
            ends.enter_context(
                system.running(
                    [sys.executable, "-c", _WRITER, str(first), str(path)],
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for first in (1000, 1050)  # half of their pictures are the same
        ]
        for writer in writers:
            _, errors = writer.communicate()
            assert writer.returncode == 0, errors
    with FeatureCache(path) as cache:
        assert len(cache) == 150 + 50
        assert len(cache.get([f"{n:064x}" for n in range(1000, 1150)], KEY)) == 150


def labels(bundle: Bundle, pictures: Path, *more: str | Path) -> tuple[list[str], str]:
    """The lines of `predict --json` and its summary."""
    ended = system.run("predict", pictures, "--bundle", bundle.folder, "--json", *more)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines(), ended.stderr


@pytest.mark.one_python
def test_predict_encodes_nothing_that_simulate_has_encoded(
    random_bundle: Bundle, tmp_path: Path
) -> None:
    for number, domain in enumerate(("day", "night")):
        system.write_pictures(tmp_path / "data" / domain, random_bundle.classes.names, 12, number)
    fresh, summary = labels(random_bundle, tmp_path / "data", "--cache", tmp_path / "other.sqlite")
    assert "72 pictures; zero-shot" in summary
    ended = system.run(
        "simulate", "--data", tmp_path / "data", "--bundle", random_bundle.folder,
        "--methods", "zeroshot", "--out", tmp_path / "out",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert default_path().exists()
    assert not (tmp_path / "out" / "features.sqlite").exists()
    cached, summary = labels(random_bundle, tmp_path / "data")
    assert "72 pictures, 72 of them not encoded again; zero-shot" in summary
    assert [re.sub(r"\d\.\d+", "", line) for line in cached] == [
        re.sub(r"\d\.\d+", "", line) for line in fresh
    ]
    system.write_pictures(tmp_path / "more", random_bundle.classes.names, 2, 7)
    _, summary = labels(random_bundle, tmp_path)  # `data` and `more`
    assert "78 pictures, 72 of them not encoded again" in summary


@pytest.mark.one_python
def test_a_full_disk_does_not_end_predict(random_bundle: Bundle, tmp_path: Path) -> None:
    write_mixed(tmp_path / "pictures", random_bundle.classes.names)
    command = own_command(
        "predict", str(tmp_path / "pictures"), "--bundle", str(random_bundle.folder)
    )
    default_path().parent.mkdir(parents=True)
    ended = subprocess.run(
        ["bash", "-c", 'ulimit -f 2; exec "$@"', "bash", *command],  # 2 KiB
        capture_output=True,
        text=True,
        timeout=system.DEADLINE_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count(f"Note: {_GOES_ON}") == 1
    assert "start again" not in ended.stderr
    assert "15 pictures; zero-shot" in ended.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into every folder")
def test_a_folder_that_may_not_be_written_does_not_end_predict(
    random_bundle: Bundle, tmp_path: Path
) -> None:
    write_mixed(tmp_path / "pictures", random_bundle.classes.names)
    (tmp_path / "kept").mkdir(mode=0o500)
    _, summary = labels(
        random_bundle, tmp_path / "pictures", "--cache", tmp_path / "kept" / "f.sqlite"
    )
    assert summary.count(f"Note: {_GOES_ON}") == 1
