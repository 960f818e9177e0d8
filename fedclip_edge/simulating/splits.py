"""Splits of the pool's pictures over virtual devices.

- domain: a device holds the pictures of a domain, or an even part of them;
- dirichlet:ALPHA: the devices' shares of each class are drawn from a symmetric Dirichlet
  distribution, and are the same for training, validation and test. They are drawn again until every
  device has enough training pictures. If this fails in all TRIES draws, the devices with too few
  get pictures from the device with the most, and a note is printed. Yurochkin et al. 2019, arXiv
  1905.12022; Li, Diao, Chen, He 2022, arXiv 2102.02079;
- iid: even shares of each class.

Laws:
- a picture is on at most one device;
- the same seed gives the same devices;
- a device's pictures stay in the pool's order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from fedclip_edge.errors import ConfigError, DataError
from fedclip_edge.records import I64, slug
from fedclip_edge.simulating.pool import TEST, TRAIN, VALIDATION, Pool

TRIES = 200
OTHERS = 500  # pictures of other devices per device; the cost of trying them is linear in devices
_SIDES = (TRAIN, VALIDATION, TEST)
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Split:
    """A way to split pictures over devices; `str()` gives its form on the command line."""

    kind: Literal["domain", "dirichlet", "iid"]
    alpha: float = math.inf

    def __str__(self) -> str:
        return f"dirichlet:{self.alpha:g}" if self.kind == "dirichlet" else self.kind


@dataclass(frozen=True, eq=False)
class Device:
    """A virtual device: its rows of the pool on each side, in ascending order."""

    name: str
    train: I64  # (N,)
    validation: I64  # (N,)
    test: I64  # (N,)
    # Test pictures of other devices, on which its own model is tried as well: at most OTHERS rows.
    others: I64 = field(default_factory=lambda: _NONE)
    sends_noise: bool = False  # instead of its own update


@dataclass(frozen=True, eq=False)
class Fleet:
    """The devices of one run, and the held-out device, which only evaluates."""

    devices: tuple[Device, ...]
    held_out: Device | None = None
    topped_up: int = 0  # devices that took training pictures from others


def parse_split(text: str) -> Split:
    """Parse domain, iid or dirichlet:ALPHA.

    Raises ConfigError for anything else, and for an ALPHA outside 0.001 to 1000000.
    """
    if text in ("domain", "iid"):
        return Split("domain" if text == "domain" else "iid")
    kind, _, value = text.partition(":")
    try:
        alpha = float(value)
    except ValueError:
        alpha = math.nan
    if kind != "dirichlet" or not 1e-3 <= alpha <= 1e6:
        raise ConfigError(
            f"--split {text!r}: expected domain, iid, or dirichlet:ALPHA with ALPHA from 0.001 to "
            "1000000, such as dirichlet:0.1"
        )
    return Split("dirichlet", alpha)


def deal(
    pool: Pool,
    split: Split,
    *,
    devices: int | None,
    seed: int,
    held_out: str = "",
    shots: int | None = None,
    least: int = 5,
    noisy: float = 0.0,
) -> Fleet:
    """Split the pool over the devices of a fleet.

    - `devices`: their number; by default one for each domain, and ten for the other splits;
    - `held_out`: one of the pool's domains, which no device trains on;
    - `shots`: the largest number of training pictures per class on a device;
    - `least`: the smallest number of training pictures on a device; the domain split ignores it;
    - `noisy`: the fraction of devices that send noise; their number is rounded down.

    Raises DataError if the pool has too few domains or too few training pictures, or if two domains
    give the same device id. Raises ConfigError if the domain split gets fewer `devices` than
    domains, or if `noisy` is above 0 but less than one device.
    """
    random = np.random.default_rng([seed, 0x5EED])
    inside = np.ones(len(pool.labels), bool)
    if held_out:
        inside = pool.domain_of != pool.domains.index(held_out)
    if split.kind == "domain":
        fleet = _by_domain(pool, inside, devices, held_out, random)
    else:
        fleet = _by_class(pool, inside, split, devices or 10, least, random)
    if shots is not None:
        few = (
            replace(device, train=_few(device.train, pool.labels, shots, random))
            for device in fleet.devices
        )
        fleet = replace(fleet, devices=tuple(few))
    if not any(len(device.train) for device in fleet.devices):
        raise DataError("no device has a training picture; add pictures or hold out another domain")
    if noisy:
        fleet = replace(fleet, devices=_with_noise(fleet.devices, noisy, random))
    fleet = replace(fleet, devices=_with_others(fleet.devices, seed))
    if held_out:
        rows = np.flatnonzero(~inside)
        fleet = replace(fleet, held_out=Device(_ids(pool.domains)[held_out], _NONE, _NONE, rows))
    return fleet


def _with_others(devices: Sequence[Device], seed: int) -> tuple[Device, ...]:
    """Give each device a sample of the other devices' test pictures, the same one where possible.

    All devices take the first OTHERS pictures of one random order, without their own.
    """
    random = np.random.default_rng(
        [seed, 0x07E5]
    )  # its own, so that the splits do not depend on it
    order = random.permutation(np.concatenate([device.test for device in devices]))
    made = []
    for device in devices:
        first = order[: OTHERS + len(device.test)]
        rows = first[~np.isin(first, device.test)][:OTHERS]
        made.append(replace(device, others=np.sort(rows)))
    return tuple(made)


def _with_noise(
    devices: Sequence[Device], share: float, random: np.random.Generator
) -> tuple[Device, ...]:
    count = int(share * len(devices) + 1e-9)
    if not count:
        raise ConfigError(
            f"--noisy {share:g} of {len(devices)} devices is less than one device; use a larger "
            "fraction or more --devices"
        )
    chosen = set(random.permutation(len(devices))[:count])
    return tuple(replace(one, sends_noise=i in chosen) for i, one in enumerate(devices))


def _by_domain(
    pool: Pool, inside: np.ndarray, devices: int | None, held_out: str, random: np.random.Generator
) -> Fleet:
    if len(pool.domains) < 2:
        raise DataError(
            "--split domain needs at least two domains: arrange the pictures as DOMAIN/CLASS/FILE, "
            "or write train_group and test_group to the --features file; without domains use "
            "--split iid or dirichlet:0.1"
        )
    ids = _ids(pool.domains)
    domains = [name for name in pool.domains if name != held_out]
    count = len(domains) if devices is None else devices
    if count < len(domains):
        raise ConfigError(
            f"--devices {count} is fewer than the {len(domains)} domains; leave it out to get one "
            "device per domain"
        )
    made = []
    for place, domain in enumerate(domains):
        parts = count // len(domains) + (place < count % len(domains))
        its = inside & (pool.domain_of == pool.domains.index(domain))
        if parts == 1:
            train, validation, test = (np.flatnonzero(its & (pool.sides == s)) for s in _SIDES)
            made.append(Device(ids[domain], train, validation, test))
            continue
        even = np.full((len(pool.classes.names), parts), 1 / parts)
        sides = [_spread(pool, its & (pool.sides == s), even, random) for s in _SIDES]
        made += [
            Device(f"{ids[domain]}-{number}", sides[0][number], sides[1][number], sides[2][number])
            for number in range(parts)
        ]
    return Fleet(tuple(made))


def _by_class(
    pool: Pool,
    inside: np.ndarray,
    split: Split,
    devices: int,
    least: int,
    random: np.random.Generator,
) -> Fleet:
    classes = len(pool.classes.names)
    training = inside & (pool.sides == TRAIN)
    have = int(training.sum())
    if have < least * devices:
        raise DataError(
            f"{have} training pictures are too few for {devices} devices with at least {least} "
            "each; use fewer --devices or a lower --least"
        )
    shares = np.full((classes, devices), 1 / devices)
    if split.kind == "dirichlet":
        shares = _draw(pool.labels[training], shares.shape, split.alpha, least, random)
    sides = [_spread(pool, inside & (pool.sides == side), shares, random) for side in _SIDES]
    train, topped_up = _top_up(sides[0], pool.labels, least)
    width = len(str(devices - 1))
    return Fleet(
        tuple(
            Device(f"device-{number:0{width}}", train[number], sides[1][number], sides[2][number])
            for number in range(devices)
        ),
        topped_up=topped_up,
    )


def _draw(
    labels: I64, shape: tuple[int, int], alpha: float, least: int, random: np.random.Generator
) -> np.ndarray:
    """Draw shares (C, devices) that give each device enough pictures, or the best of TRIES."""
    classes, devices = shape
    counts = np.bincount(labels, minlength=classes)  # (C,)
    best, most = np.zeros(shape), -1
    for _ in range(TRIES):
        shares = random.dirichlet(np.full(devices, alpha), size=classes)  # (C, devices)
        fewest = int(np.diff(_cuts(shares, counts), axis=1, prepend=0).sum(axis=0).min())
        if fewest > most:
            best, most = shares, fewest
        if most >= least:
            break
    return best


def _cuts(shares: np.ndarray, counts: I64) -> np.ndarray:
    """Compute where each device's part of a class's list of pictures ends: int64 (C, devices).

    `shares` is (C, devices), `counts` is (C,). The part of the last device ends with the list.
    """
    cuts = np.rint(np.cumsum(shares, axis=1) * counts[:, None]).astype(np.int64)
    cuts[:, -1] = counts
    return np.minimum(cuts, counts[:, None])


def _spread(
    pool: Pool, chosen: np.ndarray, shares: np.ndarray, random: np.random.Generator
) -> list[I64]:
    """Deal the chosen rows to the devices, by their `shares` (C, devices) of each class."""
    classes, devices = shares.shape
    counts = np.bincount(pool.labels[chosen], minlength=classes)  # (C,)
    cuts = _cuts(shares, counts)  # (C, devices)
    owners = np.full(len(pool.labels), -1)  # (N,)
    for label in range(classes):
        rows = random.permutation(np.flatnonzero(chosen & (pool.labels == label)))
        owners[rows] = np.searchsorted(cuts[label], np.arange(len(rows)), side="right")
    order = np.argsort(owners, kind="stable")
    edges = np.searchsorted(owners[order], np.arange(devices + 1))
    return [order[edges[i] : edges[i + 1]] for i in range(devices)]


def _top_up(train: Sequence[I64], labels: I64, least: int) -> tuple[list[I64], int]:
    """Give each device at least `least` rows; return the rows and the number of topped-up devices.

    A device with too few gets one picture at a time from the device that has the most pictures. The
    picture is of that device's most frequent class.
    """
    rows = list(train)
    needy = [i for i, own in enumerate(rows) if len(own) < least]
    for i in needy:
        while len(rows[i]) < least:
            richest = max(range(len(rows)), key=lambda j: len(rows[j]))
            own = rows[richest]
            frequent = np.bincount(labels[own]).argmax()
            given = own[np.flatnonzero(labels[own] == frequent)[-1]]
            rows[richest] = own[own != given]
            rows[i] = np.sort(np.append(rows[i], given))
    return rows, len(needy)


def _few(rows: I64, labels: I64, shots: int, random: np.random.Generator) -> I64:
    kept = [
        random.permutation(rows[labels[rows] == label])[:shots] for label in np.unique(labels[rows])
    ]
    return np.sort(np.concatenate(kept)) if kept else rows


def _ids(domains: Sequence[str]) -> dict[str, str]:
    """Make a device id from each domain, as in a fleet; raises DataError if two are the same."""
    ids = {name: slug(name) or f"domain-{number}" for number, name in enumerate(domains)}
    if len(set(ids.values())) < len(ids):
        raise DataError(
            f"the domains {', '.join(domains)} do not give distinct device ids (only letters and "
            "digits count); rename them"
        )
    return ids
