"""Records: every record that can be created is valid."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import pytest
from drawn_records import IDS, PLANS, REPORTS, report
from hypothesis import given, settings
from hypothesis import strategies as st

from fedclip_edge.config.reading import read_table
from fedclip_edge.protocol import codec
from fedclip_edge.protocol.report import Report
from fedclip_edge.records import (
    F32,
    ClassTexts,
    Features,
    Model,
    Plan,
    Update,
    check_domain,
    check_id,
    check_sha256,
)


def rows(*norms: float) -> F32:
    """Rows along one axis with these lengths."""
    vectors = np.zeros((len(norms), 4), np.float32)
    vectors[:, 0] = norms
    return vectors


def texts(**changes: Any) -> ClassTexts:
    fields: dict[str, Any] = {
        "names": ("ant", "bee"),
        "vectors": np.eye(4, dtype=np.float32)[:2],
        "logit_scale": 100.0,
        "prompt": "a {}",
    }
    return ClassTexts(**{**fields, **changes})


@given(IDS)
def test_an_id_may_name_a_topic_level_a_file_and_a_certificate(value: str) -> None:
    assert check_id(value, "device") == value


@given(st.text(st.sampled_from("aZ09-_./+#% \n\0é"), max_size=66))
def test_an_id_is_accepted_exactly_when_it_looks_like_one(value: str) -> None:
    plain = set(value) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    if plain and 1 <= len(value) <= 64 and value.strip("-") == value:
        assert check_id(value, "device") == value
    else:
        with pytest.raises(ValueError, match=r"device .* is not an id"):
            check_id(value, "device")


@pytest.mark.parametrize("value", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n"])
def test_a_sha256_is_64_lower_case_hex_digits(value: str) -> None:
    assert check_sha256("0a" * 32, "model") == "0a" * 32
    with pytest.raises(ValueError, match=r"model .* is not 64 lower-case hex"):
        check_sha256(value, "model")


@pytest.mark.parametrize("value", ["x" * 65, "a\nb", "a\u2028b", "\ud800", "\x1b[2J"])
def test_a_domain_is_short_and_can_be_shown(value: str) -> None:
    assert check_domain("") == ""
    assert check_domain("Küche 2") == "Küche 2"
    with pytest.raises(ValueError, match="domain"):
        check_domain(value)


@pytest.mark.parametrize(
    ("vectors", "labels", "message"),
    [
        (np.zeros((2, 3)), np.zeros(2, np.int64), "expected float32 with 2 axes, got float64"),
        (np.zeros(3, np.float32), np.zeros(3, np.int64), r"got float32 with shape \(3,\)"),
        (np.zeros((2, 3), np.float32), np.zeros(2, np.int32), "labels: expected int64"),
        (np.zeros((2, 3), np.float32), np.zeros((2, 1), np.int64), "labels: expected int64"),
        (np.zeros((2, 3), np.float32), np.zeros(3, np.int64), "2 feature vectors but 3 labels"),
        (np.zeros((2, 3), np.float32), np.array([0, -1]), "negative"),
        (np.full((1, 3), np.nan, np.float32), np.zeros(1, np.int64), "NaN or infinity"),
        (np.full((1, 3), np.inf, np.float32), np.zeros(1, np.int64), "NaN or infinity"),
    ],
)
def test_features_are_checked_at_the_door(vectors: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Features(vectors, labels, "e")


def test_features_count_their_pictures() -> None:
    assert len(Features(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), "e")) == 0
    assert len(Features(np.zeros((5, 3), np.float32), np.zeros(5, np.int64), "e")) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vectors": rows(1, 1, 1)}, "2 class names but 3 text vectors"),
        ({"names": ("ant",), "vectors": rows(1)}, "two classes or more, got 1"),
        ({"names": (), "vectors": rows()}, "two classes or more, got 0"),
        ({"names": ("ant", "ant")}, "expected different names"),
        ({"names": ("ant", " ")}, "none of them empty"),
        ({"vectors": rows(1, 1.01)}, r"norms from 1\.000 to 1\.010"),
        ({"vectors": rows(1, 0)}, "unit rows"),
        ({"vectors": rows(1, 1).astype(np.float64)}, "expected float32"),
        ({"vectors": rows(1, np.nan)}, "NaN or infinity"),
        ({"logit_scale": 0.0}, "logit scale"),
        ({"logit_scale": float("nan")}, "logit scale"),
        ({"logit_scale": float("inf")}, "logit scale"),
    ],
)
def test_class_texts_are_checked_at_the_door(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        texts(**changes)


def test_devices_may_train_together_iff_their_digests_are_equal() -> None:
    here = texts().digest
    assert re.fullmatch("[0-9a-f]{64}", here)
    assert texts(prompt="unknown").digest == here  # the prompt is already part of the vectors
    assert texts(vectors=np.asfortranarray(np.eye(4, dtype=np.float32)[:2])).digest == here
    assert texts(logit_scale=100).digest == here
    others = [
        texts(names=("bee", "ant")),
        texts(names=("ant", "bee ")),
        texts(vectors=np.eye(4, dtype=np.float32)[1:3]),
        texts(logit_scale=99.0),
    ]
    assert len({here, *(other.digest for other in others)}) == 5


def test_the_digest_is_the_same_on_every_machine() -> None:
    expected = "00bd61a21bd61c33ce71b99aee323570104a66b9d4d5ccaf89ee18f940738c74"
    assert texts().digest == expected


@settings(max_examples=60)
@given(PLANS)
def test_a_plan_comes_back_from_json(plan: Plan) -> None:
    travelled = json.loads(json.dumps(plan.to_json(), allow_nan=False))
    assert read_table(Plan, travelled, "journal") == plan
    assert Plan(**plan.to_json()) == plan


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rounds", -1),
        ("rounds", 1_000_001),
        ("seed", -1),
        ("seed", 2**63),
        ("grid_bits", 0),
        ("grid_bits", 53),
        ("max_weight", 0),
        ("max_weight", 2**40 + 1),
        ("max_norm", 0.0),
        ("max_norm", -1.0),
        ("max_norm", 1e9),
        ("max_norm", float("nan")),
        ("codec_up", "int3"),
        ("codec_down", "int3"),
    ],
)
def test_a_plan_out_of_bounds_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        replace(Plan(), **{name: value})


def test_a_plan_knows_every_codec_there_is() -> None:
    for name in codec.CODECS:
        plan = replace(Plan(), codec_up=cast("Any", name), codec_down=cast("Any", name))
        assert (plan.codec_up, plan.codec_down) == (name, name)


@pytest.mark.parametrize("term", [np.zeros(2), np.zeros(2, np.int32), np.array(np.nan, np.float32)])
def test_terms_are_finite_float32(term: Any) -> None:
    with pytest.raises(ValueError, match="model term gate"):
        Model("fedclip", 0, {"gate": term})
    with pytest.raises(ValueError, match="update term gate"):
        Update("sum", 1, {"gate": term})


def test_terms_may_have_any_shape_and_be_none_at_all() -> None:
    scalar, cube = np.array(1, np.float32), np.zeros((1, 2, 3), np.float32)
    assert Model("fedclip", 0, {"a": scalar, "b": cube}).parameters["b"].shape == (1, 2, 3)
    assert not Update("single", 1, {}).delta


@pytest.mark.parametrize(("kind", "weight"), [("sum", 0), ("sum", -1), ("mean", 1), ("", 1)])
def test_an_update_has_a_known_kind_and_a_weight(
    kind: Literal["sum", "single"], weight: int
) -> None:
    with pytest.raises(ValueError, match=r"update (kind|weight)"):
        Update(kind, weight, {})


@settings(max_examples=60)
@given(REPORTS)
def test_a_report_comes_back_from_json(report: Report) -> None:
    travelled = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert read_table(Report, travelled, "journal") == report
    assert Report(**report.to_json()) == report


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "Cam 1"},
        {"accuracy": {"federated": 1.01}},
        {"accuracy": {"federated": -0.01}},
        {"accuracy": {"federated": float("nan")}},
        {"accuracy": {"": 0.5}},
        {"accuracy": {"a b=c": 0.5}},
        {"accuracy": {"\ud800": 0.5}},
        {"accuracy": {"device": 0.5}},  # a report has a field of this name
        {"accuracy": {"round": 0.5}},
        {"domain": "x" * 65},
        {"domain": "a\nb"},
        {"round": -1},
        {"round": 2**63},  # the journal stores 64 bits
        {"train_pictures": -1},
        {"test_pictures": -1},
        {"encoded": -1},
        {"skipped": -1},
        {"bytes_up": -1},
        {"bytes_down": -1},
        {"per_class": {"federated": (0.5, 1.01)}},
        {"per_class": {"federated": (None, float("nan"))}},
        {"per_class": {"personal": (0.5,)}},  # there is no such accuracy
    ],
)
def test_a_report_is_checked_at_the_door(changes: dict[str, Any]) -> None:
    assert report().accuracy["federated"] == 1.0
    with pytest.raises(ValueError, match=next(iter(changes))):
        report(**changes)


@pytest.mark.parametrize("round", [-1, 2**63, 10**3999])
def test_a_model_of_no_round_that_can_be_is_refused(round: int) -> None:
    with pytest.raises(ValueError, match="model round"):
        Model("fedclip", round, {})


def test_class_names_have_one_unicode_form() -> None:
    vectors = np.eye(2, dtype=np.float32)
    assert ClassTexts(("caf\u00e9", "b"), vectors, 100.0, "a {}").names[0] == "caf\u00e9"
    with pytest.raises(ValueError, match=r"expected Unicode form NFC, got 'cafe\\u0301'"):
        ClassTexts(("cafe\u0301", "b"), vectors, 100.0, "a {}")
