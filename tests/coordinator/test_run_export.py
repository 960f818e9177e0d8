"""The export of a run: every figure of a real journal, as CSV, for TensorBoard and for MLflow."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import system
from brokers import free_port
from coordinated_fleet import RULES
from in_memory import Fleet, features

from fedclip_edge.coordinator.journal import open_journal_to_read
from fedclip_edge.coordinator.run_export import tracked
from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import methods
from fedclip_edge.records import Plan
from fedclip_edge.reporting.tracking import Tracked

PLAN = methods.with_defaults(Plan("auto", options={"min_per_class": 1}, rounds=2))
DEVICES = ("cam-0", "cam-1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with fleet.toml, and the journal of a run that has ended with a vote."""
    made: Path = tmp_path_factory.mktemp("exported")
    (made / "fleet.toml").write_text('fleet = "lab"\nbundle = "bundle"\n')
    fleet = Fleet(made, PLAN, RULES)
    with contextlib.closing(fleet):
        for number, name in enumerate(DEVICES):
            fleet.start_device(
                name,
                features(60, number, fleet.classes),
                features(20, 50 + number, fleet.classes),
                validation=features(40, 90 + number, fleet.classes),
            )
        fleet.run()
        yield made


@pytest.fixture
def found(folder: Path) -> Tracked:
    with contextlib.closing(open_journal_to_read(folder / "journal.sqlite")) as journal:
        (run,) = journal.runs.all()
        return tracked(journal, run, "lab")


def of(found: Tracked, device: str | None, name: str) -> dict[int, float]:
    its = [one for one in found.figures if (one.device, one.name) == (device, name)]
    assert len({one.round for one in its}) == len(its)
    return {one.round: one.value for one in its}


def export(folder: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    return system.run("run", "export", "--config", folder / "fleet.toml", *options)


def test_the_figures_are_those_of_reports_contributions_and_the_vote(
    folder: Path, found: Tracked
) -> None:
    with contextlib.closing(open_journal_to_read(folder / "journal.sqlite")) as journal:
        (run,) = journal.runs.all()
        closed, reports = journal.rounds.closed(run.id), journal.reports.all(run.id)
        contributed = journal.contributions.all(run.id)
    for device in DEVICES:
        mine = {report.round: report for report in reports if report.device == device}
        assert mine.keys() == set(range(closed + 1))
        for name in ("zero_shot", "federated"):
            shares = {number: report.accuracy[name] for number, report in mine.items()}
            assert of(found, device, f"accuracy/{name}") == shares
        waited = {number: report.wait_s for number, report in mine.items()}
        assert of(found, device, "seconds/wait") == waited
        norms = {number: norm for number, one, _, norm in contributed if one == device}
        del norms[closed]  # the vote, which changes no model
        assert of(found, device, "update/norm") == norms
    zero = of(found, None, "accuracy/zero_shot")
    assert zero[closed] == fmean(r.accuracy["zero_shot"] for r in reports if r.round == closed)
    assert of(found, None, "reports") == dict.fromkeys(range(closed + 1), 2)
    assert of(found, None, "update/contributions") == dict.fromkeys(range(1, closed + 1), 2)
    sizes = of(found, None, "update/bytes")
    assert sum(sizes.values()) == sum(size for _, _, size, _ in contributed)
    assert of(found, None, "vote/pictures") == {closed: 80}
    (best,) = of(found, None, "vote/accuracy").values()
    (other,) = of(found, None, "vote/zero_shot_accuracy").values()
    assert 0 <= other <= best <= 1
    assert found.settings["method"] == "auto"
    assert found.settings["options.min_per_class"] == 1


def test_the_csv_file_has_every_figure_and_is_the_same_each_time(
    folder: Path, found: Tracked, tmp_path: Path
) -> None:
    before = hashlib.sha256((folder / "journal.sqlite").read_bytes()).hexdigest()
    for name in ("one.csv", "two.csv"):
        done = export(folder, "--csv", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert done.stdout == (
            f"wrote {len(found.figures)} figures of {found.run} to {tmp_path / name}\n"
        )
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    with (tmp_path / "one.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [
        (row["run"], int(row["round"]), row["device"] or None, row["figure"], float(row["value"]))
        for row in rows
    ] == [(found.run, one.round, one.device, one.name, one.value) for one in found.figures]
    assert hashlib.sha256((folder / "journal.sqlite").read_bytes()).hexdigest() == before


def test_tensorboard_reads_a_folder_for_the_fleet_and_one_for_each_device(
    folder: Path, found: Tracked, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is in the extra [tracking]")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for _ in range(2):  # the second export replaces the first one
        done = export(folder, found.run, "--tensorboard", tmp_path / "logs")
        assert done.returncode == 0, done.stderr
    files = {
        str(path.parent.relative_to(tmp_path / "logs" / found.run)): path
        for path in (tmp_path / "logs").rglob("*tfevents*")
    }
    assert files.keys() == {"fleet", *(f"devices/{name}" for name in DEVICES)}
    for place, path in files.items():
        device = None if place == "fleet" else place.partition("/")[2]
        read = [
            (event.step, value.tag, tensor_of(value))
            for event in EventFileLoader(str(path)).Load()
            for value in event.summary.value
        ]
        assert [(step, tag) for step, tag, _ in read] == [
            (one.round, one.name) for one in found.figures if one.device == device
        ]
        its = [one.value for one in found.figures if one.device == device]
        assert [value for _, _, value in read] == pytest.approx(its, rel=1e-6)


def tensor_of(value: Any) -> float:
    """The number of a summary, in whichever form this version of the loader gives it."""
    if value.HasField("tensor"):
        return float(value.tensor.float_val[0])
    return float(value.simple_value)


@pytest.mark.one_python
def test_mlflow_gets_one_run_for_the_fleet_and_one_below_for_each_device(
    folder: Path, found: Tracked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="mlflow is in the extra [tracking]")
    store, home = tmp_path / "ml runs", tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for _ in range(2):
        done = export(folder, "--mlflow", store)
        assert done.returncode == 0, done.stderr
    assert f"added {len(found.figures)} figures of {found.run} to MLflow at {store}" in done.stdout
    assert not list(home.iterdir())  # MLflow's telemetry keeps the id of an installation there
    read = subprocess.run(
        [sys.executable, "-c", READ_MLFLOW, store.as_uri(), found.run],
        capture_output=True,
        text=True,
        check=True,
    )
    runs, method, zero_shot = read.stdout.splitlines()
    assert set(runs.split()) == {found.run, *DEVICES}
    assert len(runs.split()) == 3
    assert method == "auto"
    assert float(zero_shot) == of(found, "cam-1", "accuracy/zero_shot")[0]


READ_MLFLOW = """
import os, sys
os.environ["MLFLOW_ALLOW_FILE_STORE"] = os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
from mlflow import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[1])
found = client.search_runs([client.get_experiment_by_name("lab").experiment_id])
by_name = {run.info.run_name: run for run in found}
print(*(run.info.run_name for run in found))
print(by_name[sys.argv[2]].data.params["method"])
history = client.get_metric_history(by_name["cam-1"].info.run_id, "accuracy/zero_shot")
print(next(one.value for one in history if one.step == 0))
"""


@pytest.mark.one_python
def test_a_server_that_does_not_answer_is_one_sentence(folder: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow is in the extra [tracking]")
    address = f"http://127.0.0.1:{free_port()}"
    done = export(folder, "--mlflow", address)
    assert done.returncode == ConfigError.exit_code
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"fedclip-edge: MLflow at {address} did not take the run: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("option", "library"), [("--tensorboard", "tensorboard"), ("--mlflow", "mlflow")]
)
def test_a_missing_library_is_one_sentence(
    folder: Path, tmp_path: Path, option: str, library: str
) -> None:
    words = ["run", "export", "--config", str(folder / "fleet.toml"), option, str(tmp_path / "out")]
    without = (
        f"import sys; sys.modules[{library!r}] = None\nsys.argv[1:] = {words!r}\n"
        "from fedclip_edge.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", without], capture_output=True, text=True, check=False
    )
    assert done.returncode == ConfigError.exit_code
    assert done.stderr == (
        f"fedclip-edge: {library} is not installed; install it with pip install "
        "'fedclip-edge[tracking]'\n"
    )
    assert not (tmp_path / "out").exists()


def test_mistakes_are_one_sentence(folder: Path, found: Tracked, tmp_path: Path) -> None:
    none = export(folder)
    assert none.returncode == 2
    assert "say where to: --csv FILE, --tensorboard DIR or --mlflow URI" in none.stderr
    wrong = export(folder, f"{found.run}x", "--csv", tmp_path / "a.csv")
    assert wrong.returncode == ConfigError.exit_code
    assert f"did you mean {found.run!r}?" in wrong.stderr
    (tmp_path / "file").write_text("")
    below = export(folder, "--csv", tmp_path / "file" / "a.csv")
    assert below.returncode == ConfigError.exit_code
    assert below.stderr.count("\n") == 1
