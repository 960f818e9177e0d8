"""The encoder process of a device: it encodes, ends when idle, and survives bad pictures."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import system

from fedclip_edge.agent.encoder_process import EncoderProcess
from fedclip_edge.agent.encoding import Encoded, Encoding
from fedclip_edge.agent.features import CACHE
from fedclip_edge.agent.limits import within
from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.config.limits import Limits
from fedclip_edge.errors import BundleError, DataError, DiskError, WorkerError
from fedclip_edge.processes.children import Children
from fedclip_edge.processes.worker import PausedError
from fedclip_edge.vision.bundle import Bundle, key_of
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.datasets import Picture, read_folder
from fedclip_edge.vision.embedding import Progress


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as made:
        yield made


@pytest.fixture
def found(tmp_path: Path, random_bundle: Bundle) -> tuple[Picture, ...]:
    system.write_pictures(tmp_path / "pictures", random_bundle.classes.names, 20, seed=1)
    return read_folder(tmp_path / "pictures", random_bundle.classes.names).pictures


def encoder(children: Children, bundle: Bundle, folder: Path) -> EncoderProcess:
    return EncoderProcess(children, bundle, EncoderConfig(), folder / CACHE)


def cached(folder: Path, bundle: Bundle, pictures: Sequence[Picture]) -> dict[str, bytes]:
    with FeatureCache(folder / CACHE) as cache:
        its = cache.get([one.hash for one in pictures], key_of(bundle, EncoderConfig()))
        return {hash_: vector.tobytes() for hash_, vector in its.items()}


def test_it_fills_the_cache_as_this_process_would(
    children: Children, random_bundle: Bundle, found: tuple[Picture, ...], tmp_path: Path
) -> None:
    process = encoder(children, random_bundle, tmp_path / "child")
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    bad = Picture(broken, 0, "0" * 64)
    assert process.worker.pid is None, "there was nothing to encode yet"
    told: list[tuple[int, int]] = []
    free: list[bool] = []
    process.between = lambda: free.append(not process.worker.is_busy)
    made = process.encode([*found, bad], lambda *figures: told.append(figures))
    expected = Encoding(random_bundle, EncoderConfig(), tmp_path / "here" / CACHE).encode(found)
    assert made.encoded == expected.encoded == len(found)
    assert list(made.skipped) == [bad.hash]
    assert cached(tmp_path / "child", random_bundle, found) == (
        cached(tmp_path / "here", random_bundle, found)
    )
    assert told == sorted(told)
    assert told[-1] == (len(found) + 1, len(found) + 1)
    assert free
    assert all(free)
    assert process.encode(found).encoded == 0, "they are all in the cache"


def test_it_ends_when_it_is_idle_and_the_next_picture_is_encoded(
    children: Children, random_bundle: Bundle, found: tuple[Picture, ...], tmp_path: Path
) -> None:
    process = encoder(children, random_bundle, tmp_path)
    process.encode(found[:5])
    process.worker.rest(time.monotonic() + 3600)
    assert process.worker.pid is None
    assert process.encode(found[5:6]).encoded == 1


def test_it_can_be_loaded_before_the_first_picture(
    children: Children, random_bundle: Bundle, found: tuple[Picture, ...], tmp_path: Path
) -> None:
    process = encoder(children, random_bundle, tmp_path)
    process.load()
    first = process.worker.pid
    assert first is not None
    assert "onnxruntime" in Path(f"/proc/{first}/maps").read_text()
    process.load()
    assert process.encode(found).encoded == len(found)
    assert process.worker.pid == first


@pytest.mark.parametrize("why", ["pauses", "at work"])
def test_it_is_not_loaded_while_it_may_not_work(
    children: Children, random_bundle: Bundle, tmp_path: Path, why: str
) -> None:
    process = encoder(children, random_bundle, tmp_path)
    if why == "pauses":
        process.worker.is_paused = lambda: True
    else:
        process.worker.is_busy = True
    process.load()
    assert process.worker.pid is None


def test_an_error_of_early_loading_comes_with_the_first_picture(
    children: Children, random_bundle: Bundle, found: tuple[Picture, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(random_bundle.folder, folder)
    bundle = Bundle(folder, random_bundle.manifest, random_bundle.classes)
    (folder / "manifest.json").unlink()
    process = encoder(children, bundle, tmp_path)
    process.load()
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
        process.encode(found)


def test_a_killed_process_does_not_stop_the_encoding(
    children: Children, random_bundle: Bundle, found: tuple[Picture, ...], tmp_path: Path
) -> None:
    process = encoder(children, random_bundle, tmp_path)
    killed: list[int] = []

    def kill(done: int, _total: int) -> None:
        if done >= 8 and not killed:
            killed.append(process.worker.pid or 0)
            os.kill(killed[0], signal.SIGKILL)

    process.encode(found, kill)
    assert killed
    assert len(cached(tmp_path, random_bundle, found)) == len(found)


def test_a_long_pause_ends_the_work_and_keeps_what_is_encoded(
    children: Children,
    random_bundle: Bundle,
    found: tuple[Picture, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedclip_edge.processes.worker.PAUSE_S", 0.3)
    process, paused = encoder(children, random_bundle, tmp_path), [False]
    process.worker.is_paused = lambda: paused[0]

    def pause() -> None:
        paused[0] = True

    process.between = pause
    with pytest.raises(PausedError):
        process.encode(found)
    assert not process.worker.is_running
    done = len(cached(tmp_path, random_bundle, found))
    assert 0 < done < len(found), "no picture is taken for a bad one"
    paused[0], process.between = False, lambda: None
    assert process.encode(found).encoded == len(found) - done


def test_it_starts_with_no_more_threads_and_processors_than_it_may(
    children: Children, random_bundle: Bundle, found: tuple[Picture, ...], tmp_path: Path
) -> None:
    limits, config = Limits(max_threads=1, nice=0), EncoderConfig(threads=4)
    process = EncoderProcess(children, random_bundle, config, tmp_path / CACHE, lambda: limits)
    assert process.encode(found[:2]).encoded == 2
    assert process.worker.pid is not None
    assert len(os.sched_getaffinity(process.worker.pid)) == 1
    assert within(config, limits).threads == 1
    assert within(config, Limits(max_threads=9)).threads == 4


class Fatal(Encoding):
    """An encoder whose process dies on some pictures."""

    def encode(self, pictures: Sequence[Picture], progress: Progress | None = None) -> Encoded:
        if any(picture.path.name in os.environ["FATAL"] for picture in pictures):
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().encode(pictures, progress)


def dies_on(
    process: EncoderProcess, pictures: Sequence[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    monkeypatch.setenv("FATAL", " ".join(one.path.name for one in pictures))
    process.worker.target = "test_encoder_process:Fatal"


def test_a_picture_that_kills_the_process_is_skipped_and_the_others_are_encoded(
    children: Children,
    random_bundle: Bundle,
    found: tuple[Picture, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = encoder(children, random_bundle, tmp_path)
    bad = found[2].path.with_name("fatal.png")
    bad.write_bytes(found[2].path.read_bytes() + b"\n")
    fatal = Picture(bad, 0, "f" * 64)
    dies_on(process, [fatal], monkeypatch)
    made = process.encode([*found[:4], fatal, *found[4:6]])
    assert made.encoded == 6
    assert made.skipped == {"f" * 64: "the encoder process was killed by SIGSEGV, twice in a row"}


def test_a_process_that_dies_on_every_picture_is_an_error(
    children: Children,
    random_bundle: Bundle,
    found: tuple[Picture, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = encoder(children, random_bundle, tmp_path)
    dies_on(process, found, monkeypatch)
    with pytest.raises(WorkerError, match="the encoder process was killed by SIGSEGV"):
        process.encode(found[:5])


def test_errors_of_the_encoder_and_the_cache_are_the_same_here(
    children: Children, random_bundle: Bundle, found: tuple[Picture, ...], tmp_path: Path
) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / CACHE)) as database:
        database.execute("CREATE TABLE other (x)")  # the user may need it
    with pytest.raises(DataError) as here:
        Encoding(random_bundle, EncoderConfig(), tmp_path / CACHE).encode(found)
    with pytest.raises(DataError) as there:
        encoder(children, random_bundle, tmp_path).encode(found)
    assert str(there.value) == str(here.value)


class FullDisk(Encoding):
    """An encoder whose disk is full."""

    def encode(self, pictures: Sequence[Picture], progress: Progress | None = None) -> Encoded:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        return super().encode(pictures, progress)


def test_a_full_disk_is_the_same_error_here(
    children: Children,
    random_bundle: Bundle,
    found: tuple[Picture, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = encoder(children, random_bundle, tmp_path)
    dies_on(process, [], monkeypatch)
    process.worker.target = "test_encoder_process:FullDisk"
    with pytest.raises(DiskError, match=r"features.sqlite cannot be used: .*; check the free disk"):
        process.encode(found)
