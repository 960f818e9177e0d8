"""The demo as a newcomer runs it: one command, real processes and a real broker."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import system
from checkout import SHARED
from system import wait_until

from fedclip_edge.agent.state_files import POSITION, STATE
from fedclip_edge.cli.demo import _compare
from fedclip_edge.config.agent import load_agent
from fedclip_edge.coordinator.deliveries import open_release
from fedclip_edge.demo import baselines, federation, stage
from fedclip_edge.errors import RunError
from fedclip_edge.pki.bundle_signature import read_signature
from fedclip_edge.reporting.run_figures import KINDS

pytestmark = pytest.mark.one_python  # whole demos, as processes


ROUNDS, PER_CLASS = 3, 12
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real pictures are in ../shared/data, next to the checkout"
)


def demo(out: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = ("demo", "--out", out, "--rounds", str(ROUNDS), "--per-class", str(PER_CLASS))
    return system.run(*words, *arguments, timeout_s=300)


def read_summary(out: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def processes_of(out: Path) -> list[str]:
    return [line for line in system.commands().values() if str(out) in line]


def logs_of(out: Path) -> list[str]:
    """The last lines of each process log of a failed demo."""
    return [f"\n{log}: {log.read_text()[-2000:]}" for log in sorted(out.glob("logs/*.log"))]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished small demo: its folder and its output."""
    out: Path = tmp_path_factory.mktemp("demo") / "demo-run"
    done = demo(out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_the_user_can_go_on_with_the_demos_bundle_and_its_export_key(
    first: tuple[Path, str],
) -> None:
    out, _ = first
    key, bundle = out / "export" / "export.key", out / "bundle"
    assert key.stat().st_mode & 0o077 == 0
    signed = read_signature(bundle)
    assert signed is not None
    for path in (out / "devices").glob("*/agent.toml"):
        assert load_agent(path).export_key == signed.key
    release = open_release(bundle, signed.key)  # what `serve` offers to the devices
    assert release is not None
    release.close()
    done = system.run("bundle", "sign", bundle, "--key", key)
    assert done.returncode == 0, done.stderr
    again = read_signature(bundle)
    assert again is not None
    assert (again.key, again.serial > signed.serial) == (signed.key, True)


def test_the_summary_holds_what_was_promised(first: tuple[Path, str]) -> None:
    summary = read_summary(first[0])
    assert summary["method"] == "auto"
    assert summary["rounds"] == summary["rounds_closed"] == ROUNDS + 1  # the vote
    assert summary["fedclip_rounds"] == ROUNDS
    assert set(summary["devices"]) == {"photo", "painting", "poster", "sketch"}
    for device in summary["devices"].values():
        assert set(device["pictures"]) == {"train", "test"}
        assert sum(device["pictures"].values()) < 10 * PER_CLASS  # the rest is for validation
        assert device["encoded"] == 10 * PER_CLASS
        assert {"zero_shot", "fedclip", "local", "federated"} <= set(device["accuracy"])
        assert all(0 <= value <= 1 for value in device["accuracy"].values())
        assert len(device["accuracy_by_round"]) == ROUNDS + 2
        assert len(device["fedclip_by_round"]) == ROUNDS + 1
        assert set(device["seconds"]) == {"encode", "train", "wait"}
    held_out = summary["held_out"]
    assert held_out["domain"] == "cartoon"
    assert {"zero_shot", "fedclip", "local", "federated"} <= set(held_out["accuracy"])
    alone = held_out["local_by_device"]
    assert set(alone) == set(summary["devices"])
    assert held_out["accuracy"]["local"] == pytest.approx(sum(alone.values()) / 4)
    assert len(held_out["fedclip_by_round"]) == ROUNDS + 1
    assert held_out["pictures"] == {"train": 0, "test": 10 * PER_CLASS}
    assert None not in held_out["accuracy_by_round"], "the held-out device missed a round"


def test_the_table_and_the_report_show_the_same_figures(first: tuple[Path, str]) -> None:
    out, printed = first
    summary = read_summary(out)
    page = (out / "report.html").read_text()
    table = printed[printed.index("\ndevice ") :].splitlines()
    for name, device in summary["devices"].items():
        row = next(line for line in table if line.startswith(f"{name} "))
        for kind in ("zero_shot", "fedclip", "local", "federated"):
            text = f"{100 * device['accuracy'][kind]:.1f}"
            assert text in row
            assert text in page
    cells = next(line for line in table if line.startswith("cartoon (held out)")).split()
    shares = [summary["held_out"]["accuracy"][kind] for kind in KINDS if kind != "personal"]
    assert cells[5:9] == [f"{100 * share:.1f}" for share in shares]
    assert f"\nround {ROUNDS}/{ROUNDS}: 4/4 devices in " in printed
    assert "\nthe vote: 4/4 devices in " in printed
    assert f"\nheld-out cartoon {cells[8]} % after the vote\n" in printed
    assert f"{ROUNDS} rounds and a vote; " in printed
    assert "method auto with the default options" in printed
    assert "On the held-out style cartoon, which no device has: zero-shot CLIP" in printed


def test_no_process_and_no_partial_file_is_left(first: tuple[Path, str]) -> None:
    assert processes_of(first[0]) == []
    assert not list(first[0].rglob("*.partial"))


def test_a_second_run_encodes_nothing_and_comes_to_the_same(first: tuple[Path, str]) -> None:
    out, printed = first
    before = read_summary(out)
    again = demo(out)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "exporting" in printed
    assert "exporting" not in again.stdout
    after = read_summary(out)
    for name, device in after["devices"].items():
        assert device["encoded"] == 0
        assert device["accuracy_by_round"] == before["devices"][name]["accuracy_by_round"]
    assert after["held_out"]["encoded"] == 0
    assert after["held_out"]["accuracy"] == before["held_out"]["accuracy"]
    assert after["held_out"]["fedclip_by_round"] == before["held_out"]["fedclip_by_round"]


def test_a_held_out_device_that_falls_behind_leaves_no_gap(tmp_path: Path) -> None:
    out, rounds = tmp_path / "demo-run", 12
    words = ("demo", "--out", out, "--rounds", str(rounds), "--per-class", "12")
    printed = []
    with system.started(*words) as running:
        assert running.stdout is not None
        for line in running.stdout:
            printed.append(line)
            if line.startswith("round 3/"):
                held_out = system.process_of(str(out / "devices" / "cartoon" / "agent.toml"))
                os.kill(held_out, signal.SIGSTOP)
            if line.startswith("round 9/"):
                os.kill(held_out, signal.SIGCONT)
        assert running.wait(system.DEADLINE_S) == 0, "".join([*printed, *logs_of(out)])
    assert None not in read_summary(out)["held_out"]["accuracy_by_round"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_process_behind(first: tuple[Path, str], number: signal.Signals) -> None:
    out = first[0]
    with system.started("demo", "--out", out, "--rounds", "5000", "--per-class", "12") as running:
        assert running.stdout is not None
        printed = []
        for line in running.stdout:
            printed.append(line)
            if line.startswith("round 3/"):
                break
        assert len(processes_of(out)) >= 6  # demo, coordinator, trainer and agents
        running.send_signal(number)
        printed += running.stdout.readlines()
        assert running.wait(system.DEADLINE_S) == 128 + number
    assert "Traceback" not in "".join(printed)
    wait_until(lambda: processes_of(out) == [], "every process to end")


def test_pictures_of_ones_own_are_encoded_once_by_all_commands(
    first: tuple[Path, str], tmp_path: Path
) -> None:
    drawn, bundle = next((first[0] / "pictures").iterdir()), first[0] / "bundle"
    data = tmp_path / "data"  # with the same hashes: a copy
    shutil.copytree(drawn, data)
    own = ("--data", data, "--bundle", bundle)
    begun = demo(tmp_path / "one", *own)
    assert begun.returncode == 0, begun.stdout + begun.stderr
    devices = read_summary(tmp_path / "one")["devices"]
    assert all(device["encoded"] > 0 for device in devices.values())
    predicted = system.run("predict", data, "--bundle", bundle)
    count = len(list(data.glob("*/*/*.png")))
    assert f"{count} pictures, {count} of them not encoded again" in predicted.stdout
    again = demo(tmp_path / "two", *own)
    assert again.returncode == 0, again.stdout + again.stderr
    after = read_summary(tmp_path / "two")
    assert [one["encoded"] for one in (*after["devices"].values(), after["held_out"])] == [0] * 5


def test_an_interrupt_while_drawing_leaves_no_half_drawn_folder(tmp_path: Path) -> None:
    out = tmp_path / "demo-run"
    pictures = out / "pictures" / "5000-of-seed-0"
    with system.started("demo", "--out", out, "--per-class", "5000") as running:
        wait_until(lambda: any(pictures.glob(".*/*/*.png")), "the first drawn picture")
        running.send_signal(signal.SIGINT)
        assert running.wait(system.DEADLINE_S) == 128 + signal.SIGINT
        assert running.stdout is not None
        assert running.stdout.read().splitlines()[-1] == "interrupted"
    assert processes_of(out) == []
    assert list(pictures.iterdir()) == []


def test_a_killed_demo_takes_its_processes_along(first: tuple[Path, str]) -> None:
    out = first[0]
    with system.started("demo", "--out", out, "--rounds", "5000", "--per-class", "12") as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("round 1/"):
                break
        running.kill()
    wait_until(lambda: processes_of(out) == [], "every process to end")


def test_a_device_that_dies_is_named_with_its_last_words(first: tuple[Path, str]) -> None:
    out = first[0]
    folder = out / "devices" / "poster"
    # Of these two, the device makes one anew from the other.
    whole = {folder / name: (folder / name).read_bytes() for name in (STATE, POSITION)}
    for file in whole:
        file.write_text("a letter, by mistake" * 100)
    try:
        done = demo(out)
    finally:
        for file, content in whole.items():
            file.write_bytes(content)
    assert done.returncode == RunError.exit_code
    last = done.stderr.strip().splitlines()[-1]
    assert "poster" in last
    assert STATE in last
    assert "Traceback" not in done.stderr
    assert processes_of(out) == []


def test_what_a_device_leaves_out_is_shown(first: tuple[Path, str]) -> None:
    out = first[0]
    drawn = out / "pictures" / f"{PER_CLASS}-of-seed-0"
    added = [
        drawn / "poster" / "cra",
        drawn / "cartoon" / "cra",
        drawn / "poster" / "car" / "@eaDir",
    ]
    broken = drawn / "photo" / "car" / "broken.png"
    try:
        for folder in added:
            folder.mkdir()
        (added[-1] / "thumb.png").write_text("never read")
        broken.write_text("this is no picture")
        done = demo(out)
    finally:
        broken.unlink()
        (added[-1] / "thumb.png").unlink()
        for folder in added:
            folder.rmdir()
    assert done.returncode == 0, done.stderr
    unknown = "it is not named after a class of the bundle; did you mean 'car'?"
    shown = {line for line in done.stdout.splitlines() if " skips " in line}
    assert shown == {
        f"poster skips {added[0].resolve()}: {unknown}",
        f"cartoon skips {added[1].resolve()}: {unknown}",
        f"photo skips {broken.resolve()}: it is not a picture in a known format",
    }


def test_a_broker_that_is_ended_ends_the_demo(first: tuple[Path, str]) -> None:
    """A terminated mosquitto exits with code 0, as it does on a normal stop."""
    out = first[0]

    def happened(event: federation.Event) -> None:
        if event["event"] == "round_closed" and event["round"] == 2:
            os.kill(system.process_of(str(out / "logs" / "broker.conf")), signal.SIGTERM)

    settings = stage.Settings(out=out, rounds=5000, per_class=PER_CLASS)
    with pytest.raises(
        RunError, match=r"exited with code .* before the run was done: .*broker\.log"
    ):
        federation.run(stage.prepare(settings, print), lambda _: None, happened)
    wait_until(lambda: processes_of(out) == [], "every process to end")


def test_a_run_that_stands_still_ends_with_what_happened_last(
    first: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = first[0]
    monkeypatch.setattr(federation, "_SILENT_S", 2.0)
    settings = stage.Settings(out=out, rounds=5000, per_class=PER_CLASS)

    def happened(event: federation.Event) -> None:
        if event["event"] == "round_closed" and event["round"] == 2:
            os.kill(
                system.process_of(str(out / "devices" / "photo" / "agent.toml")), signal.SIGSTOP
            )

    with pytest.raises(
        RunError,
        match=r"after \w+( of \w+)?; look into the logs of all processes in .*logs",
    ):
        federation.run(stage.prepare(settings, print), lambda _: None, happened)
    wait_until(lambda: processes_of(out) == [], "every process to end")


def test_another_method_with_its_options(first: tuple[Path, str]) -> None:
    out = first[0]
    options = ("--option", "loss=cross-entropy", "--option", "lr=1e-3")
    done = demo(out, "--method", "fedclip", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = read_summary(out)
    assert summary["options"] == {"loss": "cross-entropy", "lr": 0.001}
    assert "loss=cross-entropy" in done.stdout


def test_fedclip_beside_the_fleet_is_what_the_fleet_would_train(first: tuple[Path, str]) -> None:
    """The baseline is computed in one process, the fleet's rounds by real devices and a broker."""
    out, _ = first
    beside = read_summary(out)
    done = demo(out, "--method", "fedclip")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = read_summary(out)
    for name in (*summary["devices"], "held_out"):
        its, before = (
            one["held_out"] if name == "held_out" else one["devices"][name]
            for one in (summary, beside)
        )
        assert its["accuracy_by_round"][: ROUNDS + 1] == before["fedclip_by_round"]
        assert its["fedclip_by_round"] == before["fedclip_by_round"]
    for device in summary["devices"].values():
        update_bytes = 4 * (2 * 128 * 128 + 2 * 128)
        # Encoded as int8.
        assert 0.1 * update_bytes < device["bytes_up_per_round"] < 0.33 * update_bytes
        # Encoded as fp16.
        assert 0.35 * update_bytes < device["bytes_down_per_round"] < 1.3 * update_bytes


def test_a_fleet_without_anything_to_compare_keeps_its_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise RunError("a worker process ended with code -9")

    monkeypatch.setattr(baselines, "train", fail)
    staged = stage.Device("photo", "photo", tmp_path, tmp_path)
    settings = stage.Settings(tmp_path)
    prepared = stage.Stage(settings, tmp_path, tmp_path, tmp_path, (staged,), staged, "")
    assert _compare(prepared) is None
    assert capsys.readouterr().err == (
        "Note: there is nothing to compare the fleet with: a worker process ended with code -9.\n"
    )


@pytest.mark.slow
def test_the_full_demo_reaches_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "demo-run"
    done = system.run("demo", "--out", out, timeout_s=600)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = read_summary(out)
    assert summary["rounds_closed"] == 12  # with the vote
    assert summary["fedclip_rounds"] == 30
    assert all(d["pictures"]["test"] >= 300 for d in summary["devices"].values())
    sketch = summary["devices"]["sketch"]["accuracy"]
    assert sketch["federated"] - sketch["zero_shot"] >= 0.2
    held_out = summary["held_out"]["accuracy"]
    # On the mean over the devices alone: the best of them, which draws sketches, is as good there.
    others = (held_out["zero_shot"], held_out["fedclip"], held_out["local"])
    assert held_out["federated"] >= max(others) + 0.02
    assert held_out["federated"] >= max(summary["held_out"]["local_by_device"].values()) - 0.01
    assert held_out["fedclip"] >= held_out["zero_shot"]


# From ../shared/data/README.md, computed by a plain script: held-out accuracy after 30 rounds of
# FedCLIP with the reference's settings, and the zero-shot and final accuracy of the three
# participants.
REFERENCE = {
    "art_painting": (58.6, (47.6, 85.7, 23.8), (57.1, 88.1, 29.8)),
    "cartoon": (53.8, (61.9, 85.7, 23.8), (64.3, 88.1, 31.0)),
    "photo": (84.1, (61.9, 47.6, 23.8), (63.1, 57.1, 28.6)),
    "sketch": (26.4, (61.9, 47.6, 85.7), (64.3, 56.0, 86.9)),
}
ZERO_SHOT = {"photo": 86.19, "art_painting": 57.62, "cartoon": 46.43, "sketch": 25.71}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The stand-in encoder's bundle and one demo folder, so that pictures are encoded only once."""
    folder: Path = tmp_path_factory.mktemp("stand-in")
    source = SHARED / "standin"
    done = system.run(
        "export",
        "--onnx", source / "image_encoder.onnx",
        "--preprocess", source / "preprocess.toml",
        "--class-texts", source / "class_texts.npy",
        "--classes", source / "classes.json",
        "--out", folder / "bundle",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "bundle", folder / "run"


@needs_shared
@pytest.mark.slow
@pytest.mark.xdist_group("stand-in")  # in one process, because of `stand_in`
@pytest.mark.parametrize(
    "hold_out",
    [
        pytest.param(name, marks=() if name == "sketch" else pytest.mark.not_in_ci)
        for name in sorted(REFERENCE)
    ],
)
def test_real_pictures_agree_with_the_reference(hold_out: str, stand_in: tuple[Path, Path]) -> None:
    bundle, out = stand_in
    done = system.run(
        "demo",
        "--data", SHARED / "pacs",
        "--bundle", bundle,
        "--hold-out", hold_out,
        "--rounds", "30",
        "--out", out,
        timeout_s=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    summary = read_summary(out)
    everybody = [*summary["devices"].values(), summary["held_out"]]
    for device in everybody:
        found = 100 * device["accuracy"]["zero_shot_all"]
        assert found == pytest.approx(ZERO_SHOT[device["domain"]], abs=0.5)
    accuracy, before, after = REFERENCE[hold_out]
    assert 100 * summary["held_out"]["accuracy"]["fedclip"] == pytest.approx(accuracy, abs=3)
    gains = [
        100 * (device["accuracy"]["fedclip"] - device["accuracy"]["zero_shot"])
        for device in summary["devices"].values()
    ]
    expected = (sum(after) - sum(before)) / 3
    assert sum(gains) / 3 == pytest.approx(expected, abs=3)


def test_the_held_out_domain_can_be_any_drawn_one() -> None:
    for domain in stage.DRAWN_DOMAINS:
        stage.check(stage.Settings(out=Path("does-not-exist"), hold_out=domain))


def test_a_killed_demo_leaves_no_process_that_draws(tmp_path: Path) -> None:
    out = tmp_path / "demo-run"
    pictures = out / "pictures" / "5000-of-seed-0"
    with system.started("demo", "--out", out, "--per-class", "5000") as running:
        wait_until(lambda: any(pictures.glob(".*/*/*.png")), "the first drawn picture")
        running.kill()
        wait_until(lambda: processes_of(out) == [], "every process to end")
