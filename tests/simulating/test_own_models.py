"""Devices' own models, tried on the test pictures of other devices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulated import of, pool, task

from fedclip_edge.learning import local
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.learning.personal import personal
from fedclip_edge.records import Features, Plan
from fedclip_edge.simulating.federation import Round, federate
from fedclip_edge.simulating.host import _Sides
from fedclip_edge.simulating.settings import Line
from fedclip_edge.simulating.splits import Fleet, deal, parse_split
from fedclip_edge.simulating.workers import Here

POOL = pool(150)
FLEET = deal(POOL, parse_split("dirichlet:0.1"), devices=4, seed=0)
LINEAR = Plan("linear", {"lr": 0.02}, rounds=2, personal_epochs=5, codec_down="fp32")


def rounds(plan: Plan, line: Line = "federated", fleet: Fleet = FLEET) -> list[Round]:
    return list(federate(task(plan, line), fleet, Here(POOL)))


@pytest.mark.one_python
@pytest.mark.parametrize("plan", [LINEAR, Plan("tip-adapter", rounds=1)])
def test_it_is_the_own_model_on_the_pictures_of_others(plan: Plan) -> None:
    """Compared with the functions that an agent calls."""
    before, last = rounds(plan)[-2:]
    assert not before.own_pictures
    assert not before.other_pictures
    assert last.model is not None
    for device in FLEET.devices:
        sides = _Sides(of(POOL, device, "train"), of(POOL, device, "validation"))
        own = personal(plan, last.model, sides, POOL.classes, device.name)
        assert own is not None
        for pictures, found in (("test", last.own_pictures), ("others", last.other_pictures)):
            its: Features = of(POOL, device, pictures)
            compared = found[device.name, ""]
            for model, figure in (
                (own, compared.own),
                (last.model, compared.shared),
                (zeroshot.MODEL, compared.zero_shot),
            ):
                assert figure is not None
                assert figure.pictures == len(its)
                expected = local.measure(model, its, POOL.classes)
                assert figure == expected
        key = (device.name, "")
        assert last.figures[key] == last.own_pictures[key].own


def test_devices_that_train_alone_have_own_models_and_no_shared_one() -> None:
    last = rounds(Plan("ridge", {"min_per_class": 1}, rounds=1), "local")[-1]
    assert set(last.other_pictures) == {(device.name, "") for device in FLEET.devices}
    for compared in last.other_pictures.values():
        assert compared.shared is None
    own, others = (
        np.mean([one.own.top1 for one in its.values()])
        for its in (last.own_pictures, last.other_pictures)
    )
    assert others < own - 0.1  # they know only a few classes


@pytest.mark.parametrize("line", ["federated", "pooled"])
def test_without_own_models_nothing_is_compared(line: Line) -> None:
    last = rounds(Plan("ridge", rounds=1), line)[-1]
    assert not last.own_pictures
    assert not last.other_pictures


def test_a_device_without_training_pictures_has_no_model_to_try() -> None:
    none = np.zeros(0, np.int64)
    first, *rest = FLEET.devices
    fleet = replace(FLEET, devices=(replace(first, train=none, validation=none), *rest))
    last = rounds(LINEAR, fleet=fleet)[-1]
    assert set(last.other_pictures) == {(device.name, "") for device in rest}
    assert (first.name, "") in last.figures


def test_a_single_device_has_no_others() -> None:
    alone = deal(POOL, parse_split("iid"), devices=1, seed=0)
    last = rounds(Plan("tip-adapter", rounds=1), fleet=alone)[-1]
    assert set(last.own_pictures) == {("device-0", "")}
    assert not last.other_pictures
