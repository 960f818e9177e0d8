"""The device's trainer: seeds, measured accuracies, reports and written files."""

from __future__ import annotations

import csv
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import ENCODER, Fleet, class_texts, features
from local_trainer import Here, local_trainer, pictures_of, use, work_of
from opened import opened

from fedclip_edge import __version__
from fedclip_edge.agent.features import DeviceFeatures
from fedclip_edge.agent.trainer import LocalTrainer
from fedclip_edge.config.agent import AgentConfig, DataConfig
from fedclip_edge.config.fleet import RunRules
from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import methods, moments
from fedclip_edge.learning.evaluation import evaluate
from fedclip_edge.learning.local import training_seed
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.learning.unknown import Rule, with_rule
from fedclip_edge.protocol.codec import CODECS
from fedclip_edge.protocol.message_parts import Capabilities, Pictures
from fedclip_edge.protocol.report import Report
from fedclip_edge.records import (
    Features,
    Measured,
    Model,
    Plan,
    Role,
    Scalar,
    Update,
)
from fedclip_edge.transport.base import Traffic
from fedclip_edge.vision.datasets import Picture

D = 16
CLASSES = class_texts(dim=D)
# Three rounds move the model far enough that federated, local and zero-shot guesses differ.
PLAN = Plan(
    "fedclip",
    options={"lr": 2e-2, "weight_decay": 0.0, "loss": "cross-entropy"},
    rounds=3,
    codec_up="fp32",  # local training sends nothing, so no codec loss must separate the two
    codec_down="fp32",
    local_baseline=True,
    vote="off",
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def prepared(train: int = 40, test: int = 30, seed: int = 1) -> DeviceFeatures:
    """Features with test pictures named by their index, so that rows can be told apart."""
    tested = features(test, seed + 100, CLASSES)
    return DeviceFeatures(
        train=features(train, seed, CLASSES),
        validation=features(10, seed + 200, CLASSES),
        test=tested,
        test_pictures=tuple(
            Picture(Path(f"pictures/{i}, a.png"), int(label), f"{i:064x}")
            for i, label in enumerate(tested.labels)
        ),
    )


def learner(
    folder: Path,
    data: DeviceFeatures | None = None,
    roles: tuple[Role, ...] = ("train", "evaluate"),
    name: str = "cam-a",
    traffic: Traffic | None = None,
    load: Callable[[], None] = lambda: None,
    **limits: Any,
) -> LocalTrainer:
    state = folder / name
    state.mkdir(exist_ok=True)
    settings = {"roles": roles, "bundle": folder, **limits}
    config = AgentConfig(name, "lab", DataConfig(folder), state, "roof", **settings)
    return local_trainer(config, CLASSES, data or prepared(), lambda: traffic, load)


def initial(plan: Plan = PLAN) -> Model:
    return methods.get(plan.method).initial(CLASSES, D, plan.seed)


def rows(folder: Path, name: str = "cam-a") -> list[dict[str, str]]:
    with (folder / name / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- the seed ------------------------------------------------------------------------------------

SEEDS = st.tuples(
    st.integers(0, 2**63 - 1),
    st.integers(0, 10**6),
    st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True),
)


@given(SEEDS, SEEDS)
def test_the_training_seed_differs_by_run_round_and_device(
    one: tuple[int, int, str], other: tuple[int, int, str]
) -> None:
    assert (training_seed(*one) == training_seed(*other)) == (one == other)


def test_the_training_seed_is_the_same_on_every_machine() -> None:
    digest = hashlib.sha256(b"7/2/cam-a").hexdigest()
    assert training_seed(7, 2, "cam-a") == int(digest[:16], 16)
    assert len({training_seed(s, r, d) for s in (0, 1) for r in (0, 1) for d in "ab"}) == 8


def test_a_device_trains_with_its_own_seed(tmp_path: Path) -> None:
    """Two devices with the same pictures differ, as do two rounds of one."""
    data = prepared()

    def terms(name: str, round: int) -> bytes:
        model = Model("fedclip", round, initial().parameters)
        return learner(tmp_path, data, name=name).fit(model, PLAN).delta["0.weight"].tobytes()

    assert terms("cam-a", 0) == terms("cam-a", 0)
    assert len({terms("cam-a", 0), terms("cam-b", 0), terms("cam-a", 1)}) == 3


def test_what_it_trains_is_the_methods_fit_on_its_training_pictures(tmp_path: Path) -> None:
    data = prepared()
    update = learner(tmp_path, data).fit(initial(), PLAN)
    seed = training_seed(PLAN.seed, 0, "cam-a")
    expected = methods.fit(LocalTask(PLAN, initial(), data.train, data.validation, CLASSES, seed))
    assert update.weight == expected.weight
    assert {n: t.tobytes() for n, t in update.delta.items()} == {
        n: t.tobytes() for n, t in expected.delta.items()
    }


def test_shapes_are_those_of_the_plans_model(tmp_path: Path) -> None:
    asked = learner(tmp_path)
    assert asked.shapes(PLAN, 0) == {
        "0.weight": (D, D),
        "0.bias": (D,),
        "2.weight": (D, D),
        "2.bias": (D,),
    }
    assert asked.shapes(Plan("zeroshot"), 0) == {}


# --- accuracies ----------------------------------------------------------------------------------


def share(data: Features, plan: Plan, model: Model) -> float:
    logits = methods.predict(replace(model, method=plan.method), data.vectors, CLASSES)
    return float(np.mean(logits.argmax(axis=1) == data.labels))


def test_accuracies_are_on_test_pictures(tmp_path: Path) -> None:
    data, model = prepared(), initial()
    accuracy = learner(tmp_path, data).evaluate(model, PLAN, final=False).accuracy
    assert accuracy["zero_shot"] == share(data.test, Plan("zeroshot"), model)
    assert accuracy["federated"] == share(data.test, PLAN, model)
    assert accuracy["federated"] != share(data.train, PLAN, model)


def test_the_other_figures_stand_beside_the_accuracy(tmp_path: Path) -> None:
    data, model = prepared(), initial()
    measured = learner(tmp_path, data).evaluate(model, PLAN, final=True)
    alone = work_of(learner(tmp_path, data))._train_alone(PLAN)
    for name, shown in (("zero_shot", zeroshot.MODEL), ("federated", model), ("local", alone)):
        logits = methods.predict(shown, data.test.vectors, CLASSES)
        found = evaluate(logits, data.test.labels)
        assert measured.accuracy[name] == found.top1
        assert measured.accuracy[f"{name}_f1"] == found.macro_f1
        assert measured.accuracy[f"{name}_ece"] == found.ece
        assert measured.per_class[name] == found.said
    assert set(measured.per_class) == {"zero_shot", "federated", "local"}
    assert learner(tmp_path, data).evaluate(model, PLAN, final=False).per_class == {}


def test_zero_shot_over_all_pictures_is_measured_at_the_end(tmp_path: Path) -> None:
    """Nothing was trained, so none of them is a training picture."""
    data, model = prepared(), initial()
    accuracy = learner(tmp_path, data).evaluate(model, PLAN, final=True).accuracy
    sides = (data.train, data.validation, data.test)
    right = sum(share(side, Plan("zeroshot"), model) * len(side) for side in sides)
    assert accuracy["zero_shot_all"] == pytest.approx(right / sum(map(len, sides)))


def run_fleet(folder: Path, plan: Plan, data: dict[str, DeviceFeatures]) -> dict[str, Report]:
    """Run a whole federation; return each device's report on the last model."""
    folder.mkdir()
    fleet = opened(Fleet(folder, plan, RunRules(devices=len(data), quorum=1.0), CLASSES))
    for name, its in data.items():
        session = fleet.start_device(name, its.train, its.test)
        assert isinstance(session.work.learner, LocalTrainer)
        use(session.work.learner, its)
    fleet.run()
    reports = fleet.journal.reports.all(fleet.coordinator.run_state.run.id)
    return {report.device: report for report in reports if report.round == plan.rounds}


def test_the_local_baseline_is_a_fleet_of_one(tmp_path: Path) -> None:
    """For each picture, the guess of a device that trains alone for the whole run."""
    two = {"cam-a": prepared(), "cam-b": prepared(seed=2)}
    together = run_fleet(tmp_path / "two", PLAN, two)
    alone = {name: run_fleet(tmp_path / f"only-{name}", PLAN, {name: two[name]}) for name in two}
    for name in two:
        mine = [row["local"] for row in rows(tmp_path / "two", name)]
        assert mine == [row["federated"] for row in rows(tmp_path / f"only-{name}", name)]
        assert mine != [row["federated"] for row in rows(tmp_path / "two", name)]
        assert mine != [row["zero_shot"] for row in rows(tmp_path / "two", name)]
        lonely = alone[name][name].accuracy
        assert together[name].accuracy["local"] == lonely["federated"] == lonely["local"]


@pytest.mark.parametrize(
    ("final", "plan", "roles", "expected"),
    [
        (True, PLAN, ("train", "evaluate"), True),
        (False, PLAN, ("train", "evaluate"), False),
        (True, Plan("fedclip", rounds=3, vote="off"), ("train", "evaluate"), False),
        (True, PLAN, ("evaluate",), False),
    ],
    ids=["asked for", "not the last model", "not asked for", "does not train"],
)
def test_the_local_baseline_comes_once_and_only_where_asked_for(
    tmp_path: Path, final: bool, plan: Plan, roles: tuple[Role, ...], expected: bool
) -> None:
    data = prepared(train=40 if "train" in roles else 0)
    accuracy = learner(tmp_path, data, roles).evaluate(initial(), plan, final=final).accuracy
    assert ("local" in accuracy) == expected


def test_measuring_alone_leaves_the_devices_own_training_as_it_was(tmp_path: Path) -> None:
    one, other = learner(tmp_path), learner(tmp_path)
    one.evaluate(initial(), PLAN, final=True)
    assert one.train_s == 0
    assert one.busy_s > 0
    first, second = one.fit(initial(), PLAN), other.fit(initial(), PLAN)
    assert first.delta["2.weight"].tobytes() == second.delta["2.weight"].tobytes()


# --- the report ----------------------------------------------------------------------------------


def test_a_report_has_every_cost_in_its_own_field(tmp_path: Path) -> None:
    asked = learner(tmp_path, traffic=Traffic(up_bytes=11, down_bytes=22))
    model = Model("fedclip", 2, initial().parameters)
    asked.fit(model, PLAN)
    measured = Measured({"federated": 0.25}, {"federated": (0.5, None)}, 28)
    report = asked.report("run-1", model, "a" * 64, measured, 3.5)
    assert report == Report(
        run="run-1",
        round=2,
        device="cam-a",
        domain="roof",
        model="a" * 64,
        accuracy={"federated": 0.25},
        train_pictures=40,
        test_pictures=28,  # at the time of the evaluation
        encoded=55,
        skipped=2,
        bytes_up=11,
        bytes_down=22,
        encode_s=1.5,
        train_s=asked.train_s,
        wait_s=3.5,
        per_class={"federated": (0.5, None)},
    )
    assert 0 < asked.train_s <= asked.busy_s


def test_seconds_add_up_over_rounds(tmp_path: Path) -> None:
    asked = learner(tmp_path)
    asked.fit(initial(), PLAN)
    once = asked.train_s
    asked.fit(initial(), PLAN)
    assert asked.train_s > once
    busy_s = asked.busy_s
    assert busy_s >= asked.train_s
    asked.evaluate(initial(), PLAN, final=False)
    assert asked.busy_s > busy_s


def test_loading_torch_is_no_training_but_keeps_it_busy(tmp_path: Path) -> None:
    loaded: list[float] = []

    def load() -> None:
        loaded.append(asked.train_s)
        time.sleep(0.05)

    asked = learner(tmp_path, load=load)
    asked.fit(initial(), PLAN)
    assert loaded == [0.0]
    assert asked.busy_s - asked.train_s >= 0.05
    asked.evaluate(initial(), PLAN, final=False)
    assert len(loaded) == 1


@pytest.mark.parametrize(
    ("plan", "roles", "final", "expected"),
    [
        (PLAN, ("evaluate",), True, False),
        (replace(PLAN, local_baseline=False), ("train", "evaluate"), True, False),
        (PLAN, ("train", "evaluate"), True, True),
        (PLAN, ("train", "evaluate"), False, False),
        (replace(PLAN, local_baseline=False, personal_epochs=1), ("train", "evaluate"), True, True),
        (
            Plan("ridge", rounds=1, vote="off", local_baseline=True),
            ("train", "evaluate"),
            True,
            False,
        ),
        (Plan("tip-adapter", rounds=1), ("train", "evaluate"), True, False),
    ],
)
def test_evaluating_loads_torch_only_to_train_by_gradients(
    tmp_path: Path, plan: Plan, roles: tuple[Role, ...], final: bool, expected: bool
) -> None:
    loaded: list[bool] = []
    asked = learner(tmp_path, roles=roles, load=lambda: loaded.append(True))
    asked.evaluate(replace(initial(plan), round=plan.rounds), plan, final=final)
    assert bool(loaded) == expected


@pytest.mark.parametrize("name", methods.names())
def test_only_training_by_gradients_loads_torch(tmp_path: Path, name: str) -> None:
    loaded, plan = list[bool](), Plan(name)
    asked = learner(tmp_path, load=lambda: loaded.append(True))
    asked.fit(initial(plan), plan)
    assert bool(loaded) == methods.get(name).traits.is_averaged


def test_bytes_that_nobody_counted_are_unknown_not_zero(tmp_path: Path) -> None:
    report = learner(tmp_path).report("run-1", initial(), "a" * 64, Measured({}), 0.0)
    assert (report.bytes_up, report.bytes_down) == (None, None)


def test_a_report_holds_no_picture_and_no_feature() -> None:
    """Only names, counts, seconds and accuracies; no value per picture."""
    kinds = {str(field.type) for field in fields(Report)} - {"Mapping[str, PerClass]"}
    assert kinds <= {"str", "int", "float", "int | None", "Mapping[str, float]"}


# --- written files -------------------------------------------------------------------------------


def test_predictions_are_the_guesses_on_each_test_picture(tmp_path: Path) -> None:
    data, model = prepared(), initial()
    accuracy = learner(tmp_path, data).evaluate(model, PLAN, final=True).accuracy
    written = rows(tmp_path)
    assert list(written[0]) == ["picture", "label", "zero_shot", "federated", "local"]
    assert [row["picture"] for row in written] == [str(p.path) for p in data.test_pictures]
    assert [row["label"] for row in written] == [CLASSES.names[i] for i in data.test.labels]
    for shown, column in ((zeroshot.MODEL, "zero_shot"), (model, "federated")):
        guesses = methods.predict(shown, data.test.vectors, CLASSES).argmax(axis=1)
        assert [row[column] for row in written] == [CLASSES.names[i] for i in guesses]
    for column in ("zero_shot", "federated", "local"):
        right = sum(row[column] == row["label"] for row in written)
        assert accuracy[column] == right / len(written)


def test_a_model_with_a_threshold_says_which_pictures_are_unknown(tmp_path: Path) -> None:
    data = prepared()
    scores = methods.scores_of(initial(), data.test.vectors, CLASSES)
    threshold = float(np.sort(scores)[7])  # 7 of 30 are below it
    model = initial()
    model = replace(model, parameters=with_rule(model.parameters, Rule(threshold)))
    measured = learner(tmp_path, data).evaluate(model, PLAN, final=True)
    assert measured.accuracy["unknown"] == 7 / 30
    written = rows(tmp_path)
    assert list(written[0])[-2:] == ["local", "unknown"]
    assert [row["unknown"] == "true" for row in written] == (scores < threshold).tolist()
    never = replace(model, parameters=with_rule(model.parameters, Rule()))
    assert "unknown" not in learner(tmp_path, data).evaluate(never, PLAN, final=True).accuracy
    assert "unknown" not in rows(tmp_path)[0]


def test_predictions_are_those_of_the_last_model_and_whole(tmp_path: Path) -> None:
    asked = learner(tmp_path)
    asked.evaluate(initial(), PLAN, final=False)
    assert not (tmp_path / "cam-a" / "predictions.csv").exists()
    asked.evaluate(initial(), Plan("fedclip"), final=True)
    assert list(rows(tmp_path)[0]) == ["picture", "label", "zero_shot", "federated"]
    asked.evaluate(initial(), PLAN, final=True)
    assert len(rows(tmp_path)) == 30
    assert "local" in rows(tmp_path)[0]
    assert [path.name for path in (tmp_path / "cam-a").iterdir()] == ["predictions.csv"]


def test_without_test_pictures_there_is_nothing_to_say(tmp_path: Path) -> None:
    empty = Features(np.zeros((0, D), np.float32), np.zeros(0, np.int64), ENCODER)
    data = DeviceFeatures(prepared().train, empty, empty, ())
    with pytest.raises(ValueError, match="no test pictures"):
        learner(tmp_path, data).evaluate(initial(), PLAN, final=False)


# --- the privacy floors of the device ------------------------------------------------------------


def of_classes(labels: list[int], seed: int = 3) -> Features:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(len(labels), D)).astype(np.float32)
    return Features(vectors, np.array(labels, np.int64), ENCODER)


def limited(
    folder: Path, train: list[int], validation: list[int], **limits: Any
) -> tuple[LocalTrainer, DeviceFeatures]:
    """A trainer with pictures of these classes, and limits from agent.toml."""
    data = replace(prepared(), train=of_classes(train), validation=of_classes(validation, 4))
    return learner(folder, data, **limits), data


def ridge_plan(**options: Scalar) -> Plan:
    return Plan("ridge", options, rounds=1, vote="off")


LABELS = st.lists(st.integers(0, len(CLASSES.names) - 1), max_size=30)


@pytest.mark.parametrize("method", methods.names())
@settings(max_examples=40)
@given(train=LABELS, validation=LABELS, device=st.integers(1, 8), plan=st.integers(1, 8))
def test_no_picture_of_a_class_below_the_floor_reaches_a_method(
    tmp_path_factory: pytest.TempPathFactory,
    method: str,
    train: list[int],
    validation: list[int],
    device: int,
    plan: int,
) -> None:
    own = hasattr(methods.get(method).check_options({}), "min_per_class")
    asked_for: dict[str, Scalar] = {"min_per_class": plan} if own else {}
    floor = max(device, plan) if own else device
    folder = tmp_path_factory.getbasetemp()
    made, _ = limited(folder, train, validation, min_per_class=device)
    with mock.patch.object(methods, "fit", return_value=Update("sum", 1, {})) as fit:
        made.fit(initial(Plan(method)), Plan(method, asked_for))
    (task,) = fit.call_args.args
    sides = (task.train, task.validation)
    for side in sides:
        counts = np.bincount(side.labels, minlength=len(CLASSES.names))
        assert ((counts == 0) | (counts >= floor)).all()
    for label in range(len(CLASSES.names)):
        enough = train.count(label) + validation.count(label) >= floor
        assert enough == any((side.labels == label).any() for side in sides)


def test_a_plan_cannot_ask_for_the_only_picture_of_a_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The plan's `min_per_class = 1` once made a device send this picture's feature."""
    made, _ = limited(tmp_path, [0] * 8 + [1], [0] * 6)
    plan = ridge_plan(min_per_class=1)
    update = made.fit(initial(plan), plan)
    assert update.sums["train.counts"].tolist() == [8, 0, 0]
    only_ants = moments.send("train", of_classes([0] * 8), len(CLASSES.names), 1)
    assert {name: update.sums[name].tolist() for name in only_ants} == {
        name: sums.tolist() for name, sums in only_ants.items()
    }
    said = capsys.readouterr().out
    assert 'pictures_withheld pictures=1 min_per_class=5 classes="bee 1"' in said


def test_a_class_that_reaches_the_floor_on_both_sides_together_is_trained_on(
    tmp_path: Path,
) -> None:
    made, _ = limited(tmp_path, [0] * 3 + [1] * 5, [0] * 2 + [1] * 4)
    plan = ridge_plan()
    update = made.fit(initial(plan), plan)
    assert update.sums["train.counts"].tolist() == [5, 5, 0]
    assert update.sums["validation.counts"].tolist() == [0, 0, 0]


def test_the_higher_floor_of_device_and_plan_holds_and_a_change_is_logged_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = limited(tmp_path, [0] * 4 + [1] * 9, [], min_per_class=2)
    assert made.capabilities().pictures.train == 13
    assert "pictures_withheld" not in capsys.readouterr().out
    for plan, counts, lines in (
        (ridge_plan(min_per_class=1), [4, 9, 0], 0),
        (ridge_plan(min_per_class=6), [0, 9, 0], 1),
        (ridge_plan(min_per_class=7), [0, 9, 0], 0),
        (ridge_plan(min_per_class=10), [0, 0, 0], 1),
    ):
        update = made.fit(initial(plan), plan)
        made.fit(initial(plan), plan)
        assert update.sums["train.counts"].tolist() == counts
        assert capsys.readouterr().out.count("pictures_withheld") == lines


def test_its_capabilities_are_counted_after_withholding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = limited(tmp_path, [0] * 7 + [1] * 3 + [2] * 2, [0] + [1] * 2 + [2] * 2)
    count = len(made.classes.names)
    expected = Capabilities(
        roles=("train", "evaluate"),
        methods=methods.names(),
        min_per_class=5,
        codecs=tuple(CODECS),
        pictures=Pictures(
            train=12,
            validation=0,
            test=30,
            withheld=5,
            by_class={
                "train": (7, 5, *(0,) * (count - 2)),
                "validation": (0,) * count,
                "test": tuple(np.bincount(made.data.labels("test"), minlength=count).tolist()),
            },
        ),
        provider="cpu",
        version=__version__,
    )
    assert made.capabilities() == expected
    assert 'classes="ant 1, cat 4"' in capsys.readouterr().out
    assert made.capabilities() == expected
    assert capsys.readouterr().out == ""


def test_a_device_without_enough_pictures_says_so_and_does_not_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = limited(tmp_path, [0, 0, 1, 2], [0, 1])
    assert made.capabilities().roles == ("evaluate",)
    assert made.capabilities().pictures.withheld == 6
    said = capsys.readouterr().out
    assert 'not_training reason="no class has 5 pictures to train on"' in said
    measured = made.evaluate(initial(), PLAN, final=True)
    assert "local" in measured.accuracy, "its own model may use all its pictures"
    assert len(rows(tmp_path)) == 30


def test_a_device_without_labelled_pictures_only_receives_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = of_classes([])
    made = learner(tmp_path, replace(prepared(), train=none, validation=none, test=none))
    assert (made.capabilities().roles, made.evaluates) == ((), False)
    said = capsys.readouterr().out
    assert 'not_training reason="no labelled picture is on the training side"' in said
    assert 'not_evaluating reason="no labelled picture is on the test side"' in said
    with mock.patch.object(Here, "use"):
        made.use(pictures_of(prepared()))
    assert (made.capabilities().roles, made.evaluates) == (("train", "evaluate"), True)


def test_a_device_that_only_evaluates_withholds_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = limited(tmp_path, [], [0, 1], roles=("evaluate",))
    assert made.capabilities().roles == ("evaluate",)
    assert (made.capabilities().pictures.withheld, made.capabilities().pictures.validation) == (
        0,
        2,
    )
    assert capsys.readouterr().out == ""


def test_a_device_that_sends_no_reports_has_not_the_role_of_an_evaluator(tmp_path: Path) -> None:
    made, _ = limited(tmp_path, [0] * 9, [], reports=False)
    assert made.capabilities().roles == ("train",)
    assert made.capabilities().pictures.by_class == {}, "the classes stay with its owner too"
    made, _ = limited(tmp_path, [0], [], reports=False)
    assert made.capabilities().roles == ()


def test_a_personal_model_stays_on_the_device_and_may_use_every_picture(tmp_path: Path) -> None:
    made, data = limited(tmp_path, [0, 1, 2], [])
    plan = Plan("tip-adapter", rounds=1)
    own = work_of(made)._personal(initial(plan), plan)
    assert own is not None
    assert len(own.parameters["own/keys"]) == len(data.train)


def test_the_methods_of_the_owner_are_named_or_refused(tmp_path: Path) -> None:
    made, _ = limited(tmp_path, [0] * 9, [], methods=("ridge", "fedclip"))
    assert made.capabilities().methods == ("ridge", "fedclip")
    made.config = replace(made.config, methods=("rigde",))
    with pytest.raises(ConfigError, match="methods: unknown method 'rigde'; did you mean 'ridge'"):
        made.capabilities()
