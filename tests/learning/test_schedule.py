"""The exchanges of a run: shapes known before, models from sums alone, and a vote that ends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from in_memory import class_texts, features, nothing

from fedclip_edge import log
from fedclip_edge.learning import ballot, local, methods, mixture, moments, strategies, unknown
from fedclip_edge.learning.ballot import DEFAULT, ENOUGH, Choice
from fedclip_edge.learning.kinds import averaged
from fedclip_edge.learning.methods import gda, linear, ridge, zeroshot
from fedclip_edge.learning.run_steps import Step, exchanges
from fedclip_edge.learning.schedule import Schedule, Schedules
from fedclip_edge.learning.strategy import State, Total
from fedclip_edge.protocol import wire
from fedclip_edge.records import Contribution, Features, Layout, Model, Plan, Update

D = 8
CLASSES = class_texts(tuple("abcdef"), D)
BOUND = 1e8
VOTED = [name for name in methods.names() if methods.get(name).shares]
# test_auto.py has the laws of a run that trains two methods.
SINGLE = [name for name in methods.names() if methods.get(name).stages is None]
SINGLE_VOTED = [name for name in VOTED if name in SINGLE]


@dataclass(frozen=True, eq=False)
class Sides:
    train: Features
    validation: Features


def device(number: int, train: int = 60, validation: int = 20) -> Sides:
    noise = 2.0  # so much that zero-shot CLIP makes mistakes
    return Sides(
        features(train, number, CLASSES, noise) if train else nothing(D),
        features(validation, 100 + number, CLASSES, noise) if validation else nothing(D),
    )


DEVICES = [device(number) for number in range(3)]


def plan_of(method: str, vote: str = "on", **changes: Any) -> Plan:
    one_round = methods.get(method).traits.rounds == 1
    return Plan(method, rounds=1 if one_round else 2, vote=vote, **changes)  # type: ignore[arg-type]


def answers(schedule: Schedule, model: Model, devices: Sequence[Sides]) -> list[Update]:
    return [local.answer(schedule, model, its, f"cam-{i}") for i, its in enumerate(devices)]


def totalled(schedule: Schedule, closed: int, updates: Sequence[Update]) -> Total:
    total = schedule.total(closed, BOUND)
    for update in updates:
        schedule.check(closed, update, declared=500)
        total.add(update)
    return total


def played(
    plan: Plan, devices: Sequence[Sides] = DEVICES, **closing: bool
) -> Iterator[tuple[Model, State, list[Update]]]:
    """Each model of a run with the state that belongs to it, and the answers to it."""
    schedule = Schedule(plan, CLASSES, D)
    model: Model = schedule.initial()
    state: State = {}
    for closed in range(exchanges(plan)):
        made = answers(schedule, model, devices)
        yield model, state, made
        extra = closing if schedule.steps[closed].kind == "vote" else {}
        model, state = schedule.close(model, totalled(schedule, closed, made), state, **extra)
    yield model, state, []


def final(plan: Plan, devices: Sequence[Sides] = DEVICES, **closing: bool) -> Model:
    *_, (model, _, _) = played(plan, devices, **closing)
    return model


def logits(model: Model, seed: int = 77) -> np.ndarray[Any, Any]:
    vectors = features(50, seed, CLASSES).vectors
    return methods.predict(model, vectors, CLASSES).astype(np.float64)  # (N, C)


def is_zero_shot(model: Model) -> bool:
    return np.allclose(logits(model), logits(zeroshot.MODEL), rtol=1e-4, atol=1e-3)


# What is known before the run


def test_a_run_has_its_rounds_and_then_a_vote_unless_there_is_nothing_to_vote_on() -> None:
    round_, vote = Step("round", 0), Step("vote", 0)
    assert Schedule(Plan("fedclip", rounds=3), CLASSES, D).steps == (round_, round_, round_, vote)
    assert Schedule(Plan("fedclip", rounds=3, vote="off"), CLASSES, D).steps == (round_,) * 3
    assert Schedule(Plan("gda", rounds=1), CLASSES, D).steps == (round_, vote)
    assert Schedule(Plan("zeroshot", rounds=1), CLASSES, D).steps == (round_,)
    # Devices choose their own models of the others for themselves.
    own = {name for name in methods.names() if methods.get(name).personal is not None}
    assert set(methods.names()) - set(VOTED) == {"zeroshot", *own}


def test_the_numbers_of_a_methods_rounds_are_those_that_are_closed(both: str) -> None:
    schedule = Schedule(Plan(both, rounds=4), CLASSES, D)  # one round, three rounds, a vote
    found = [tuple(schedule.numbers(closed)) for closed in range(6)]
    assert found == [(), (), (2,), (2, 3), (2, 3, 4), (2, 3, 4)]
    one = Schedule(Plan("fedclip", rounds=2, vote="off"), CLASSES, D)
    assert [tuple(one.numbers(closed)) for closed in range(3)] == [(), (1,), (1, 2)]


@pytest.mark.parametrize("vote", ["on", "off"])
@pytest.mark.parametrize("method", SINGLE)
@pytest.mark.parametrize("pictures", [60, 0])
def test_every_model_and_every_answer_have_the_shapes_of_the_layout(
    method: str, vote: str, pictures: int
) -> None:
    plan = plan_of(method, vote)
    schedule = Schedule(plan, CLASSES, D)
    devices = [device(number, pictures, pictures // 3) for number in range(2)]
    count = 0
    for model, _, made in played(plan, devices):
        layout = schedule.layout(count)
        assert (model.round, model.method) == (count, method)
        its = {name: term.shape for name, term in model.parameters.items()}
        assert its == dict(layout.parameters)
        read = wire.unpack_model(wire.pack_model(model, "fp16"), "fp16", layout.parameters)
        assert np.isfinite(logits(read)).all()
        for update in made:
            assert shapes_of(update) == (dict(layout.delta), dict(layout.sums))
            sent = Contribution("run", count + 1, "cam-0", "e" * 64, update)
            body = wire.pack_contribution(sent, "int8")
            wire.unpack_contribution(body, "int8", layout.delta, layout.sums)
        count += 1
    assert count == exchanges(plan) + 1


def shapes_of(update: Update) -> tuple[dict[str, Any], dict[str, Any]]:
    return (
        {name: term.shape for name, term in update.delta.items()},
        {name: term.shape for name, term in update.sums.items()},
    )


# Without a vote


@pytest.mark.parametrize("method", SINGLE)
def test_without_a_vote_the_models_are_those_of_combine(method: str) -> None:
    check_rounds(plan_of(method, "off"))


@pytest.mark.parametrize("strategy", strategies.names())
def test_without_a_vote_every_strategy_gives_the_models_of_combine(strategy: str) -> None:
    check_rounds(Plan("linear", rounds=3, vote="off", strategy=strategy))


def check_rounds(plan: Plan) -> None:
    expected, state = methods.initial(plan, CLASSES, D), dict[str, Any]()
    for model, _, made in played(plan):
        assert model.round == expected.round
        assert model.parameters.keys() == expected.parameters.keys()
        for name, term in expected.parameters.items():
            assert model.parameters[name].tobytes() == term.tobytes()
        if made:
            total = strategies.total(plan, BOUND)
            for update in made:
                total.add(update)
            expected, following = methods.combine(expected, total, state)
            state = dict(following)


# Before the vote


@pytest.mark.parametrize("strategy", strategies.names())
def test_the_head_on_the_ballot_is_the_model_that_the_rounds_without_a_vote_give(
    strategy: str,
) -> None:
    plan = Plan("linear", rounds=3, strategy=strategy)
    *_, (model, state, _), _ = played(plan)
    expected = final(replace(plan, vote="off")).parameters
    for name, term in ballot.members_of(model)["linear"].items():
        assert term.tobytes() == expected[name].tobytes()
    assert not state, "an averaged method keeps nothing for the vote"


def test_until_the_vote_a_ballot_predicts_as_the_fixed_rule_or_the_trained_head() -> None:
    *_, (model, _, _), _ = played(Plan("fedclip", rounds=2))
    trained = Model("fedclip", 2, ballot.members_of(model)["fedclip"])
    np.testing.assert_allclose(logits(model), logits(trained), rtol=0, atol=1e-5)
    assert not is_zero_shot(model)
    *_, (model, _, _), _ = played(Plan("gda", rounds=1))
    sums = totalled(Schedule(plan_of("gda"), CLASSES, D), 0, gda_answers()).sums
    none = {name: 0 * its if name.startswith("validation") else its for name, its in sums.items()}
    train, empty = moments.received(none)
    start = gda.initial_parameters(CLASSES, D, 0, gda.Options())
    solved = Model("gda", 1, gda.solve(start, train, empty, gda.Options()))
    assert_equal_up_to_a_constant(model, solved)


# After the vote


def gda_answers() -> list[Update]:
    schedule = Schedule(plan_of("gda"), CLASSES, D)
    return answers(schedule, schedule.initial(), DEVICES)


def assert_equal_up_to_a_constant(one: Model, other: Model) -> None:
    """Compare the logits of both models, less their mean over the classes."""
    a, b = logits(one), logits(other)
    np.testing.assert_allclose(
        a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True), rtol=2e-4, atol=1e-2
    )


@pytest.mark.parametrize("share", [None, 0.25])
def test_with_the_default_gda_is_solved_again_on_the_sums_of_all_pictures(
    share: float | None,
) -> None:
    options = {} if share is None else {"share": share}
    plan = plan_of("gda", options=options)
    voted, alone = final(plan, decided=False), final(replace(plan, vote="off"))
    assert (voted.method, voted.round, alone.round) == ("gda", 2, 1)
    assert voted.parameters.keys() == {"weight", "bias", *unknown.RULE}
    assert_equal_up_to_a_constant(voted, alone)


def test_ridge_is_solved_again_on_the_sums_of_all_pictures() -> None:
    plan = plan_of("ridge")
    schedule = Schedule(plan, CLASSES, D)
    sums = totalled(schedule, 0, answers(schedule, schedule.initial(), DEVICES)).sums
    train, validation = moments.received(sums)
    texts = CLASSES.vectors.astype(np.float64)
    chosen = ridge.solve_head(train, validation, texts, ridge.Options())
    both = moments.added(train, validation)
    settings = ridge.Options(chosen.l2, chosen.prior)
    weight = ridge.solve_head(both, validation, texts, settings).weight
    found = mixture.members_of(final(plan))["ridge"]["weight"]
    np.testing.assert_allclose(found, weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", SINGLE_VOTED)
def test_the_final_model_is_the_chosen_mix_at_the_chosen_temperature(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = len(methods.get(method).shares["zeroshot"]) - 1
    monkeypatch.setattr(ballot, "decide", lambda *_: Choice(last, 0.5))
    *_, (voted_on, _, _), (model, _, _) = played(plan_of(method))
    expected = {n: 0.5 * its[last] for n, its in methods.get(method).shares.items()}
    if method == "gda":
        assert model.parameters.keys() == {"weight", "bias", *unknown.RULE}
        return
    assert mixture.shares_of(model) == pytest.approx(expected)
    if methods.get(method).traits.is_averaged:
        heads = mixture.members_of(model)
        for name, term in ballot.members_of(voted_on)[method].items():
            assert heads[method][name].tobytes() == term.tobytes()


@pytest.mark.parametrize("method", VOTED)
def test_without_a_quorum_the_default_is_taken_whatever_the_answers_say(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ballot, "decide", lambda _, default: Choice(default))
        expected = final(plan_of(method)).parameters
    found = final(plan_of(method), decided=False).parameters
    assert {n: t.tobytes() for n, t in found.items()} == {
        n: t.tobytes() for n, t in expected.items()
    }


@pytest.mark.parametrize("method", SINGLE_VOTED)
def test_without_any_picture_every_run_ends_as_zero_shot_clip(method: str) -> None:
    assert is_zero_shot(final(plan_of(method), [device(0, 0, 0), device(1, 0, 0)]))


CLOSED_FORM = [name for name in VOTED if methods.get(name).traits.sends_moments]


@pytest.mark.parametrize("method", CLOSED_FORM)
def test_without_training_pictures_every_candidate_is_zero_shot_clip(method: str) -> None:
    *_, (model, _, made), (last, _, _) = played(plan_of(method), [device(i, 0) for i in range(3)])
    assert is_zero_shot(model)
    for update in made:
        assert update.sums["pictures"] == 20
        assert np.ptp(update.sums["correct"]) == 0
    assert (logits(last).argmax(axis=1) == logits(zeroshot.MODEL).argmax(axis=1)).all()


@pytest.mark.parametrize("method", CLOSED_FORM)
def test_without_a_class_of_enough_pictures_a_run_ends_as_zero_shot_clip(method: str) -> None:
    model = final(plan_of(method, options={"min_per_class": 1000}))
    assert (logits(model).argmax(axis=1) == logits(zeroshot.MODEL).argmax(axis=1)).all()


@pytest.mark.parametrize("method", SINGLE_VOTED)
def test_a_run_that_nobody_answers_ends_with_the_default(method: str) -> None:
    plan = plan_of(method)
    model = final(plan, [])
    assert model.round == exchanges(plan)
    assert (logits(model).argmax(axis=1) == logits(zeroshot.MODEL).argmax(axis=1)).all()


def test_the_result_does_not_depend_on_which_device_has_which_pictures() -> None:
    train, validation = features(240, 1, CLASSES, 2.0), features(90, 2, CLASSES, 2.0)
    plan = plan_of("gda", options={"min_per_class": 1})

    def dealt(seed: int, count: int) -> list[Sides]:
        random = np.random.default_rng(seed)
        sides = []
        for side in (train, validation):
            place = random.permutation(len(side)) % count
            sides.append(
                [
                    Features(side.vectors[place == i], side.labels[place == i], side.encoder_id)
                    for i in range(count)
                ]
            )
        return [Sides(*both) for both in zip(*sides, strict=True)]

    first = final(plan, dealt(0, 1)).parameters
    for seed, count in ((1, 2), (2, 5), (3, 9)):
        other = final(plan, dealt(seed, count)).parameters
        assert {n: t.tobytes() for n, t in first.items()} == {
            n: t.tobytes() for n, t in other.items()
        }


# What is said


@pytest.mark.parametrize(
    ("validation", "decided", "hint"),
    [
        (20, True, None),
        (6, True, f"fewer than {ENOUGH} validation pictures voted"),
        (20, False, "too few devices answered before the deadline"),
    ],
)
def test_the_log_says_why_the_default_was_taken(
    validation: int, decided: bool, hint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(
        log, "event", lambda name, /, **its: said.append(its) if name == "vote_decided" else None
    )
    devices = [device(number, validation=validation) for number in range(3)]
    final(plan_of("gda"), devices, decided=decided)
    (one,) = said
    assert (one["hint"] or "").startswith(hint or "")
    assert (one["hint"] is None) == (hint is None)
    if hint is not None:
        assert (one["candidate"], one["temperature"]) == (DEFAULT, 1.0)


# Two methods, one after the other


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> str:
    """A method of two stages: gda, then two rounds of a linear head."""

    def stages(plan: Plan) -> tuple[Plan, ...]:
        return (
            replace(plan, method="gda", rounds=1, strategy=strategies.DEFAULT),
            replace(plan, method="linear", rounds=plan.rounds - 1),
        )

    its = linear.METHOD
    method = averaged("both", its.options, linear.initial_parameters, its.logits)
    shares = {
        "zeroshot": (1.0, 1.0, 0.5, 0.5),
        "gda.added": (0.0, 1.0, 0.0, 0.5),
        "gda.ridge": (0.0, 0.0, 0.0, 0.0),
        "linear": (0.0, 0.0, 0.5, 0.25),
    }
    monkeypatch.setitem(
        methods._METHODS, "both", replace(method, shares=shares, stages=stages, vote=None)
    )
    return "both"


@pytest.mark.parametrize("strategy", ["fedavg", "fedyogi", "fedavgm"])
def test_the_heads_of_an_earlier_method_are_on_the_ballot(both: str, strategy: str) -> None:
    plan = Plan(both, rounds=4, strategy=strategy)
    schedule, count = Schedule(plan, CLASSES, D), 0
    models: list[Model] = []
    for model, _, made in played(plan, decided=False):
        layout: Layout = schedule.layout(count)
        its = {name: term.shape for name, term in model.parameters.items()}
        assert its == dict(layout.parameters)
        for update in made:
            assert shapes_of(update) == (dict(layout.delta), dict(layout.sums))
        models.append(model)
        count += 1
    assert count == exchanges(plan) + 1 == 6
    heads = ballot.members_of(models[4])
    *_, (gda_ballot, _, _), _ = played(plan_of("gda"))
    for label in ("gda.added", "gda.ridge"):
        for name, term in ballot.members_of(gda_ballot)[label].items():
            assert heads[label][name].tobytes() == term.tobytes()
    trained = final(Plan("linear", rounds=3, vote="off", strategy=strategy))
    assert heads["linear"].keys() == trained.parameters.keys()
    # The default is that of gda, solved again on all sums.
    assert_equal_up_to_a_constant(models[-1], final(plan_of("gda"), decided=False))


def test_the_schedule_of_the_last_plan_is_kept() -> None:
    schedules = Schedules(CLASSES, D)
    one, other = Plan("fedclip", rounds=3), Plan("fedclip", rounds=4)
    first = schedules.of(one)
    assert schedules.of(replace(one)) is first
    second = schedules.of(other)
    assert (second.plan, second.classes, second.dim) == (other, CLASSES, D)
    assert schedules.of(one) is not first
