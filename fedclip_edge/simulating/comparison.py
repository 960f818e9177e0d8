"""The runs of a simulation in sequence: over seeds, held-out domains and settings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedclip_edge.errors import ConfigError, DataError
from fedclip_edge.learning import methods
from fedclip_edge.learning.run_steps import exchanges
from fedclip_edge.records import I64, MAX_WEIGHT, ClassTexts, Plan
from fedclip_edge.simulating import results
from fedclip_edge.simulating.federation import federate
from fedclip_edge.simulating.host import Task, View
from fedclip_edge.simulating.pool import TEST, UNUSED, Pool
from fedclip_edge.simulating.settings import Setting
from fedclip_edge.simulating.splits import Fleet, Split, deal
from fedclip_edge.simulating.workers import Hosts


@dataclass(frozen=True)
class Choices:
    """Settings of a comparison, as given on the command line."""

    settings: tuple[Setting, ...]
    split: Split
    devices: int | None = None
    first_seed: int = 0
    seeds: int = 1
    shots: int | None = None
    hold_out: str = ""  # a domain, or "all" for each in turn
    base_to_new: bool = False
    leave_out: int = 0  # classes that no device has and that are in no class list
    least: int = 5  # training pictures that a device needs; domain splits ignore it
    noisy: float = 0.0  # share of the devices that send noise
    min_per_class: int | None = None  # of every device, as in agent.toml; None withholds nothing


@dataclass(frozen=True)
class Step:
    """A finished round of a run; `outcomes` is filled only in the last round."""

    run: results.Run
    round: int
    lines: str  # the CSV lines of this round
    outcomes: tuple[results.Outcome, ...] = ()


def check(choices: Choices, pool: Pool) -> None:
    """Check the choices against the pool before anything is trained.

    Raises ConfigError or DataError for an unknown held-out domain, for a split that does not fit
    the pool, for --base-to-new and --leave-out with too few classes or with each other, and for
    --base-to-new with a method that learns per class.
    """
    views(choices, pool, choices.first_seed)
    domains = held_out(choices, pool)
    for domain in domains:
        deal_of(choices, pool, choices.first_seed, domain)
    if choices.base_to_new:
        base, new = (view.classes for view in views(choices, pool, choices.first_seed))
        for setting in choices.settings:
            few, all_ = (
                methods.shapes(setting.plan, classes, pool.dim) for classes in (base, pool.classes)
            )
            if few != all_ or methods.get(setting.plan.method).traits.is_personal:
                raise ConfigError(
                    f"{setting.label} learns something for each class, so it cannot recognise the "
                    f"new classes of --base-to-new ({new.names[0]}, ...); remove it from --methods"
                )


def held_out(choices: Choices, pool: Pool) -> tuple[str, ...]:
    """List the domains to hold out in turn; ("",) if none is held out.

    Raises DataError if the pool has fewer than two domains, and ConfigError for an unknown domain.
    """
    if not choices.hold_out:
        return ("",)
    if len(pool.domains) < 2:
        raise DataError(
            "--hold-out needs at least two domains: arrange the pictures as DOMAIN/CLASS/FILE, or "
            "write train_group and test_group to the --features file"
        )
    if choices.hold_out == "all":
        return pool.domains
    if choices.hold_out not in pool.domains:
        raise ConfigError(
            f"--hold-out: there is no domain {choices.hold_out!r}; choose one of: "
            f"{', '.join(pool.domains)}, or all"
        )
    return (choices.hold_out,)


def deal_of(choices: Choices, pool: Pool, seed: int, domain: str) -> Fleet:
    """Make the fleet for one seed and one held-out domain; raises the errors of `deal`."""
    if choices.leave_out:
        hidden = left_out(choices, pool, seed)[pool.labels] & (pool.sides != TEST)  # (N,)
        pool = replace(pool, sides=np.where(hidden, np.uint8(UNUSED), pool.sides))
    return deal(
        pool,
        choices.split,
        devices=choices.devices,
        seed=seed,
        held_out=domain,
        shots=choices.shots,
        least=choices.least,
        noisy=choices.noisy,
    )


def left_out(choices: Choices, pool: Pool, seed: int) -> NDArray[np.bool_]:
    """Draw the classes that are left out; the result is True for each of them, (C,)."""
    count = len(pool.classes.names)
    drawn = np.random.default_rng([seed, 0x1EAF]).permutation(count)
    return np.isin(np.arange(count), drawn[: choices.leave_out])


def views(choices: Choices, pool: Pool, seed: int) -> tuple[View, ...]:
    """List the sets of classes to evaluate on: all classes, or base and then new classes.

    Base classes are the first half, rounded up. With --leave-out the set lacks the classes that are
    left out. Raises ConfigError for both together, and DataError for --base-to-new with fewer than
    four classes, and for --leave-out if fewer than two remain.
    """
    count = len(pool.classes.names)
    if choices.leave_out and choices.base_to_new:
        raise ConfigError(
            "give either --leave-out or --base-to-new; with --base-to-new, the pictures of the new "
            "classes are those of none of the base classes"
        )
    if choices.leave_out > count - 2:
        raise DataError(
            f"--leave-out {choices.leave_out} leaves fewer than two of the {count} classes; use a "
            "lower number"
        )
    if not choices.base_to_new:
        return (_view("", pool.classes, np.flatnonzero(~left_out(choices, pool, seed))),)
    if count < 4:
        raise DataError(
            f"--base-to-new needs four classes or more, but there are {count}; leave it out"
        )
    half = -(-count // 2)  # rounded up, as in CoOp and the work based on it
    return (
        _view("base", pool.classes, np.arange(half)),
        _view("new", pool.classes, np.arange(half, count)),
    )


def count_rounds(choices: Choices, pool: Pool) -> int:
    """Count the rounds of all runs together; evaluating the initial model counts as one."""
    rounds = sum(exchanges(setting.plan) + 1 for setting in choices.settings)
    return rounds * choices.seeds * len(held_out(choices, pool))


def compare(
    choices: Choices, pool: Pool, hosts: Hosts, note: Callable[[str], None]
) -> Iterator[Step]:
    """Run every seed, held-out domain and setting, and yield a step after each round.

    `note` is called with a sentence if devices had to take training pictures from others. Raises
    the errors of `deal` and `federate`.
    """
    for seed in range(choices.first_seed, choices.first_seed + choices.seeds):
        shown = views(choices, pool, seed)
        for domain in held_out(choices, pool):
            fleet = deal_of(choices, pool, seed, domain)
            if fleet.topped_up:
                note(
                    f"seed {seed}: {fleet.topped_up} of {len(fleet.devices)} devices had fewer than "
                    f"{choices.least} training pictures (--least) and got some from the largest "
                    "devices"
                )
            for setting in choices.settings:
                run = results.Run(
                    setting, seed, str(choices.split), domain, tuple(view.name for view in shown)
                )
                following = results.Following(run, fleet)
                task = _task(run, pool, shown, choices.min_per_class)
                for found in federate(task, fleet, hosts):
                    following.add(found)
                    is_last = found.round == exchanges(task.plan)
                    yield Step(
                        run,
                        found.round,
                        results.rows(run, fleet, found),
                        tuple(following.outcomes()) if is_last else (),
                    )


def _task(run: results.Run, pool: Pool, shown: tuple[View, ...], min_per_class: int | None) -> Task:
    plan: Plan = replace(run.setting.plan, seed=run.seed)
    if run.setting.line == "pooled":  # nothing is sent: no codec loses precision, and no bound
        plan = replace(plan, codec_up="fp32", codec_down="fp32", max_weight=MAX_WEIGHT)
    digest = hashlib.sha256(f"{run.setting.label}/{run.seed}/{run.held_out}".encode()).hexdigest()
    return Task(
        f"run-{digest[:8]}",
        plan,
        run.setting.line,
        shown,
        pool.encoder_id,
        pool.dim,
        min_per_class,
    )


def _view(name: str, classes: ClassTexts, kept: I64) -> View:
    place = np.full(len(classes.names), -1)
    place[kept] = np.arange(len(kept))
    names = tuple(classes.names[label] for label in kept)
    part = ClassTexts(names, classes.vectors[kept], classes.logit_scale, classes.prompt)
    return View(name, part, place)
