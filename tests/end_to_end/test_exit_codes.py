"""Exit codes of real commands, compared with the reference of exit codes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import system
from checkout import ROOT
from system import Site

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.vision.bundle import Bundle

pytestmark = pytest.mark.one_python

NOBODY = BrokerAddress(port=9)  # the discard port, where no broker listens
MEANINGS = {
    int(code): meaning
    for code, meaning in re.findall(
        r"^\| (\d+) \| [^|]*\| ([^|]*)\|",
        (ROOT / "docs/reference/exit-codes.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
}


@pytest.fixture
def site(tmp_path: Path, random_bundle: Bundle) -> Site:
    return Site(tmp_path, random_bundle, NOBODY, "f")


def code_of(*arguments: str | Path, limit_kb: int | None = None) -> tuple[int, str]:
    """The exit code and the last line of a command; it may write files of `limit_kb` kB at most."""
    command = system.command(*arguments)
    if limit_kb is not None:
        command = ["bash", "-c", f'ulimit -f {limit_kb} && exec "$@"', "-", *command]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=system.DEADLINE_S
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip().rpartition("\n")[2]


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    """A small file system that is full; skips the test where none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs root to mount a small disk")
    try:
        with contextlib.suppress(OSError), (folder / "full").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_2_is_wrong_usage(tmp_path: Path) -> None:
    assert "unknown command or option" in MEANINGS[2].lower()
    assert code_of("serve", "--port", "1")[0] == 2
    assert code_of("agent", tmp_path / "a.toml", "b.toml")[0] == 2


def test_10_is_a_wrong_configuration(site: Site) -> None:
    assert "configuration file" in MEANINGS[10]
    assert code_of("serve", site.folder / "none.toml")[0] == 10
    fleet = site.write_fleet(1, 1)
    replace(fleet, 'fleet = "f"', 'fleet = "f"\njournal = "."')
    code, said = code_of("serve", fleet)
    assert (code, said) == (
        10,
        f"fedclip-edge: the journal {site.folder} is a folder; set 'journal' to a file",
    )
    agent = site.write_agent("north")
    (site.folder / "file").touch()
    replace(agent, '"state"', '"../file/state"')
    code, said = code_of("agent", agent)
    assert code == 10
    assert "state_dir" in said


def test_10_is_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, said = code_of("demo", "--out", tmp_path / "file" / "demo")
    assert (code, said) == (
        10,
        f"fedclip-edge: {tmp_path}/file/demo: Not a directory; name another file or folder",
    )


def test_10_is_a_limit_that_a_setting_of_simulate_exceeds(tmp_path: Path) -> None:
    import numpy as np

    vectors, labels = np.eye(40, 8, dtype=np.float32) + 0.1, np.arange(40) % 4
    np.savez(
        tmp_path / "f.npz",
        train_x=vectors,
        train_y=labels,
        test_x=vectors,
        test_y=labels,
        class_texts=np.eye(4, 8, dtype=np.float32),
        classes=np.array([*"abcd"]),
    )
    words = ("--features", tmp_path / "f.npz", "--split", "iid", "--devices", "2")
    code, said = code_of(
        "simulate", *words, "--methods", "ridge@max_weight=3", "--out", tmp_path / "out"
    )
    assert code == 10
    assert "is above the plan's max_weight 3; raise this limit in --methods to" in said
    assert "no command ends with it" in MEANINGS[21]


def test_11_is_pictures_that_cannot_be_used(site: Site) -> None:
    assert "pictures cannot be used" in MEANINGS[11]
    agent = site.write_agent("north")
    shutil.rmtree(agent.parent / "pictures")
    assert code_of("agent", agent)[0] == 11
    words = ("predict", "--bundle", site.bundle.folder)
    assert code_of(*words, site.folder / "none.png")[0] == 11


def test_12_is_a_bundle_that_is_incomplete(site: Site) -> None:
    assert "bundle is incomplete" in MEANINGS[12]
    copied = shutil.copytree(site.bundle.folder, site.folder / "bundle")
    (copied / "classes.safetensors").write_bytes(b"")
    assert code_of("bundle", "verify", copied)[0] == 12
    assert code_of("export-classifier", "--bundle", copied, "--zero-shot", "--out", "c")[0] == 12


def test_16_is_a_port_that_is_taken() -> None:
    assert "port is taken" in MEANINGS[16]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, said = code_of("broker", "start", "--port", port)
    assert code == 16
    assert "is in use" in said
    assert port in said
    assert "--port" in said


@pytest.mark.parametrize("name", ["", "deeper/journal.sqlite"])
def test_17_is_a_journal_that_cannot_be_written_at_start(site: Site, name: str) -> None:
    assert "journal cannot be written or read" in MEANINGS[17]
    fleet = site.write_fleet(1, 1)
    if name:
        replace(fleet, 'fleet = "f"', f'fleet = "f"\njournal = "{name}"')
    code, said = code_of("serve", fleet, limit_kb=0)
    assert code == 17
    assert "the journal" in said
    assert "free or repair the disk" in said
    assert not list(site.folder.glob("**/*.sqlite"))
    assert code_of("serve", fleet)[0] == 20  # with space, it looks for its broker


def test_17_is_a_journal_on_a_full_disk(site: Site) -> None:
    fleet = site.write_fleet(1, 1)
    with full_disk(site.folder / "disk"):
        replace(fleet, 'fleet = "f"', 'fleet = "f"\njournal = "disk/journal.sqlite"')
        code, said = code_of("serve", fleet)
    assert code == 17
    assert "free or repair the disk" in said


def test_17_is_a_journal_that_may_not_be_read(site: Site, tmp_path: Path) -> None:
    journal = tmp_path / "journal.sqlite"
    shutil.copy(__file__, journal)
    journal.chmod(0)
    if os.access(journal, os.R_OK):
        pytest.skip("root may read every file")
    words = ("--bundle", site.bundle.folder, "--journal", journal, "--model", "run-1")
    assert code_of("predict", *words, __file__)[0] == 17


def test_18_is_a_disk_that_is_full(site: Site, tmp_path: Path) -> None:
    assert "disk is full or read-only" in MEANINGS[18]
    agent, bundle = site.write_agent("north"), site.bundle.folder
    picture = next((agent.parent / "pictures").glob("*/*"))
    (tmp_path / "operator").mkdir()
    assert system.run("broker", "init", tmp_path / "operator/site").returncode == 0
    commands: list[tuple[str | Path, ...]] = [
        ("agent", agent),
        ("predict", "--bundle", bundle, "--out", tmp_path / "p.csv", picture),
        ("broker", "init", tmp_path / "other"),
        ("enroll", "cam", "--site", tmp_path / "operator/site", "--out", tmp_path / "cam.tar"),
    ]
    for command in commands:
        code, said = code_of(*command, limit_kb=0)
        assert code == 18, (command, said)
        assert "disk" in said
    assert {path.name for path in tmp_path.iterdir()} == {"north", "operator"}


def test_18_is_a_bundle_that_cannot_be_written(tmp_path: Path, random_bundle: Bundle) -> None:
    import numpy as np

    (tmp_path / "p.toml").write_text(
        'image_size = 32\nresize = "squash"\nresize_px = 32\ninterpolation = "bicubic"\n'
        "mean = [0, 0, 0]\nstd = [1, 1, 1]\n"
    )
    np.save(tmp_path / "t.npy", random_bundle.classes.vectors)
    (tmp_path / "c.txt").write_text("\n".join(random_bundle.classes.names))
    words = (
        *("--onnx", random_bundle.encoder_path, "--preprocess", tmp_path / "p.toml"),
        *("--class-texts", tmp_path / "t.npy", "--classes", tmp_path / "c.txt"),
    )
    code, said = code_of("export", *words, "--out", tmp_path / "bundle", limit_kb=0)
    assert code == 18
    assert "bundle cannot be written" in said
    assert "no file was left behind" in said
    assert code_of("export", *words, "--out", tmp_path / "bundle")[0] == 0
    with full_disk(tmp_path / "disk") as disk:
        assert code_of("export", *words, "--out", disk / "bundle")[0] == 18
        classifier = ("--bundle", random_bundle.folder, "--zero-shot", "--out", disk / "c.onnx")
        code, said = code_of("export-classifier", *classifier)
    assert code == 18
    assert "c.onnx cannot be written: No space left on device" in said


def test_18_is_a_folder_that_may_not_be_written(site: Site, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    if os.access(locked, os.W_OK):
        pytest.skip("root may write everywhere")
    agent = site.write_agent("north")
    replace(agent, '"state"', f'"{locked}/state"')
    assert code_of("agent", agent)[0] == 18
    fleet = site.write_fleet(1, 1)
    replace(fleet, 'fleet = "f"', f'fleet = "f"\njournal = "{locked}/journal.sqlite"')
    assert code_of("serve", fleet)[0] == 17


def test_20_is_no_broker(site: Site) -> None:
    assert "broker cannot be reached" in MEANINGS[20]
    for command in (("serve", site.write_fleet(1, 1)), ("agent", site.write_agent("north"))):
        code, said = code_of(*command)
        assert code == 20
        assert "127.0.0.1:9" in said
        assert "[broker]" in said
