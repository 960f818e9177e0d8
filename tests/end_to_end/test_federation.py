"""A simulated run: its models and message bodies equal those of a real run, byte for byte."""

from __future__ import annotations

import errno
import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from in_memory import ENCODER
from in_memory import Fleet as RealFleet
from opened import opened
from simulated import CLASSES, NONE, of, pool, task

from fedclip_edge.config.fleet import RunRules
from fedclip_edge.errors import DiskError
from fedclip_edge.learning import local, methods, mixture
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.learning.run_steps import exchanges
from fedclip_edge.protocol import wire
from fedclip_edge.records import Features, Model, Plan
from fedclip_edge.simulating.federation import Round, federate
from fedclip_edge.simulating.pool import Pool
from fedclip_edge.simulating.splits import Device, Fleet, deal, parse_split
from fedclip_edge.simulating.workers import Here, Workers

PLAN = Plan("fedclip", options={"loss": "cross-entropy", "lr": 0.01}, rounds=3, vote="off")
POOL = pool()
FLEET = deal(POOL, parse_split("domain"), devices=None, seed=0)


def model_bytes(model: Model | None) -> bytes:
    assert model is not None
    return wire.pack_model(model, "fp32")


def run(
    plan: Plan, fleet: Fleet = FLEET, its: Pool = POOL, min_per_class: int | None = None
) -> list[Round]:
    return list(federate(task(plan, min_per_class=min_per_class), fleet, Here(its)))


@pytest.mark.one_python
@pytest.mark.parametrize(
    "plan",
    [
        PLAN,
        replace(PLAN, codec_up="fp32", codec_down="fp32"),
        replace(PLAN, strategy="fedyogi"),
        replace(PLAN, strategy="multi-krum"),
        Plan("linear", {"optimizer": "sgd", "lr": 0.05}, rounds=3, vote="off"),
        Plan("ridge", rounds=1, vote="off"),
        replace(PLAN, vote="on"),
        replace(PLAN, vote="on", strategy="fedyogi"),
        Plan("ridge", rounds=1),
        Plan("gda", rounds=1),
    ],
    ids=[
        *("lossy", "lossless", "fedyogi", "multi-krum", "sgd", "ridge"),
        *("vote", "fedyogi and vote", "ridge and vote", "gda and vote"),
    ],
)
@pytest.mark.parametrize("floor", [1, 11])
def test_it_comes_to_the_model_of_a_real_federation_byte_for_byte(
    tmp_path: Path, plan: Plan, floor: int
) -> None:
    """Compares with the federation of tests/support/in_memory.py on the same features."""
    has_personal = not methods.get(plan.method).traits.learns_from_validation
    plan = replace(plan, personal_epochs=min(2, plan.rounds) if has_personal else 0)
    real = opened(RealFleet(tmp_path, plan, RunRules(devices=3, quorum=1.0), CLASSES))
    for device in FLEET.devices:
        real.start_device(
            device.name,
            of(POOL, device, "train"),
            of(POOL, device, "test"),
            validation=of(POOL, device, "validation"),
            min_per_class=floor,
        )
    real.run()
    reports = real.journal.reports.all(real.coordinator.run_state.run.id)
    kept = real.journal.rounds.newest_model(real.coordinator.run_state.run.id)
    simulated = run(plan, min_per_class=floor)
    assert model_bytes(simulated[-1].model) == model_bytes(real.coordinator.run_state.model)
    assert wire.pack_model(simulated[-1].model, plan.codec_down) == kept.payload  # type: ignore[arg-type]
    for report in reports:
        key = (report.device, "")
        found = simulated[report.round]
        # After the last round, a device reports the accuracy of its personal model.
        is_last = report.round == exchanges(plan)
        name = "personal" if has_personal and is_last else "federated"
        assert report.accuracy[name] == found.figures[key].top1
        assert report.accuracy[f"{name}_ece"] == found.figures[key].ece
        assert report.accuracy["zero_shot"] == found.zero_shot[key].top1


@pytest.mark.parametrize("strategy", ["fedavg", "fedyogi"])
@pytest.mark.parametrize("floor", [1, 1000], ids=["with sums", "without sums"])
def test_a_run_of_two_methods_goes_on_after_a_restart_between_any_two_exchanges(
    tmp_path: Path, strategy: str, floor: int
) -> None:
    """The default method: gda, the adapter and the vote; simulated, and with a new coordinator."""
    options = {"min_per_class": floor}
    plan = methods.with_defaults(Plan(options=options, rounds=3, strategy=strategy))
    real = opened(RealFleet(tmp_path, plan, RunRules(devices=3, quorum=1.0), CLASSES))
    for device in FLEET.devices:
        real.start_device(
            device.name,
            of(POOL, device, "train"),
            of(POOL, device, "test"),
            validation=of(POOL, device, "validation"),
            min_per_class=1,
        )
    closed = 0
    while real.coordinator.run_state.model.round < 4:
        real.step()
        if real.coordinator.run_state.model.round > closed:
            closed = real.coordinator.run_state.model.round
            real.open_journal()
            real.coordinator = real.start_coordinator()
            assert real.coordinator.run_state.model.round == closed
        assert real.now < 2000, "the run stands still"
    last = run(plan, min_per_class=1)[-1].model
    assert model_bytes(last) == model_bytes(real.coordinator.run_state.model)
    assert last is not None
    assert mixture.shares_of(last).keys() == {"gda", "fedclip"}


def test_with_a_floor_a_device_that_has_too_few_pictures_only_evaluates() -> None:
    found, without = run(PLAN, min_per_class=16)[-1], run(PLAN)[-1]
    assert {name for name, size in found.up_bytes.items() if size} == {"barn", "roof"}
    assert {name for name, _ in found.figures} == {"barn", "roof", "yard"}
    assert model_bytes(found.model) != model_bytes(without.model)


def test_bytes_are_those_of_the_bodies_so_far() -> None:
    first, *_, last = run(PLAN)
    name = FLEET.devices[0].name
    assert first.up_bytes[name] == 0
    initial = methods.initial(PLAN, CLASSES, POOL.dim)
    assert first.down_bytes[name] == len(wire.pack_model(initial, PLAN.codec_down))
    # Three updates of 144 compressed int8 values, and four models in fp16.
    assert 3 * 144 < last.up_bytes[name] < 3 * 1000
    assert 4 * 288 < last.down_bytes[name] < 4 * 600


@pytest.mark.one_python
def test_it_does_not_matter_which_worker_has_which_device() -> None:
    with Workers(POOL, 2) as hosts:
        spread = list(federate(task(PLAN), FLEET, hosts))
    here = run(PLAN)
    assert model_bytes(spread[-1].model) == model_bytes(here[-1].model)
    assert [one.figures for one in spread] == [one.figures for one in here]
    assert [one.up_bytes for one in spread] == [one.up_bytes for one in here]


def test_more_rounds_begin_like_fewer() -> None:
    """The residual that a device keeps does not depend on the number of rounds to come."""
    long, short = run(PLAN), run(replace(PLAN, rounds=2))
    for number, one in enumerate(short):
        assert model_bytes(one.model) == model_bytes(long[number].model)


def test_the_held_out_domain_only_evaluates() -> None:
    fleet = deal(POOL, parse_split("domain"), devices=None, seed=0, held_out="roof")
    found = run(PLAN, fleet)[-1]
    assert {name for name, _ in found.figures} == {"barn", "roof", "yard"}
    assert found.figures["roof", ""].pictures == 60  # all pictures of the domain
    assert found.up_bytes["roof"] == 0
    assert found.down_bytes["roof"] == found.down_bytes["barn"]
    without = Fleet(fleet.devices)
    assert model_bytes(run(PLAN, without)[-1].model) == model_bytes(found.model)


def test_the_local_line_is_each_device_alone() -> None:
    found = list(federate(task(PLAN, "local"), FLEET, Here(POOL)))
    for device in FLEET.devices:
        alone = local.alone(PLAN, CLASSES, POOL.dim)
        sides = _Sides(of(POOL, device, "train"), of(POOL, device, "validation"))
        for number in range(PLAN.rounds + 1):
            test = of(POOL, device, "test")
            expected = local.measure(alone.model, test, CLASSES)
            assert found[number].figures[device.name, ""] == expected
            alone.train(sides, device.name)
    assert found[-1].model is None
    assert set(found[-1].up_bytes.values()) == set(found[-1].down_bytes.values()) == {0}


def test_the_pooled_line_is_one_device_with_everything() -> None:
    plan = replace(PLAN, codec_up="fp32", codec_down="fp32")
    found = list(federate(task(plan, "pooled"), FLEET, Here(POOL)))[-1]
    rows = np.sort(np.concatenate([device.train for device in FLEET.devices]))
    one = Device("pooled", rows, NONE, NONE)
    alone = local.alone(plan, CLASSES, POOL.dim)
    sides = _Sides(of(POOL, one, "train"), of(POOL, one, "validation"))
    for _ in range(plan.rounds):
        alone.train(sides, "pooled")
    assert model_bytes(found.model) == model_bytes(alone.model)
    assert {name for name, _ in found.figures} == {"barn", "roof", "yard"}
    assert set(found.up_bytes.values()) == set(found.down_bytes.values()) == {0}


@pytest.mark.parametrize("train", [0, 1, 2])
def test_a_device_with_hardly_a_picture_stops_nobody(train: int) -> None:
    """With none it only evaluates.

    With one, without negatives, it adds no change. With two it trains.
    """
    poor = replace(FLEET.devices[0], train=FLEET.devices[0].train[:train])
    found = run(PLAN, Fleet((poor, *FLEET.devices[1:])))[-1]
    assert (found.up_bytes[poor.name] > 0) == (train > 0)
    assert (poor.name, "") in found.figures


def test_a_device_with_one_class_takes_part() -> None:
    rows = FLEET.devices[0].train
    one = replace(FLEET.devices[0], train=rows[POOL.labels[rows] == 1])
    found = run(PLAN, Fleet((one, *FLEET.devices[1:])))[-1]
    assert found.model is not None
    assert np.isfinite(found.model.parameters["0.weight"]).all()


def test_a_device_without_test_pictures_has_no_figure() -> None:
    blind = replace(FLEET.devices[0], test=NONE)
    found = run(PLAN, Fleet((blind, *FLEET.devices[1:])))[-1]
    assert {name for name, _ in found.figures} == {"roof", "yard"}


def test_classes_permuted_with_their_labels_give_the_same_zero_shot_figures() -> None:
    order = np.array([2, 0, 3, 1])
    back = np.argsort(order)
    moved_texts = replace(
        CLASSES,
        names=tuple(CLASSES.names[i] for i in back),
        vectors=CLASSES.vectors[back],
    )
    moved = replace(POOL, classes=moved_texts, labels=order[POOL.labels])
    plan = Plan("zeroshot", rounds=1)
    there = list(federate(task(plan, classes=moved_texts), FLEET, Here(moved)))[-1]
    here = run(plan)[-1]
    for key, one in here.figures.items():
        other = there.figures[key]
        assert (one.top1, one.macro_f1) == (other.top1, other.macro_f1)
        assert one.per_class == tuple(other.per_class[i] for i in order)
    apart = replace(POOL, classes=moved_texts)  # the labels are not permuted
    assert apart.classes.digest != POOL.classes.digest
    wrong = list(federate(task(plan, classes=moved_texts), FLEET, Here(apart)))[-1]
    assert wrong.figures != here.figures


def test_zero_shot_is_the_untrained_model() -> None:
    found = run(Plan("zeroshot", rounds=1))
    test = of(POOL, FLEET.devices[0], "test")
    key = (FLEET.devices[0].name, "")
    assert found[-1].figures[key] == local.measure(zeroshot.MODEL, test, CLASSES)
    assert found[-1].figures == found[0].figures == found[0].zero_shot


class _Sides:
    def __init__(self, train: Features, validation: Features) -> None:
        self.train = train
        self.validation = validation


assert POOL.encoder_id == ENCODER


def test_a_disk_that_takes_no_features_keeps_nothing_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_arguments: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "no space left on device")

    here = functools.partial(tempfile.TemporaryDirectory, dir=tmp_path)
    monkeypatch.setattr(tempfile, "TemporaryDirectory", here)
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DiskError, match="no space left"), Workers(POOL, 2):
        pass
    assert list(tmp_path.iterdir()) == []
