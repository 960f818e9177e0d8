"""The command `fedclip-edge simulate` with real processes and files."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import system
from checkout import SHARED
from in_memory import class_texts
from simulated import DOMAINS, write_npz
from system import wait_until

from fedclip_edge.errors import RunError
from fedclip_edge.simulating.results import COLUMNS
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.picture_files import EXTENSIONS
from fedclip_edge.vision.shared_cache import default_path

METHODS = "zeroshot,fedclip@loss=cross-entropy,lr=0.01,fedclip:local,fedclip:pooled"

KINDS = ", ".join(sorted(EXTENSIONS))


def simulate(out: Path, *arguments: str | Path, timeout_s: float = 300) -> Any:
    return system.run("simulate", "--out", out, *arguments, timeout_s=timeout_s)


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("features")
    return write_npz(folder / "features.npz")


@pytest.fixture(scope="module")
def done(features: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A comparison on generated features: its folder and the finished process."""
    folder: Path = tmp_path_factory.mktemp("simulation")
    out = folder / "out"
    arguments = ("--features", features, "--methods", METHODS, "--rounds", "2", "--seeds", "2")
    ended = simulate(out, *arguments, "--hold-out", "roof")
    assert ended.returncode == 0, ended.stderr
    return out, ended


def test_every_device_and_round_has_its_row(done: tuple[Path, Any]) -> None:
    rows = rows_of(done[0])
    assert list(rows[0]) == list(COLUMNS)
    by_method: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
        assert 0 <= float(row["top1"]) <= 1
        assert (row["split"], row["held_out"]) == ("domain", "roof")
    # Two seeds. Accuracy of two devices, the held-out domain and the fleet, plus the initial model.
    assert {name: len(its) for name, its in by_method.items()} == {
        "zeroshot": 2 * 4 * 2,
        "fedclip@loss=cross-entropy,lr=0.01": 2 * 4 * 4,  # two rounds and the vote
        "fedclip:local": 2 * 3 * 4,
        "fedclip:pooled": 2 * 4 * 4,
    }


def test_the_report_and_the_summary_are_of_the_same_figures(done: tuple[Path, Any]) -> None:
    out, ended = done
    summary = json.loads((out / "summary.json").read_text())
    page = (out / "report.html").read_text()
    text = re.sub(r"<[^>]*>", "", page)
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<svg") >= 8
    for row in summary["rows"]:
        mean = f"{100 * row['mean']['mean']:.1f}±{100 * row['mean']['spread']:.1f}"
        assert mean in ended.stdout
        assert mean in text
    last = [
        float(row["top1"])
        for row in rows_of(out)
        if row["method"] == "fedclip:pooled" and row["round"] == "3" and row["device"] in DOMAINS
        and row["device"] != "roof"
    ]  # fmt: skip
    pooled = next(row for row in summary["rows"] if row["method"] == "fedclip:pooled")
    assert pooled["mean"]["mean"] == pytest.approx(np.mean(last), abs=1e-6)
    assert len(ended.stderr.splitlines()) == 8  # one line per run


@pytest.mark.one_python
def test_the_same_seed_gives_the_same_bytes(features: Path, tmp_path: Path) -> None:
    """The number of workers does not matter."""
    written = []
    for workers in ("1", "2"):
        out = tmp_path / workers
        ended = simulate(
            out, "--features", features, "--split", "dirichlet:0.3", "--devices", "5",
            "--rounds", "2", "--methods", "fedclip,ridge,tip-adapter,ridge:local",
            "--workers", workers, "--json",
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        assert json.loads(ended.stdout)["split"] == "dirichlet:0.3"
        written.append((out / "results.csv").read_bytes())
    assert written[0] == written[1]


@pytest.mark.one_python
def test_without_methods_zero_shot_fedclip_and_the_default_are_compared(
    features: Path, tmp_path: Path
) -> None:
    def compared(*arguments: str) -> list[str]:
        ended = simulate(tmp_path / "out", "--features", features, "--json", *arguments)
        assert ended.returncode == 0, ended.stderr
        return list(dict.fromkeys(row["method"] for row in rows_of(tmp_path / "out")))

    assert compared("--rounds", "2") == ["zeroshot", "fedclip", "auto"]
    assert compared("--rounds", "1") == ["zeroshot", "fedclip"]  # auto needs two rounds


@pytest.mark.one_python
def test_base_to_new(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused = simulate(out, "--features", features, "--base-to-new", "--methods", "ridge")
    assert refused.returncode == 10
    assert "ridge learns something for each class" in refused.stderr
    ended = simulate(out, "--features", features, "--base-to-new", "--rounds", "1", "--json")
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(ended.stdout)["rows"]
    assert [(row["method"], row["view"]) for row in rows] == [
        ("zeroshot", "base"),
        ("zeroshot", "new"),
        ("fedclip", "base"),
        ("fedclip", "new"),
    ]
    assert rows[1]["harmonic"]["mean"] > 0
    assert {row["split"] for row in rows_of(out)} == {"domain base", "domain new"}


@pytest.mark.one_python
def test_an_interrupt_keeps_the_finished_part(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("simulate", "--features", features, "--out", out, "--rounds", "100000")
    with system.started(*words, stderr=subprocess.PIPE) as running:
        written = out / "results.csv"
        wait_until(
            lambda: written.exists() and "fedclip," in written.read_text(), "a trained round"
        )
        workers = system.descendants(running.pid)
        running.send_signal(signal.SIGINT)
        printed, errors = running.communicate(timeout=system.DEADLINE_S)
    assert running.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.strip().endswith("interrupted")
    assert "\nzeroshot" in printed
    assert "\nfedclip" not in printed
    rows = rows_of(out)
    assert all(None not in row.values() for row in rows)
    assert rows[-1]["device"] == "all"
    assert "zeroshot" in (out / "report.html").read_text()
    assert workers
    wait_until(lambda: workers.isdisjoint(system.commands()), "every worker to end")


@pytest.mark.one_python
def test_an_interrupt_at_a_terminal_while_workers_start(features: Path, tmp_path: Path) -> None:
    """The interrupt reaches every process of the command, including those that load torch."""
    words = ("simulate", "--features", features, "--out", tmp_path / "out", "--rounds", "100000")
    with system.started(*words, new_session=True) as running:
        wait_until(
            lambda: any(
                "forkserver" in system.commands().get(pid, "")
                for pid in system.descendants(running.pid)
            ),
            "torch to be loaded",
        )
        workers = system.descendants(running.pid)
        os.killpg(running.pid, signal.SIGINT)
        printed, _ = running.communicate(timeout=system.DEADLINE_S)
    assert running.returncode == 130
    assert printed.splitlines()[-1] == "interrupted"
    assert "Traceback" not in printed
    wait_until(lambda: workers.isdisjoint(system.commands()), "every worker to end")


@pytest.mark.one_python
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_whatever_ends_it_ends_its_workers(
    features: Path, tmp_path: Path, number: signal.Signals
) -> None:
    words = ("simulate", "--features", features, "--out", tmp_path / "out", "--rounds", "100000")
    with system.started(*words) as running:
        written = tmp_path / "out" / "results.csv"
        wait_until(
            lambda: written.exists() and "fedclip," in written.read_text(), "a trained round"
        )
        workers = system.descendants(running.pid)
        running.send_signal(number)
        running.communicate(timeout=system.DEADLINE_S)
    assert len(workers) >= 2
    wait_until(lambda: workers.isdisjoint(system.commands()), "every worker to end")


@pytest.mark.one_python
def test_a_worker_that_is_killed_ends_it_with_what_to_do(features: Path, tmp_path: Path) -> None:
    words = ("simulate", "--features", features, "--out", tmp_path / "out", "--rounds", "100000")
    with system.started(*words, "--workers", "1", stderr=subprocess.PIPE) as running:
        written = tmp_path / "out" / "results.csv"
        wait_until(
            lambda: written.exists() and "fedclip," in written.read_text(), "a trained round"
        )
        # The worker's parent loads torch for all workers. Multiprocessing starts one more process.
        (worker,) = (
            pid for other in system.descendants(running.pid) for pid in system.descendants(other)
        )
        os.kill(worker, signal.SIGKILL)
        _, errors = running.communicate(timeout=system.DEADLINE_S)
    assert running.returncode == RunError.exit_code
    assert "a worker process ended with code -9; if memory ran out" in errors
    assert "Traceback" not in errors


@pytest.mark.one_python
def test_strategies_noise_and_personal_models_side_by_side(features: Path, tmp_path: Path) -> None:
    """The noise of a third of the devices, bounded in each round, moves the median less."""
    methods = ",".join(
        f"linear@lr=0.02,vote=off{more}" for more in ("", ",strategy=median", ",personal_epochs=40")
    )
    arguments = ("--features", features, "--split", "iid", "--devices", "6", "--rounds", "5")
    accuracies = []
    for noisy in ("0", "0.34"):
        more = ("--noisy", noisy, "--seeds", "4", "--methods", methods, "--json")
        ended = simulate(tmp_path / noisy, *arguments, *more)
        assert ended.returncode == 0, ended.stderr
        whole = json.loads(ended.stdout)
        accuracies.append([row["mean"]["mean"] for row in whole["rows"]])
    mean, median, personal = accuracies[1]
    assert whole["noisy"] == 0.34
    moved_mean, moved_median, _ = (abs(a - b) for a, b in zip(*accuracies, strict=True))
    assert moved_median < moved_mean
    assert personal not in (mean, median)  # its row shows the personal models
    page = (tmp_path / "0.34" / "report.html").read_text()
    assert "34 % of the devices send noise" in page
    assert "those of the personal model that each device keeps for itself" in page


def test_a_floor_of_the_devices_is_named_in_the_results(tmp_path: Path) -> None:
    arguments = ("--features", write_npz(tmp_path / "f.npz"), "--workers", "1")
    floor = ("--min-per-class", "7", "--methods", "zeroshot", "--json")
    ended = simulate(tmp_path, *arguments, *floor)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["min_per_class"] == 7
    page = (tmp_path / "report.html").read_text()
    assert "classes with fewer than 7 pictures on a device are withheld" in page


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 10, "give either --data FOLDER with --bundle FOLDER, or --features"),
        (("--data", "x"), 10, "--data needs --bundle"),
        (("--features", "FEATURES", "--methods", "fedclop"), 10, "did you mean 'fedclip'"),
        (("--features", "FEATURES", "--split", "dirichlet"), 10, "expected domain, iid"),
        (
            ("--features", "FEATURES", "--hold-out", "attic"),
            10,
            "choose one of: barn, roof, yard, or all",
        ),
        (
            ("--features", "FEATURES", "--methods", "ridge@strategy=median"),
            10,
            "the strategy median combines changes of a model, but ridge sends none",
        ),
        (
            ("--features", "FEATURES", "--noisy", "0.1"),
            10,
            "--noisy 0.1 of 3 devices is less than one device",
        ),
        (("--features", "none.npz"), 11, "none.npz does not exist"),
        (("--features", "FEATURES", "--split", "iid", "--devices", "999"), 11, "are too few"),
        (("--features", "FEATURES", "--bundle", "BUNDLE"), 12, "gives features of width 16"),
        (
            ("--data", "PICTURES", "--bundle", "BUNDLE"),
            11,
            "--split domain needs at least two domains",
        ),
        (("--data", "none", "--bundle", "BUNDLE"), 11, "none does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_its_exit_code(
    arguments: tuple[str, ...],
    code: int,
    said: str,
    features: Path,
    random_bundle: Bundle,
    pictures: Path,
    tmp_path: Path,
) -> None:
    names = {"FEATURES": features, "BUNDLE": random_bundle.folder, "PICTURES": pictures}
    ended = simulate(tmp_path / "out", *(names.get(argument, argument) for argument in arguments))
    assert ended.returncode == code, ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert said in last
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out" / "results.csv").exists()


@pytest.mark.one_python
def test_what_goes_wrong_in_a_worker_is_said_once(tmp_path: Path) -> None:
    path = write_npz(
        tmp_path / "f.npz", class_texts=class_texts(dim=8, names=tuple("abcd")).vectors
    )
    ended = simulate(
        tmp_path / "out", "--features", path, "--methods", "zeroshot,ridge@max_weight=3"
    )
    assert ended.returncode == 10, ended.stderr
    said = ended.stderr.splitlines()[-1]
    assert "is above the plan's max_weight 3; raise this limit in --methods to" in said
    assert "ridge@max_weight=" in said
    assert "\nzeroshot" in ended.stdout  # the results until then


def test_devices_that_send_nothing_have_no_largest_weight(features: Path, tmp_path: Path) -> None:
    methods = "ridge:local@max_weight=3,ridge:pooled@max_weight=3"
    ended = simulate(tmp_path / "out", "--features", features, "--methods", methods)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.one_python
def test_pictures_in_folders_of_domains(random_bundle: Bundle, tmp_path: Path) -> None:
    """One domain is a link; what is in no class folder is listed."""
    data = tmp_path / "data"
    for number, domain in enumerate((data / "day", tmp_path / "disk")):
        system.write_pictures(domain, random_bundle.classes.names, 12, number)
    (data / "night").symlink_to(tmp_path / "disk")
    for name in ("misc", "lost+found", "day/circel", "day/circle/@eaDir"):
        (data / name).mkdir()
    shutil.copy(data / "day" / "circle" / "000.png", data / "day" / "circle" / "@eaDir")
    for picture in (data / "day" / "square").iterdir():
        picture.unlink()
    (data / "day" / "circle" / "gone.png").symlink_to(tmp_path / "unplugged")
    arguments = ("--data", data, "--bundle", random_bundle.folder, "--rounds", "1")
    first = simulate(tmp_path / "out", *arguments)
    assert first.returncode == 0, first.stderr
    no_class = "it is not named after a class of the bundle; did you mean 'circle'?"
    gone = f"it is a link to {tmp_path}/unplugged, which does not exist"
    assert [line for line in first.stderr.splitlines() if line.startswith("skipped ")] == [
        f"skipped {data}/misc: it has no folder that is named after a class",
        f"skipped {data}/day/circel: {no_class}",
        f"skipped {data}/day/square: it has no picture ({KINDS})",
        f"skipped {data}/day/circle/gone.png: {gone}",
    ]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["pictures"] == 5 * 12
    assert {row["device"] for row in rows_of(tmp_path / "out")} == {"day", "night", "all"}
    assert "not encoded again" not in first.stderr
    again = simulate(tmp_path / "again", *arguments)
    known = f"60; their features are in {default_path()}"
    assert f"pictures not encoded again: {known}\n" in again.stderr
    assert (tmp_path / "again" / "results.csv").read_bytes() == (
        tmp_path / "out" / "results.csv"
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real pictures are in ../shared/data, next to the checkout"
)
def test_real_pictures_agree_with_what_was_measured_of_them(tmp_path: Path) -> None:
    """Accuracies of zero-shot agree with shared/data/README.md within 0.5 points."""
    source = SHARED / "standin"
    exported = system.run(
        "export",
        "--onnx", source / "image_encoder.onnx",
        "--preprocess", source / "preprocess.toml",
        "--class-texts", source / "class_texts.npy",
        "--classes", source / "classes.json",
        "--out", tmp_path / "bundle",
    )  # fmt: skip
    assert exported.returncode == 0, exported.stderr
    ended = simulate(
        tmp_path / "out", "--data", SHARED / "pacs", "--bundle", tmp_path / "bundle",
        "--hold-out", "all", "--rounds", "2", "--methods", "zeroshot,fedclip@vote=off",
        timeout_s=900,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    expected = {
        "photo": 86.19, "art-painting": 57.62, "cartoon": 46.43, "sketch": 25.71,
    }  # fmt: skip
    found = {
        row["device"]: 100 * float(row["top1"])
        for row in rows_of(tmp_path / "out")
        if row["method"] == "zeroshot" and row["device"] == row["held_out"].replace("_", "-")
    }
    assert found == pytest.approx(expected, abs=0.5)
    trained = [
        r
        for r in rows_of(tmp_path / "out")
        if r["method"] == "fedclip@vote=off" and r["round"] == "2"
    ]
    assert {row["zero_shot"] != row["top1"] for row in trained} >= {True}
