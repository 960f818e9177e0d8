"""Splits of pictures over devices."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import pool

from fedclip_edge.errors import ConfigError, DataError
from fedclip_edge.records import F32, I64
from fedclip_edge.simulating.pool import TEST, TRAIN, VALIDATION
from fedclip_edge.simulating.splits import OTHERS, Fleet, _spread, deal, parse_split

POOL = pool(200)


def fleet(split: str, devices: int | None = None, seed: int = 0, **more: Any) -> Fleet:
    return deal(more.pop("its", POOL), parse_split(split), devices=devices, seed=seed, **more)


def rows_of(its: Fleet, side: str) -> list[int]:
    return sorted(int(row) for device in its.devices for row in getattr(device, side))


@settings(max_examples=40)
@given(
    split=st.sampled_from(["domain", "iid", "dirichlet:0.1", "dirichlet:0.5", "dirichlet:100"]),
    devices=st.integers(3, 40),
    seed=st.integers(0, 2**32),
)
def test_every_picture_is_on_one_device_and_its_side(split: str, devices: int, seed: int) -> None:
    found = fleet(split, devices, seed)
    assert len({device.name for device in found.devices}) == devices
    for side, name in ((TRAIN, "train"), (VALIDATION, "validation"), (TEST, "test")):
        assert rows_of(found, name) == list(POOL.rows(side))
        assert all((np.diff(getattr(device, name)) > 0).all() for device in found.devices)


def test_the_same_seed_gives_the_same_devices_and_another_one_others() -> None:
    def rows(seed: int) -> list[bytes]:
        return [device.train.tobytes() for device in fleet("dirichlet:0.1", 10, seed).devices]

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)


def test_a_domain_is_a_device_with_all_its_pictures_in_their_order() -> None:
    found = fleet("domain")
    assert [device.name for device in found.devices] == ["barn", "roof", "yard"]
    for number, device in enumerate(found.devices):
        its = np.flatnonzero((POOL.domain_of == number) & (POOL.sides == TRAIN))
        np.testing.assert_array_equal(device.train, its)


def test_more_devices_than_domains_share_them_evenly() -> None:
    found = fleet("domain", 7)
    assert Counter(device.name.split("-")[0] for device in found.devices) == {
        "barn": 3,
        "roof": 2,
        "yard": 2,
    }
    for device in found.devices:
        assert len(set(POOL.domain_of[device.train])) == 1
        assert 120 / 3 - 4 <= len(device.train) <= 120 / 2 + 4


def test_a_held_out_domain_is_on_no_device() -> None:
    for split in ("domain", "iid", "dirichlet:0.5"):
        found = fleet(split, held_out="roof")
        everywhere = [*rows_of(found, "train"), *rows_of(found, "test")]
        assert 1 not in POOL.domain_of[everywhere]
        assert found.held_out is not None
        assert found.held_out.name == "roof"
        np.testing.assert_array_equal(found.held_out.test, np.flatnonzero(POOL.domain_of == 1))
        assert not len(found.held_out.train)


def test_shares_are_kept_to_the_picture() -> None:
    shares = np.array([[0, 0.25, 0.75], [0, 1, 0], [0, 0, 1], [0, 0.5, 0.5]])
    training = POOL.sides == TRAIN
    counts = np.bincount(POOL.labels[training], minlength=4)
    none, some, most = _spread(POOL, training, shares, np.random.default_rng(0))
    assert not len(none)
    held = np.bincount(POOL.labels[some], minlength=4)
    np.testing.assert_array_equal(held, np.rint(counts * shares[:, 1]))
    np.testing.assert_array_equal(held + np.bincount(POOL.labels[most], minlength=4), counts)


def test_a_low_alpha_leaves_a_device_with_few_classes() -> None:
    def classes(split: str) -> float:
        each = [len(set(POOL.labels[d.train])) for d in fleet(split, 8).devices]
        return float(np.mean(each))

    assert classes("iid") == 4
    assert classes("dirichlet:0.1") < 3 < classes("dirichlet:100")


def test_training_and_test_pictures_of_a_device_are_skewed_alike() -> None:
    def shares(rows: I64, side: int) -> F32:
        whole = np.bincount(POOL.labels[POOL.rows(side)], minlength=4)
        return np.asarray(np.bincount(POOL.labels[rows], minlength=4) / whole, np.float32)

    for device in fleet("dirichlet:0.3", 4).devices:
        np.testing.assert_allclose(
            shares(device.test, TEST), shares(device.train, TRAIN), atol=1.5 / 20
        )


def test_every_device_has_enough_by_drawing_again_or_from_the_largest() -> None:
    drawn = fleet("dirichlet:0.5", 5)
    assert drawn.topped_up == 0
    assert min(len(device.train) for device in drawn.devices) >= 5
    skewed = fleet("dirichlet:0.05", 60, least=5)
    assert skewed.topped_up > 0
    assert min(len(device.train) for device in skewed.devices) >= 5
    assert rows_of(skewed, "train") == list(POOL.rows(TRAIN))


def test_nobody_need_have_enough() -> None:
    found = fleet("dirichlet:0.05", 60, least=0)
    assert found.topped_up == 0
    assert min(len(device.train) for device in found.devices) == 0


def test_a_share_of_the_devices_sends_noise_the_same_for_a_seed() -> None:
    for share, count in ((0.2, 2), (0.29, 2), (0.3, 3), (1.0, 10)):
        noisy = [one.name for one in fleet("iid", 10, noisy=share).devices if one.sends_noise]
        again = [one.name for one in fleet("iid", 10, noisy=share).devices if one.sends_noise]
        assert noisy == again
        assert len(noisy) == count
    plain = fleet("iid", 10)
    assert not any(one.sends_noise for one in plain.devices)
    pictures = [one.train.tolist() for one in fleet("iid", 10, noisy=0.5).devices]
    assert pictures == [one.train.tolist() for one in plain.devices]


def test_shots_are_the_most_of_a_class_on_a_device() -> None:
    whole, few = fleet("dirichlet:0.5", 5), fleet("dirichlet:0.5", 5, shots=3)
    for before, after in zip(whole.devices, few.devices, strict=True):
        had = np.bincount(POOL.labels[before.train], minlength=4)
        has = np.bincount(POOL.labels[after.train], minlength=4)
        np.testing.assert_array_equal(has, np.minimum(had, 3))
        assert set(after.train) <= set(before.train)
        np.testing.assert_array_equal(after.test, before.test)


@pytest.mark.parametrize(
    ("split", "more", "error", "said"),
    [
        (
            "domain",
            {"its": pool(domains=False)},
            DataError,
            "needs at least two domains: arrange the pictures as DOMAIN/",
        ),
        ("domain", {"devices": 2}, ConfigError, "--devices 2 is fewer than the 3 domains"),
        ("iid", {"devices": 100}, DataError, "360 training pictures are too few for 100 devices"),
    ],
)
def test_what_cannot_be_is_refused(
    split: str, more: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        fleet(split, **more)


@pytest.mark.parametrize("text", ["", "domains", "dirichlet", "dirichlet:", "dirichlet:0", "iid:3"])
def test_an_unknown_split_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected domain, iid, or dirichlet:ALPHA"):
        parse_split(text)


@pytest.mark.parametrize("text", ["domain", "iid", "dirichlet:0.1", "dirichlet:10"])
def test_a_split_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_split(text)) == text


@pytest.mark.parametrize("split", ["domain", "iid", "dirichlet:0.1"])
@pytest.mark.parametrize("devices", [3, 17, 40])
def test_the_pictures_of_others_are_test_pictures_of_other_devices(
    split: str, devices: int
) -> None:
    found = fleet(split, devices)
    of_all = rows_of(found, "test")
    for device in found.devices:
        every = np.setdiff1d(of_all, device.test)
        np.testing.assert_array_equal(device.others, every)  # there are fewer than OTHERS


def test_a_large_fleet_is_tried_on_a_sample_that_does_not_grow() -> None:
    its = pool(2 * OTHERS)  # 600 test pictures in all
    found = fleet("dirichlet:0.1", 6, its=its)
    for device in found.devices:
        available = np.setdiff1d(its.rows(TEST), device.test)
        assert len(device.others) == min(OTHERS, len(available))
        assert np.isin(device.others, available).all()
        assert len(np.unique(device.others)) == len(device.others)
    again = fleet("dirichlet:0.1", 6, its=its)
    other = fleet("dirichlet:0.1", 6, 1, its=its)
    same = [one.others.tobytes() for one in found.devices]
    assert [one.others.tobytes() for one in again.devices] == same
    assert [one.others.tobytes() for one in other.devices] != same
    first, second = found.devices[:2]  # nearly the same pictures, so that figures can be compared
    common = np.intersect1d(first.others, second.others)
    assert len(common) > OTHERS - len(first.test) - len(second.test)


def test_the_held_out_domain_is_no_device_that_others_are_tried_on() -> None:
    found = fleet("domain", held_out="roof")
    assert found.held_out is not None
    assert len(found.held_out.others) == 0
    for device in found.devices:
        assert not np.isin(device.others, found.held_out.test).any()
        assert len(device.others) > 0
