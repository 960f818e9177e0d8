"""Forgetting a device: the journal and its models are those of a fleet that never had it."""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, get_args

import pytest
from forgetful_run import BASIS, Journaled, Pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from opened import opened

from fedclip_edge import model_file
from fedclip_edge.coordinator import forgetting, journal_file, removal, retention
from fedclip_edge.coordinator.forgetting import Choices, erase, forget
from fedclip_edge.coordinator.journal import open_journal
from fedclip_edge.coordinator.journal_tables import SCHEMA, Run, StoredModel
from fedclip_edge.errors import ConfigError, JournalError, RunError
from fedclip_edge.records import Plan

METHODS = ("gda", "ridge", "tofa")
FLEET = {"cam-0": Pictures(0), "cam-1": Pictures(1), "cam-2": Pictures(2), "cam-3": Pictures(3)}


@st.composite
def fleets(draw: st.DrawFn) -> dict[str, Any]:
    """A fleet, the devices to forget in some order, the voters and the order of contributions."""
    count = draw(st.integers(2, 6))
    names = [f"cam-{n}" for n in range(count)]
    sizes = st.sampled_from([0, 3, 20, 60])
    devices = {name: Pictures(n, draw(sizes), draw(sizes)) for n, name in enumerate(names)}
    forgotten = draw(st.lists(st.sampled_from(names), min_size=1, max_size=count - 1, unique=True))
    plan = Plan(draw(st.sampled_from(METHODS)), vote=draw(st.sampled_from(["on", "off"])))
    return {
        "devices": devices,
        "plan": plan,
        "order": draw(st.permutations(names)),
        "voters": draw(st.lists(st.sampled_from(names), unique=True)),
        "forgotten": forgotten,
    }


@pytest.mark.one_python
@settings(max_examples=30, deadline=None)
@given(fleet=fleets())
def test_a_fleet_that_forgets_is_one_that_never_had_the_devices(
    tmp_path_factory: pytest.TempPathFactory, fleet: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("fleets")
    with_them = Journaled(folder / "with", fleet["devices"], fleet["plan"])
    with_them.begin()
    with_them.complete(fleet["order"], fleet["voters"])
    for device in fleet["forgotten"]:
        with_them.forget(device)
    left = [device for device in fleet["order"] if device not in fleet["forgotten"]]
    voters = [device for device in fleet["voters"] if device in left]
    without_them = Journaled(folder / "without", fleet["devices"], fleet["plan"])
    without_them.begin()
    without_them.complete(left, voters)
    with_them.complete(left, voters)
    assert with_them.content() == without_them.content()
    files = [model_file.path_of(its.journal.path, "run-1") for its in (with_them, without_them)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.one_python
@settings(max_examples=15, deadline=None)
@given(fleet=fleets(), data=st.data())
def test_a_device_that_was_absent_is_forgotten_like_any_other(
    tmp_path_factory: pytest.TempPathFactory, fleet: dict[str, Any], data: st.DataObject
) -> None:
    """Some devices are away in the second run, and count with their contribution to the first."""
    folder = tmp_path_factory.mktemp("fleets")
    here = data.draw(st.lists(st.sampled_from(fleet["order"]), unique=True))
    gone = fleet["forgotten"]
    ends = []
    for name, forgotten in (("with", set[str]()), ("without", set(gone))):
        its = Journaled(folder / name, fleet["devices"], fleet["plan"])
        left = [device for device in fleet["order"] if device not in forgotten]
        its.begin("run-1")
        its.complete(left)
        its.begin("run-2")
        voters = [device for device in fleet["voters"] if device not in forgotten]
        in_second = [device for device in here if device not in forgotten]
        its.complete(in_second, voters, counts_absent=True)
        if not forgotten:
            for device in gone:
                its.forget(device)
            voters = [device for device in voters if device not in gone]
            its.complete([device for device in in_second if device not in gone], voters)
        rows = its.content()
        ends.append(([row for row in rows["model"] if row[0] == "run-2"], rows["last"]))
    assert ends[0] == ends[1]


def test_the_devices_vote_again_only_if_the_ballot_changes(tmp_path: Path) -> None:
    fleet = Journaled(tmp_path, {**FLEET, "poor": Pictures(9, 0, 0)})
    fleet.begin()
    fleet.complete(fleet.devices)
    answers = {device: sha for _, r, device, sha, _ in fleet.content()["contribution"] if r == 2}
    (solved,) = fleet.forget("poor").solved
    assert solved.is_open
    assert solved.devices == 4
    answers.pop("poor")
    assert fleet.state().kept() == answers, "they are answers to this ballot too"
    (solved,) = fleet.forget("cam-0").solved
    assert solved.is_open
    assert fleet.state().kept() == {}
    assert fleet.state().model.round == 1


def test_without_a_vote_the_model_is_the_default_candidate(tmp_path: Path) -> None:
    fleet = Journaled(tmp_path / "with", FLEET)
    fleet.begin()
    fleet.complete(FLEET)
    (solved,) = fleet.forget("cam-3", without_vote=True).solved
    assert not solved.is_open
    never = Journaled(tmp_path / "without", FLEET)
    never.begin()
    state = never.close(["cam-0", "cam-1", "cam-2"])
    state.close_round(decided=False)
    never.state().finish()
    assert fleet.content() == never.content()
    path = model_file.path_of(fleet.journal.path, "run-1")
    assert path.read_bytes() == model_file.path_of(never.journal.path, "run-1").read_bytes()


def test_without_a_vote_the_answers_that_still_count_decide_with_a_quorum(tmp_path: Path) -> None:
    fleet = Journaled(tmp_path / "with", {**FLEET, "poor": Pictures(9, 0, 0)})
    fleet.begin()
    fleet.complete(fleet.devices)
    fleet.forget("poor", without_vote=True)
    never = Journaled(tmp_path / "without", FLEET)
    never.begin()
    never.complete(FLEET)
    assert fleet.content() == never.content()


def test_a_run_under_way_goes_on_without_the_device(tmp_path: Path) -> None:
    for number, closes in enumerate((False, True)):
        fleet = Journaled(tmp_path / f"with-{number}", FLEET)
        state = fleet.begin()
        for device in FLEET:
            fleet.answer(state, device)
        if closes:
            state.close_round()
            state = fleet.state()
            fleet.answer(state, "cam-2")
            fleet.answer(state, "cam-3")
        fleet.forget("cam-3")
        left = ["cam-0", "cam-1", "cam-2"]
        assert list(fleet.state().kept()) == ([] if closes else left)
        fleet.complete(left)
        never = Journaled(tmp_path / f"without-{number}", FLEET)
        never.begin()
        never.complete(left)
        assert fleet.content() == never.content()


def test_a_trained_model_is_not_computed_again_and_nothing_changes(tmp_path: Path) -> None:
    fleet = Journaled(tmp_path, FLEET, Plan("linear", rounds=2, vote="off"))
    fleet.begin()
    fleet.complete(FLEET)
    before, epoch = fleet.content(), fleet.journal.epoch
    with pytest.raises(ConfigError) as raised:
        fleet.forget("cam-1")
    assert "linear is trained in rounds" in str(raised.value)
    assert "starts from zero-shot CLIP" in str(raised.value)
    assert fleet.content() == before
    assert fleet.journal.epoch == epoch
    assert fleet.journal.devices.forgotten("run-1") == frozenset()
    fleet.begin("run-2")
    fleet.complete([device for device in FLEET if device != "cam-1"])
    done = fleet.forget("cam-1")
    assert [run for run, _ in done.remaining] == ["run-1"]
    assert done.remaining_files == (model_file.path_of(fleet.journal.path, "run-1"),)
    again = fleet.forget("cam-1", delete_models=True)
    assert again.emptied == ("run-1",)
    assert not model_file.path_of(fleet.journal.path, "run-1").exists()
    assert fleet.journal.rounds.closed("run-1") == 0
    assert fleet.journal.rounds.closed("run-2") == 2
    assert fleet.forget("cam-1").remaining == ()


def test_a_run_that_begins_with_sums_and_then_trains_is_refused_for_its_training(
    tmp_path: Path,
) -> None:
    """Its sums are gone, too: a later run replaced them."""
    fleet = Journaled(tmp_path, FLEET, Plan("auto", rounds=2))
    for run in ("run-1", "run-2"):
        fleet.begin(run)
        fleet.complete(FLEET)
    with pytest.raises(ConfigError, match="auto is trained in rounds, and every later update"):
        fleet.forget("cam-1")


def test_the_newest_trained_model_can_be_deleted(tmp_path: Path) -> None:
    fleet = Journaled(tmp_path, FLEET, Plan("linear", rounds=2, vote="off"))
    fleet.begin()
    fleet.complete(FLEET)
    assert fleet.forget("cam-1", delete_models=True).emptied == ("run-1",)
    assert fleet.journal.rounds.newest_model("run-1").round == 0
    assert fleet.journal.runs.unfinished() is None


def test_a_device_can_leave_a_trained_run_before_its_first_round_is_closed(tmp_path: Path) -> None:
    plan, left = Plan("linear", rounds=1), ["cam-0", "cam-1", "cam-2"]
    fleet = Journaled(tmp_path / "with", FLEET, plan)
    fleet.begin()
    state = fleet.close(left)
    for device in FLEET:
        fleet.answer(state, device)  # to the vote
    assert fleet.forget("cam-3").contributions == 1
    fleet.complete(left)
    never = Journaled(tmp_path / "without", FLEET, plan)
    never.begin()
    never.complete(left)
    assert fleet.content() == never.content()
    fleet.begin("run-2")
    fleet.close(left)
    fleet.complete(FLEET)
    with pytest.raises(ConfigError, match="the model before its first contribution is no longer"):
        fleet.forget("cam-3")


def test_a_run_that_started_from_a_model_with_the_device_contains_it(tmp_path: Path) -> None:
    fleet = Journaled(tmp_path, FLEET, Plan("linear", rounds=1, vote="off"))
    fleet.begin("run-1")
    fleet.complete(FLEET)
    fleet.begin("run-2", started_from="run-1")
    with pytest.raises(ConfigError, match=r"of run-2.* it started from the model of run-1"):
        fleet.forget("cam-3")
    fleet.complete(["cam-0"])
    fleet.begin("run-3")
    fleet.complete(["cam-0"])
    assert [run for run, _ in fleet.forget("cam-3").remaining] == ["run-1", "run-2"]
    assert fleet.forget("cam-3", delete_models=True).emptied == ("run-1", "run-2")


def test_the_model_that_an_open_run_started_from_is_deleted_too(tmp_path: Path) -> None:
    fleet = Journaled(tmp_path, FLEET, Plan("linear", rounds=1, vote="off", codec_down="fp32"))
    fleet.begin("run-1")
    zero_shot = fleet.journal.rounds.newest_model("run-1").payload
    fleet.complete(FLEET)
    fleet.begin("run-2", started_from="run-1")
    assert fleet.journal.rounds.newest_model("run-2").payload != zero_shot
    assert fleet.forget("cam-3", delete_models=True).emptied == ("run-1", "run-2")
    for run in ("run-1", "run-2"):
        assert fleet.journal.rounds.newest_model(run).payload == zero_shot


def test_a_run_that_the_operator_ended_is_not_opened_again(tmp_path: Path) -> None:
    fleet = Journaled(tmp_path, FLEET)
    fleet.begin()
    fleet.close(FLEET)
    fleet.journal.runs.finish("run-1", abandoned=True)
    (solved,) = fleet.forget("cam-3").solved
    assert (solved.closed, solved.is_open) == (1, False)
    assert fleet.journal.runs.course("run-1").state == "abandoned"
    never = Journaled(tmp_path / "never", FLEET)
    never.begin()
    never.close(["cam-0", "cam-1", "cam-2"])
    never.journal.runs.finish("run-1", abandoned=True)
    assert fleet.content() == never.content()


def test_a_model_whose_contributions_are_gone_is_named(tmp_path: Path) -> None:
    fleet = Journaled(tmp_path, FLEET)
    fleet.begin("run-1")
    fleet.complete(FLEET)
    fleet.begin("run-2")
    fleet.complete(["cam-0", "cam-1"])
    done = fleet.forget("cam-3")
    ((run, reason),) = done.remaining
    assert run == "run-1"
    assert "(cam-0, cam-1) are no longer in the journal" in reason
    assert done.solved == (), "the second run never had it"


def test_without_kept_sums_the_newest_model_is_not_computed_again(tmp_path: Path) -> None:
    fleet = Journaled(tmp_path, FLEET, settings={"keep_sums_mb": 0})
    fleet.begin()
    fleet.complete(FLEET)
    assert fleet.content()["last"] == []
    with pytest.raises(ConfigError, match=r"keep_sums_mb is too small; nothing was changed"):
        fleet.forget("cam-3")


def test_a_run_of_another_bundle_is_named(tmp_path: Path) -> None:
    fleet = Journaled(tmp_path, FLEET)
    fleet.begin()
    fleet.complete(FLEET)
    other = replace(BASIS, encoder_id="f" * 64)
    with pytest.raises(ConfigError, match="another bundle than the one in fleet"):
        forget(fleet.journal, "cam-0", other, Choices(0.75))
    done = forget(fleet.journal, "cam-0", other, Choices(0.75, delete_models=True))
    assert done.emptied == ("run-1",)
    assert fleet.journal.runs.all() == ()


def test_an_unknown_device_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    fleet = Journaled(tmp_path, FLEET)
    fleet.begin()
    fleet.complete(FLEET)
    with pytest.raises(ConfigError, match=r"nothing of a device 'cam3'; did you mean 'cam-3'\?"):
        fleet.forget("cam3")


def test_no_byte_of_the_device_stays_in_the_files(tmp_path: Path) -> None:
    """The device's own payloads, its key and its reports; also those of earlier runs."""
    fleet = Journaled(tmp_path, FLEET)
    samples = []
    for name in ("run-1", "run-2", "run-3"):
        fleet.begin(name)
        for device in FLEET:
            fleet.journal.devices.pin_key(
                name, device, hashlib.sha256(f"{name} {device}".encode()).hexdigest()
            )
        samples.append(hashlib.sha256(f"{name} cam-3".encode()).hexdigest().encode())
        state = fleet.state()
        for device in FLEET:
            fleet.answer(state, device)
        query = "SELECT body FROM payload JOIN contribution ON id = contribution WHERE device = ?"
        for (body,) in fleet.journal._database.execute(query, ("cam-3",)):
            samples.append(bytes(body[len(body) // 2 :][:48]))
        fleet.complete(FLEET)
    assert any(sample in on_disk(tmp_path) for sample in samples)
    fleet.forget("cam-3")
    left = on_disk(tmp_path)
    assert [sample for sample in samples if sample in left] == []


def test_what_was_interrupted_after_the_transaction_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Journaled(tmp_path, FLEET, Plan("gda", vote="off"))
    fleet.begin()
    fleet.complete(FLEET)
    path = model_file.path_of(fleet.journal.path, "run-1")
    before = path.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(forgetting, "_update_files", killed)
        with pytest.raises(KeyboardInterrupt):
            fleet.forget("cam-3")
    assert path.read_bytes() == before
    done = fleet.forget("cam-3")
    assert (done.contributions, done.files) == (0, (path,))
    never = Journaled(tmp_path / "never", FLEET, Plan("gda", vote="off"))
    never.begin()
    never.complete(["cam-0", "cam-1", "cam-2"])
    assert path.read_bytes() == model_file.path_of(never.journal.path, "run-1").read_bytes()


def test_a_mistake_in_the_middle_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Journaled(tmp_path, FLEET)
    fleet.begin()
    fleet.complete(FLEET)
    before, epoch = fleet.content(), fleet.journal.epoch

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(removal, "reopen", full)
    with pytest.raises(JournalError, match="disk is full"):
        fleet.forget("cam-3")
    assert fleet.content() == before
    assert fleet.journal.epoch == epoch
    monkeypatch.undo()
    assert fleet.forget("cam-3").contributions == 2


def test_a_journal_that_another_process_reads_is_not_called_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "_WAITS_S", 0.5)
    fleet = Journaled(tmp_path, FLEET)
    fleet.begin()
    fleet.complete(FLEET)
    reader = sqlite3.connect(fleet.journal.path)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM run").fetchall()
    fleet.journal._database.execute("PRAGMA busy_timeout = 100")
    (failure,) = fleet.forget("cam-3").failures
    assert "deleted data is still in the journal" in failure
    said = erase(fleet.journal.path, fleet.journal.erase_step)
    assert "another process reads it" in said
    reader.close()
    assert erase(fleet.journal.path, fleet.journal.erase_step) == ""
    assert fleet.forget("cam-3").failures == ()


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_byte_of_a_device_is_left_whatever_was_written_and_deleted_before(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    journal = opened(open_journal(tmp_path_factory.mktemp("journals") / "journal.sqlite"))
    random = Random(data.draw(st.integers(0, 2**32)))
    size_bytes = data.draw(st.sampled_from([200, 2_000, 20_000, 40_000, 200_000]))
    names = [f"cam-{number:03}" for number in range(data.draw(st.integers(2, 25)))]
    samples: dict[str, list[bytes]] = {name: [] for name in names}
    for run in ("run-1", "run-2"):
        journal.runs.add(Run(run, Plan("gda"), "e" * 64, "c" * 64), model(0, random))
        for number in range(1, data.draw(st.integers(1, 8)) + 1):
            for name in random.sample(names, len(names)):
                body = random.randbytes(random.randint(size_bytes // 4, size_bytes))
                samples[name].append(body[24:48])
                journal.contributions.keep(
                    run, number, name, random.randbytes(32).hex(), body, 0.5, 1
                )
                journal.devices.pin_key(run, name, random.randbytes(32).hex())
            stays = data.draw(st.sampled_from(get_args(retention.Stays)))
            journal.rounds.close(run, model(number, random), stays)
        journal.runs.finish(run)
    (gone,) = random.sample(names, 1)
    with journal.transaction() as database:
        removal.remove_device(database, gone)
        journal.rounds.add_model("run-2", model(99, random))  # into the pages that were freed
    assert erase(journal.path, journal.erase_step) == ""
    journal.rewrite()  # without it, a copy of a row that SQLite moved is left in one of 100 files
    left = on_disk(journal.path.parent)
    assert gone.encode() not in left
    assert not [sample for sample in samples[gone] if sample in left]
    journal.check()
    assert {name for name in names if name.encode() in left} == set(names) - {gone}


def model(number: int, random: Random) -> StoredModel:
    body = random.randbytes(random.randint(1_000, 90_000))
    return StoredModel(number, hashlib.sha256(body).hexdigest(), body, b"")


def test_erasing_takes_short_steps_between_which_others_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_file, "_ERASES_S", 0.0)
    journal = opened(open_journal(tmp_path / "journal.sqlite"))
    random = Random(0)
    journal.runs.add(Run("run-1", Plan("gda"), "e" * 64, "c" * 64), model(0, random))
    for name in ("cam-1", "cam-2"):
        journal.contributions.keep("run-1", 1, name, "a" * 64, random.randbytes(8_000_000), 0.5, 1)
    with journal.transaction() as database:
        removal.remove_device(database, "cam-1")
    lefts = []
    while left := journal.erase_step():
        lefts.append(left)
        journal.devices.pin_key("run-1", f"cam-{len(lefts)}", "b" * 64)
    assert lefts == sorted(lefts, reverse=True)
    assert len(lefts) >= 7
    assert max(before - after for before, after in pairwise(lefts)) <= 32
    assert journal.path.stat().st_size < 10_000_000
    assert len(journal.devices.keys("run-1")) == len(lefts)


def test_a_journal_of_an_earlier_version_is_rewritten_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with sqlite3.connect(path) as database:
        database.executescript(f"{SCHEMA.script} PRAGMA user_version = {SCHEMA.version};")
    database.close()
    journal, random = opened(open_journal(path)), Random(0)
    journal.runs.add(Run("run-1", Plan("gda"), "e" * 64, "c" * 64), model(0, random))
    body = random.randbytes(500_000)
    journal.contributions.keep("run-1", 1, "cam-1", "a" * 64, body, 0.5, 1)
    with journal.transaction() as database:
        removal.remove_device(database, "cam-1")
    assert erase(path, journal.erase_step) == ""
    assert body[1000:1032] not in on_disk(tmp_path)
    assert path.stat().st_size < 300_000


def test_a_coordinator_that_still_serves_stops(tmp_path: Path) -> None:
    """As one without a control socket would: the removal claims an epoch."""
    fleet = Journaled(tmp_path, FLEET)
    fleet.begin()
    fleet.complete(FLEET)
    other = opened(open_journal(fleet.journal.path))
    other.next_epoch()
    fleet.forget("cam-3")
    with pytest.raises(RunError, match="another coordinator took over"):
        other.check_claim()


def on_disk(folder: Path) -> bytes:
    files = [*folder.glob("journal.sqlite*"), *(folder / "models").glob("*")]
    return b"".join(path.read_bytes() for path in files)


def test_the_oldest_sums_go_first_when_there_are_too_many(tmp_path: Path) -> None:
    fleet = Journaled(tmp_path, FLEET)
    for name in ("run-1", "run-2"):
        fleet.begin(name)
        fleet.complete(["cam-0", "cam-1"] if name == "run-1" else ["cam-2", "cam-3"])
    sizes = fleet.journal._database.execute("SELECT size_bytes FROM contribution WHERE round = 1")
    newest = sum(size for (size,) in sizes.fetchall()[2:])
    assert [row[0] for row in fleet.content()["last"]] == list(FLEET)
    with fleet.journal.transaction() as database:
        dropped = retention.close_round(database, "run-2", 1, "sums", (), newest)
    assert dropped == 2
    assert [row[0] for row in fleet.content()["last"]] == ["cam-2", "cam-3"]
    left = {
        (run, device)
        for run, r, device, _, body in fleet.content()["contribution"]
        if r == 1 and body
    }
    assert left == {("run-2", "cam-2"), ("run-2", "cam-3")}


def test_a_contribution_for_other_classes_does_not_count(tmp_path: Path) -> None:
    fleet = Journaled(tmp_path, FLEET)
    fleet.begin()
    fleet.complete(FLEET)
    journal, state = fleet.journal, fleet.begin("run-2")
    assert [last.device for last in fleet.state(counts_absent=True).last_contributions()] == [
        *FLEET
    ]
    assert state.last_contributions() == (), 'with absent = "skip"'
    assert journal.contributions.last(state.run.encoder_id, "d" * 64) == ()
    assert journal.contributions.last("f" * 64, state.run.classes_digest) == ()


def test_a_contribution_that_does_not_fit_the_plan_does_not_count(tmp_path: Path) -> None:
    """A device sent a class with 5 pictures; this plan wants 1000."""
    fleet = Journaled(tmp_path, FLEET)
    fleet.begin()
    fleet.complete(FLEET)
    fleet.plan = Plan("gda", {"min_per_class": 1000})
    fleet.begin("run-2")
    state = fleet.state(counts_absent=True)
    assert state.close_round(lasts=state.last_contributions()).counted_last == ()
