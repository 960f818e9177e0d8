"""The fault matrix on real processes, and the judge of its results.

The slow cells are marked slow. These tests measure no times (benchmarks/faults.py does): they check
that no contribution is lost or counted twice, and that every model matches its contributions.
"""

from __future__ import annotations

import contextlib
import json
import runpy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import fault_page
import matrix
import pytest
from brokers import MOSQUITTO
from checkout import ROOT
from device_laws import update_of
from fault_table import FAULTS
from faulty_fleet import AGENTS, DIM, VARIANT, VOTES, make_bundle
from fleet_faults import PHASES, Fault, Phase
from matrix import Decided, Outcome, Undisturbed, Verdict, judge, run_with_fault

from fedclip_edge import model_file
from fedclip_edge.coordinator import run_state
from fedclip_edge.coordinator.journal import open_journal
from fedclip_edge.coordinator.journal_tables import Run
from fedclip_edge.learning import methods
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.records import Model, Plan
from fedclip_edge.vision.bundle import Bundle

needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
FAULTS_PY = ROOT / "benchmarks" / "faults.py"
RUNNING: tuple[Phase, ...] = ("download", "training", "upload", "aggregation")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder: Path = tmp_path_factory.mktemp("bundles")
    return make_bundle(folder / "bundle")


def play(name: str, phases: tuple[Phase, ...], folder: Path, bundle: Bundle) -> Verdict:
    """Run with the fault injected in each of these phases; return the verdict."""
    fault = FAULTS[name]
    if why := fault.impossible():
        pytest.skip(why)
    outcomes = run_with_fault(fault, phases, folder, bundle)
    assert [outcome.phase for outcome in outcomes] == list(phases)
    verdict = outcomes[0].verdict
    assert (verdict.lost, verdict.twice, verdict.equal) == ((), (), True)
    return verdict


@pytest.mark.one_python
@needs_mosquitto
@pytest.mark.parametrize(
    ("fault", "phases"),
    [
        ("kill-agent", ("upload",)),
        ("kill-coordinator", ("aggregation",)),
        ("kill-broker", ("download",)),
        ("corrupted", ("upload",)),
        ("full-coordinator", ("upload",)),
        ("kill-agent", ("vote",)),
        ("kill-coordinator", ("vote",)),
        ("no-quorum", ("vote",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_run_with_a_fault_loses_nothing(
    fault: str, phases: tuple[Phase, ...], tmp_path: Path, bundle: Bundle
) -> None:
    play(fault, phases, tmp_path, bundle)


# In CI, only the coordinator is killed in every phase.
CHAINS: list[tuple[str, tuple[Phase, ...]]] = [
    ("kill-coordinator", PHASES),
    ("kill-agent", PHASES),
    ("kill-broker", PHASES),
    ("cut-5", ("download", "upload")),
    ("slow", ("upload",)),
    ("duplicated", ("download",)),
    ("full-coordinator", PHASES),
    ("full-agent", PHASES),
    ("clock", ("training",)),
    ("flap", ("upload",)),
    ("stop-agent", ("download",)),
    ("flood", ("training",)),
    ("evaluator", ("aggregation",)),
]


@pytest.mark.slow
@needs_mosquitto
@pytest.mark.parametrize(
    ("fault", "phases"),
    [CHAINS[0], *(pytest.param(*chain, marks=pytest.mark.not_in_ci) for chain in CHAINS[1:])],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_run_with_fault_after_fault_loses_nothing(
    fault: str, phases: tuple[Phase, ...], tmp_path: Path, bundle: Bundle
) -> None:
    play(fault, phases, tmp_path, bundle)


@pytest.mark.one_python
@needs_mosquitto
def test_a_run_that_ends_with_a_vote_counts_each_answer_once(
    tmp_path: Path, bundle: Bundle
) -> None:
    assert matrix.undisturbed(tmp_path, bundle, 1, votes=True).verdict.contributions == 3 + 3


@pytest.mark.one_python
@needs_mosquitto
def test_a_run_goes_on_without_a_device_whose_updates_are_refused(
    tmp_path: Path, bundle: Bundle
) -> None:
    # The quorum is three of three until the device is left out.
    assert play("refused", ("download",), tmp_path, bundle).contributions == 3 + 2 + 2


def test_every_fault_is_named_once_and_says_where_it_makes_no_sense() -> None:
    assert len({fault.title for fault in FAULTS.values()}) == len(FAULTS) == 17
    for fault in FAULTS.values():
        assert set(fault.nonsense) < set(PHASES)
        assert all(fault.nonsense.values())


# The judge.

EVERYBODY = dict.fromkeys(AGENTS, 1)
TOLD = {(device, closed) for device in AGENTS for closed in (1, 2)}


def finished_journal(folder: Path, bundle: Bundle, *rounds: Mapping[str, int]) -> Path:
    """Journal of a finished run in which each device counts as often as `rounds` says."""
    plan = Plan("fedclip", rounds=len(rounds), vote="off", codec_up="fp32", codec_down="fp32")
    method = methods.get(plan.method)
    model: Model = method.initial(bundle.classes, DIM, plan.seed)
    run = Run("run-1", plan, "e" * 64, bundle.classes.digest)
    path = folder / "journal.sqlite"
    with contextlib.closing(open_journal(path)) as journal:
        matrix.keep_every_model(path)
        journal.runs.add(run, run_state.stored_model(model, {}, plan))
        for counts in rounds:
            total = ExactSum(plan)
            for device, times in counts.items():
                for _ in range(times):
                    total.add(update_of(model, device, VARIANT))
            model, _ = methods.combine(model, total, {})
            journal.rounds.close(run.id, run_state.stored_model(model, {}, plan))
        trained = model_file.TrainedModel(model, run.id, plan, run.encoder_id, run.classes_digest)
        file = model_file.path_of(path, run.id)
        file.parent.mkdir()
        model_file.write(file, trained)
    return path


def test_a_run_as_it_should_be_is_found_so(tmp_path: Path, bundle: Bundle) -> None:
    verdict = judge(finished_journal(tmp_path, bundle, EVERYBODY, EVERYBODY), bundle, TOLD)
    assert (verdict.contributions, verdict.lost, verdict.twice, verdict.equal) == (6, (), (), True)


def test_what_was_acknowledged_and_is_in_no_model_is_lost(tmp_path: Path, bundle: Bundle) -> None:
    path = finished_journal(tmp_path, bundle, EVERYBODY, {**EVERYBODY, "cam-2": 0})
    verdict = judge(path, bundle, TOLD)
    assert (verdict.contributions, verdict.lost, verdict.twice) == (5, ("cam-2/2",), ())
    told = TOLD - {("cam-2", 2)}
    assert judge(path, bundle, told).lost == ()


def test_what_counts_twice_is_found(tmp_path: Path, bundle: Bundle) -> None:
    path = finished_journal(tmp_path, bundle, {**EVERYBODY, "cam-3": 2}, EVERYBODY)
    verdict = judge(path, bundle, TOLD)
    assert (verdict.contributions, verdict.lost, verdict.twice) == (6, (), ("cam-3/1",))
    assert not verdict.equal


def test_a_model_that_is_no_sum_of_its_contributions_is_not_equal(
    tmp_path: Path, bundle: Bundle
) -> None:
    path = finished_journal(tmp_path, bundle, EVERYBODY, {**EVERYBODY, "somebody-else": 1})
    verdict = judge(path, bundle, TOLD)
    assert not verdict.equal
    assert verdict.lost == ("cam-1/2", "cam-2/2", "cam-3/2")


def test_a_model_file_that_is_another_model_is_not_equal(tmp_path: Path, bundle: Bundle) -> None:
    path = finished_journal(tmp_path, bundle, EVERYBODY, EVERYBODY)
    file = model_file.path_of(path, "run-1")
    trained = model_file.read(file)
    terms = {name: term + 1 for name, term in trained.model.parameters.items()}
    other = Model(trained.model.method, trained.model.round, terms)
    trained = model_file.TrainedModel(
        other, trained.run, trained.plan, trained.encoder_id, trained.classes_digest
    )
    model_file.write(file, trained)
    assert not judge(path, bundle, TOLD).equal


ALL_VOTES = sum(VOTES.values())


def voted_journal(folder: Path, bundle: Bundle, decided: Decided) -> Path:
    """Journal of a finished run of one round and a vote with this result."""
    plan = Plan("fedclip", rounds=1, codec_up="fp32", codec_down="fp32")
    schedule = Schedule(plan, bundle.classes, DIM)
    model = schedule.initial()
    run = Run("run-1", plan, "e" * 64, bundle.classes.digest)
    path = folder / "journal.sqlite"
    with contextlib.closing(open_journal(path)) as journal:
        matrix.keep_every_model(path)
        journal.runs.add(run, run_state.stored_model(model, {}, plan))
        total = ExactSum(plan)
        for device in AGENTS:
            total.add(update_of(model, device, VARIANT))
        model, state = schedule.close(model, total, {})
        journal.rounds.close(run.id, run_state.stored_model(model, state, plan))
        _, model = matrix.voted(schedule, model, state, decided)
        journal.rounds.close(run.id, run_state.stored_model(model, {}, plan))
    trained = model_file.TrainedModel(model, run.id, plan, run.encoder_id, run.classes_digest)
    file = model_file.path_of(path, run.id)
    file.parent.mkdir()
    model_file.write(file, trained)
    return path


def test_each_answer_to_a_vote_is_found(tmp_path: Path, bundle: Bundle) -> None:
    decided = Decided(ALL_VOTES, has_quorum=True)
    path = voted_journal(tmp_path, bundle, decided)
    verdict = judge(path, bundle, TOLD, decided)
    assert (verdict.contributions, verdict.lost, verdict.twice, verdict.equal) == (6, (), (), True)
    fewer = replace(decided, pictures=ALL_VOTES - VOTES["cam-2"])
    assert judge(path, bundle, TOLD, fewer).lost == ("cam-2/2",)
    more = replace(decided, pictures=ALL_VOTES + VOTES["cam-3"])
    verdict = judge(path, bundle, TOLD, more)
    assert (verdict.twice, verdict.equal) == (("cam-3/2",), False)
    assert not judge(path, bundle, TOLD, Decided(0, has_quorum=False)).equal


def test_a_vote_without_a_quorum_loses_no_answer(tmp_path: Path, bundle: Bundle) -> None:
    decided = Decided(0, has_quorum=False)
    verdict = judge(voted_journal(tmp_path, bundle, decided), bundle, TOLD, decided)
    assert (verdict.contributions, verdict.lost, verdict.equal) == (3, (), True)


# The benchmark program.


FINE = Verdict(9, (), (), equal=True, digest="")
USUAL = Undisturbed(dict.fromkeys(PHASES, 2.0), dict.fromkeys(PHASES, 1.0), FINE)


def benchmark(
    monkeypatch: pytest.MonkeyPatch,
    verdict: Verdict | Exception,
    *options: str,
    run_s: float = 4.5,
    back_s: float = 1,
) -> int:
    """The exit code of the program if every run ends with `verdict`."""

    def run_with_fault(
        fault: Fault, phases: Sequence[Phase], folder: Path, bundle: Bundle
    ) -> list[Outcome]:
        if isinstance(verdict, Exception):
            raise verdict
        return [Outcome(fault.name, phases[0], run_s, 1.5, back_s, "a note", verdict)]

    monkeypatch.setattr(matrix, "undisturbed", lambda folder, bundle, rounds, *, votes: USUAL)
    monkeypatch.setattr(matrix, "run_with_fault", run_with_fault)
    monkeypatch.setattr(sys, "argv", ["faults.py", *options])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FAULTS_PY), run_name="__main__")
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_benchmark_prints_its_figures_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "faults.md"
    assert benchmark(monkeypatch, FINE, "--quick", "--json", "--markdown", str(page)) == 0
    *_, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert (figures["broken"], figures["over_limit"]) == ([], [])
    cells = {(cell["fault"], cell["phase"]): cell for cell in figures["cells"]}
    assert len(cells) == 30
    assert "no chunk is sent" in cells["corrupted", "idle"]["skipped"]
    assert cells["kill-broker", "upload"]["extra_s"] == 2.5
    assert cells["kill-broker", "upload"]["round_extra_s"] == 0.5
    row = "| broker killed | upload | 2.5 | 0.5 | 1.0 | 0 | 0 | 9 of 9 | yes | a note |"
    assert row in page.read_text()


def test_the_page_of_the_manual_explains_the_columns_before_the_table() -> None:
    page = (ROOT / "docs" / "explanation" / "faults.md").read_text(encoding="utf-8")
    explained, head, _ = page.partition(f"| {' | '.join(fault_page.HEAD)} |")
    assert head
    assert [name for name in fault_page.HEAD if f"**{name}**" not in explained] == []


def test_the_benchmark_says_what_took_too_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = ("--cell", "kill-coordinator:upload", "--cell", "kill-broker:upload")
    assert benchmark(monkeypatch, FINE, *cells, back_s=6) == 0
    assert capsys.readouterr().err == "kill-coordinator:upload is over its limit\n"


@pytest.mark.parametrize(("run_s", "over"), [(11.9, False), (12.1, True)])
def test_a_device_that_comes_and_goes_may_cost_the_run_ten_seconds(
    run_s: float, over: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark(monkeypatch, FINE, "--cell", "flap:upload", run_s=run_s) == 0
    assert ("flap:upload is over its limit" in capsys.readouterr().err) is over


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict(8, ("cam-1/2",), (), equal=True, digest=""),
        Verdict(9, (), ("cam-1/2",), equal=True, digest=""),
        Verdict(9, (), (), equal=False, digest=""),
        AssertionError("still waiting for the end of the run"),
    ],
    ids=["lost", "twice", "unequal", "endless"],
)
def test_the_benchmark_ends_with_1_and_the_cell_that_is_broken(
    verdict: Verdict | Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert benchmark(monkeypatch, verdict, "--cell", "cut-5:upload") == 1
    again = "python benchmarks/faults.py --cell cut-5:upload plays it again"
    assert again in capsys.readouterr().err


def test_a_cell_that_is_none_is_refused_with_the_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["faults.py", "--cell", "kill-cat:upload"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FAULTS_PY), run_name="__main__")
    assert ended.value.code == 2
    assert "FAULT of kill-agent" in capsys.readouterr().err
