"""The strategies: formulas of the papers, and refused options and updates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from averaged import CLASSES, SIZES, D, shifted
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import ENCODER, nothing
from opened import opened

from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator import run_state
from fedclip_edge.coordinator.journal import open_journal
from fedclip_edge.coordinator.run_choice import choose_run
from fedclip_edge.errors import ConfigError, PeerError
from fedclip_edge.learning import methods, strategies
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.evaluation import goodness
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.learning.singles import Singles
from fedclip_edge.learning.strategies import adaptive, robust
from fedclip_edge.learning.strategy import Total
from fedclip_edge.protocol import chunks, wire
from fedclip_edge.records import F32, Arrays, Contribution, Model, Plan, Scalar, Update

NAMES = strategies.names()
SINGLE = [name for name in NAMES if strategies.get(name).kind == "single"]


def plan_of(name: str, **changes: object) -> Plan:
    return Plan("linear", {"lr": 0.02}, rounds=3, strategy=name, **changes)  # type: ignore[arg-type]


def added(plan: Plan, changes: list[F32]) -> Total:
    total, kind = strategies.total(plan), strategies.get(plan.strategy).kind
    for change in changes:
        total.add(Update(kind, 1, {"w": change}))
    return total


def stepped(
    name: str, rounds: list[list[F32]], options: dict[str, Scalar] | None = None
) -> list[F32]:
    """The model after each round, starting from zeros."""
    plan = plan_of(name, strategy_options=options or {})
    model, found = Model("linear", 0, {"w": np.zeros_like(rounds[0][0])}), list[F32]()
    state: Arrays = {}
    for changes in rounds:
        model, state = strategies.step(model, added(plan, changes), state)
        found.append(model.parameters["w"])
    assert model.round == len(rounds)
    return found


def drawn(devices: int, rounds: int = 4, seed: int = 0, size: int = 7) -> list[list[F32]]:
    random = np.random.default_rng(seed)
    return [
        [random.normal(size=size).astype(np.float32) for _ in range(devices)] for _ in range(rounds)
    ]


def garbage(devices: int) -> list[list[F32]]:
    """Changes of which about four in five agree; the other devices send anything."""
    rounds = drawn(devices)
    for changes in rounds:
        for i, change in enumerate(changes):
            changes[i] = change * np.float32(50 if i % 5 == 4 else 0.05)
            if i % 5 != 4:
                changes[i] += np.float32(1)
    return rounds


# --- the registry --------------------------------------------------------------------------------


def test_an_unknown_strategy_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown strategy 'fedadm'; did you mean 'fedadam'"):
        methods.with_defaults(plan_of("fedadm"))
    with pytest.raises(ConfigError, match=r"known names: fedavg, .*multi-krum"):
        strategies.get("qqqq")


def test_a_registered_strategy_is_used_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "_STRATEGIES", dict(strategies._STRATEGIES))
    strategies.register("mine", strategies.get("median"))
    assert strategies.names()[-1] == "mine"
    changes = drawn(5)
    np.testing.assert_array_equal(stepped("mine", changes), stepped("median", changes))


def test_a_registered_strategy_does_not_replace_another() -> None:
    before = strategies.get("fedavg")
    with pytest.raises(ValueError, match="there is a strategy 'fedavg' already"):
        strategies.register("fedavg", strategies.get("median"))
    assert strategies.get("fedavg") is before


@pytest.mark.parametrize("name", NAMES)
def test_an_option_that_it_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} options: unknown key 'qqqq'"):
        methods.with_defaults(plan_of(name, strategy_options={"qqqq": 1}))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fedavgm", {"lr": 0.0}, "lr: expected above 0"),
        ("fedavgm", {"momentum": 1.0}, "momentum: expected at least 0"),
        ("fedadam", {"lr": -1.0}, "lr: expected above 0"),
        ("fedyogi", {"tau": 0.0}, "tau: expected 1e-12 to 10"),
        ("fedyogi", {"beta2": 1.0}, "beta1, beta2: expected"),
        ("fedadam", {"lr": 11.0}, "lr: expected above 0 and at most 10"),
        ("krum", {"byzantine": 0.5}, "byzantine: expected at least 0 and below 0.5"),
        ("trimmed-mean", {"byzantine": -0.1}, "byzantine: expected at least 0"),
    ],
)
def test_a_value_out_of_range_is_refused(
    name: str, options: dict[str, Scalar], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"{name} options: {message}"):
        methods.with_defaults(plan_of(name, strategy_options=options))


@pytest.mark.parametrize("method", ["ridge", "gda", "zeroshot", "tip-adapter"])
def test_what_is_not_averaged_takes_no_strategy(method: str) -> None:
    with pytest.raises(
        ConfigError, match=f"combines changes of a model, but {method} sends none; leave"
    ):
        methods.with_defaults(Plan(method, strategy="median"))


@pytest.mark.parametrize("name", SINGLE)
def test_who_counts_every_device_the_same_takes_no_weights(name: str) -> None:
    plan = plan_of(name)
    with pytest.raises(
        ConfigError, match=f'{name} gives .* the same weight; write weighting = "uniform"'
    ):
        methods.with_defaults(replace(plan, options={**plan.options, "weighting": "pictures"}))


# --- averages and optimisers ---------------------------------------------------------------------


def test_the_default_is_the_mean() -> None:
    changes = drawn(3)
    expected = np.cumsum([np.mean(its, axis=0) for its in changes], axis=0)
    np.testing.assert_allclose(stepped("fedavg", changes), expected, atol=1e-6)
    assert Plan("fedclip").strategy == "fedavg"


def test_fedavgm_is_torchs_sgd_with_momentum() -> None:
    changes = drawn(3, rounds=6)
    w = torch.zeros(7, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.5, momentum=0.8)
    for its, found in zip(
        changes, stepped("fedavgm", changes, {"lr": 0.5, "momentum": 0.8}), strict=True
    ):
        w.grad = -torch.tensor(np.mean(its, axis=0))  # a change points down the gradient
        optimizer.step()
        np.testing.assert_allclose(found, w.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_the_adaptive_ones_are_algorithm_2_of_the_paper(name: str) -> None:
    changes = drawn(3, rounds=6)
    lr, beta1, beta2, tau = 0.1, 0.7, 0.95, 0.01
    options: dict[str, Scalar] = {"lr": lr, "beta1": beta1, "beta2": beta2, "tau": tau}
    m, v, w = np.zeros(7), np.full(7, tau**2), np.zeros(7)
    for its, found in zip(changes, stepped(name, changes, options), strict=True):
        mean = np.mean(its, axis=0, dtype=np.float64)
        m = beta1 * m + (1 - beta1) * mean
        if name == "fedadam":
            v = beta2 * v + (1 - beta2) * mean**2
        else:
            v = v - (1 - beta2) * mean**2 * np.sign(v - mean**2)
        w = w + lr * m / (np.sqrt(v) + tau)
        np.testing.assert_allclose(found, w, atol=1e-5)
    assert adaptive.Options().beta2 == 0.99


def test_fedprox_is_the_loss_with_a_spring() -> None:
    """Compared with autograd of the loss plus mu / 2 |w - received|^2."""
    data, mu, lr = shifted(64, 1), 100.0, 2e-3
    free_options: dict[str, Scalar] = {"optimizer": "sgd", "lr": lr, "epochs": 2}
    plan = Plan("linear", {**free_options, "proximal_mu": mu}, rounds=1)
    model = methods.initial(plan, CLASSES, D)
    update = methods.fit(LocalTask(plan, model, data, nothing(D), CLASSES, 7))
    w = torch.tensor(model.parameters["weight"], requires_grad=True)
    start = w.detach().clone()
    random = np.random.default_rng(7)
    for _ in range(2):
        order = random.permutation(64)
        for first in (0, 32):
            batch = order[first : first + 32]
            x = torch.nn.functional.normalize(torch.tensor(data.vectors[batch]), dim=1)
            logits = CLASSES.logit_scale * x @ w.T
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(data.labels[batch]))
            loss = loss + mu / 2 * ((w - start) ** 2).sum()
            (gradient,) = torch.autograd.grad(loss, w)
            with torch.no_grad():
                w -= lr * gradient
    moved = w.detach().numpy() - model.parameters["weight"]
    np.testing.assert_allclose(update.delta["weight"], moved, atol=1e-5)
    free = methods.fit(
        LocalTask(replace(plan, options=free_options), model, data, nothing(D), CLASSES, 7)
    )
    assert np.linalg.norm(moved) < 0.9 * np.linalg.norm(free.delta["weight"])


# --- robust --------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [5, 10, 25])
@pytest.mark.parametrize("name", SINGLE)
def test_a_fifth_of_garbage_moves_them_no_further_than_the_honest(name: str, devices: int) -> None:
    rounds = garbage(devices)
    for honest, found in zip(rounds, np.diff(stepped(name, rounds), axis=0), strict=False):
        assert np.abs(found - 1).max() < 0.4, honest
    mean = np.diff(stepped("fedavg", rounds), axis=0)
    assert np.abs(mean - 1).max() > 3


@pytest.mark.parametrize("devices", [3, 4])
@pytest.mark.parametrize("name", SINGLE)
def test_one_liar_among_few_moves_them_no_further_than_the_honest(name: str, devices: int) -> None:
    honest = [np.full(7, 0.01 * (i + 1), np.float32) for i in range(devices - 1)]
    (found,) = stepped(name, [[*honest, np.full(7, 100, np.float32)]])
    assert np.abs(found).max() <= 0.01 * devices


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
@pytest.mark.parametrize("name", SINGLE)
def test_few_devices_are_enough_for_every_rule(name: str, devices: int) -> None:
    changes = drawn(devices, rounds=1)
    (found,) = stepped(name, changes)
    lowest, highest = np.min(changes[0], axis=0), np.max(changes[0], axis=0)
    assert (found >= lowest - 1e-6).all()
    assert (found <= highest + 1e-6).all()


def test_the_median_and_the_trimmed_mean_are_of_every_coordinate() -> None:
    changes = drawn(9, rounds=1)
    ranked = np.sort(changes[0], axis=0)
    np.testing.assert_array_equal(stepped("median", changes)[0], ranked[4])
    (found,) = stepped("trimmed-mean", changes, {"byzantine": 0.3})  # 2.7, rounded up
    np.testing.assert_allclose(found, ranked[3:6].mean(axis=0), atol=1e-6)


@settings(max_examples=50)
@given(st.integers(3, 12), st.sampled_from([0.0, 0.1, 0.2, 0.34]), st.integers(0, 1000))
def test_krum_is_the_papers_score(devices: int, share: float, seed: int) -> None:
    (changes,) = drawn(devices, rounds=1, seed=seed)
    liars = max(0, min(int(np.ceil(share * devices - 1e-9)), (devices - 1) // 2))
    f = max(0, min(liars, (devices - 3) // 2))
    scores = []
    for i, one in enumerate(changes):
        distances = sorted(
            float(np.sum((one.astype(np.float64) - other) ** 2))
            for j, other in enumerate(changes)
            if j != i
        )
        scores.append(sum(distances[: devices - f - 2]))
    options: dict[str, Scalar] = {"byzantine": share}
    (found,) = stepped("krum", [changes], options)
    chosen = min(range(devices), key=lambda i: float(np.abs(changes[i] - found).max()))
    np.testing.assert_allclose(found, changes[chosen], atol=1e-6)
    # Two devices may be each other's nearest neighbour.
    assert scores[chosen] <= min(scores) * (1 + 1e-6)
    (found,) = stepped("multi-krum", [changes], options)
    ranked = sorted(scores)
    if liars == 0 or ranked[devices - liars] > ranked[devices - liars - 1] * (1 + 1e-6):
        kept = np.argsort(scores)[: devices - liars]
        np.testing.assert_allclose(found, np.mean([changes[i] for i in kept], axis=0), atol=1e-5)


def test_the_number_of_byzantine_devices_is_rounded_up() -> None:
    counts = [robust.byzantine_count(n, 0.2) for n in (1, 2, 3, 4, 5, 6, 10, 15)]
    assert counts == [0, 0, 1, 1, 1, 2, 2, 3]  # always fewer than half


@settings(max_examples=30)
@given(st.permutations(range(6)), st.sampled_from(SINGLE), st.integers(1, 5))
def test_the_order_of_arrival_changes_no_byte(order: list[int], name: str, cut: int) -> None:
    (changes,) = drawn(6, rounds=1)
    plan = plan_of(name)
    one = added(plan, [changes[i] for i in order[:cut]])
    # As when worker processes send partial sums.
    one.merge(added(plan, [changes[i] for i in order[cut:]]))
    start = Model("linear", 0, {"w": np.zeros(7, np.float32)})
    found, _ = strategies.step(start, one, {})
    assert found.parameters["w"].tobytes() == stepped(name, [changes])[0].tobytes()


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (Update("sum", 1, {"w": np.ones(3, np.float32)}), "kind 'sum'; the strategy median needs"),
        (
            Update("single", 2, {"w": np.ones(3, np.float32)}),
            "has weight 2 and 0 sums; it must have",
        ),
        (Update("single", 1, {}, {"w": np.ones(3, np.int64)}), "weight 1 and no sums"),
        (
            Update("single", 1, {"w": np.full(3, 1e4, np.float32)}),
            "is above the round's max_norm 1000",
        ),
        (Update("single", 1, {"w": np.ones(4, np.float32)}), r"\(4,\).* do not match .*\(3,\)"),
    ],
)
def test_what_cannot_be_seen_by_itself_is_refused(update: Update, message: str) -> None:
    total = Singles(plan_of("median"))
    total.add(Update("single", 1, {"w": np.zeros(3, np.float32)}))
    for take in (total.check, total.add):
        with pytest.raises(PeerError, match=message):
            take(update)
    assert total.weight == 1


def test_a_sum_takes_no_single_update() -> None:
    with pytest.raises(PeerError, match="kind 'single'; the strategy fedavg needs kind 'sum'"):
        ExactSum(Plan("fedclip")).add(Update("single", 1, {"w": np.ones(3, np.float32)}))


# --- in a run ------------------------------------------------------------------------------------


def surprise(model: Model) -> float:
    """The mean cross-entropy over the training pictures of all devices."""
    data = [shifted(size, i) for i, size in enumerate(SIZES)]
    return -float(
        np.mean([goodness(methods.predict(model, d.vectors, CLASSES), d.labels)[1] for d in data])
    )


@pytest.mark.one_python
@pytest.mark.parametrize("name", NAMES)
def test_a_fleet_learns_under_it(name: str) -> None:
    plan = plan_of(name)
    model = methods.initial(plan, CLASSES, D)
    start = surprise(model)
    server: Arrays = {}
    for number in range(10):
        total = strategies.total(plan)
        for i, size in enumerate(SIZES):
            update = methods.fit(
                LocalTask(plan, model, shifted(size, i), nothing(D), CLASSES, 10 * number + i)
            )
            total.add(update)
        model, server = methods.combine(model, total, server)
    assert surprise(model) < 0.9 * start


def new_run_state(folder: Path, plan: Plan) -> run_state.RunState:
    """The run state of a process that has just started."""
    config = FleetConfig("lab", bundle=folder, journal=folder / "journal.sqlite", plan=plan)
    journal = opened(open_journal(config.journal))
    run = choose_run(config, CLASSES, D, ENCODER, journal).begin()
    return run_state.open_run_state(run, journal, Schedule(run.plan, CLASSES, D))


def keep(its: run_state.RunState, device: int) -> None:
    plan, number = its.run.plan, its.model.round
    update = methods.fit(
        LocalTask(plan, its.model, shifted(40, device), nothing(D), CLASSES, 10 * number + device)
    )
    made = Contribution(its.run.id, number + 1, f"cam-{device}", its.exchange.sha256, update)
    body = wire.pack_contribution(made, plan.codec_up)
    made = wire.unpack_contribution(body, plan.codec_up, its.layout.delta, its.layout.sums)
    its.check(made.device, number + 1, made)
    its.keep(made, chunks.blob_of(body, "update").sha256, body)


@pytest.mark.parametrize("name", NAMES)
def test_a_coordinator_killed_after_every_contribution_comes_to_the_same_bytes(
    tmp_path: Path, name: str
) -> None:
    for folder in ("once", "again"):
        (tmp_path / folder).mkdir()
    plan = methods.with_defaults(plan_of(name))
    once, again = new_run_state(tmp_path / "once", plan), new_run_state(tmp_path / "again", plan)
    for _ in range(plan.rounds):
        for device in (0, 1, 2):
            keep(once, device)
        for device in (2, 0, 1):  # in another order
            keep(again, device)
            again = new_run_state(tmp_path / "again", plan)
        once.close_round()
        again.close_round()
        again = new_run_state(tmp_path / "again", plan)
        assert again.stored.payload == once.stored.payload
        assert again.stored.server_state == once.stored.server_state


def test_a_device_that_sends_a_sum_where_each_is_seen_is_refused(tmp_path: Path) -> None:
    its = new_run_state(tmp_path, methods.with_defaults(plan_of("median")))
    terms = {"weight": np.ones_like(CLASSES.vectors)}
    made = Contribution(its.run.id, 1, "cam-0", its.exchange.sha256, Update("sum", 1, terms))
    with pytest.raises(PeerError, match="kind 'sum'; the strategy"):
        its.check("cam-0", 1, made)
