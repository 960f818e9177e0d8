"""Admission of devices to a run, with and without a registry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from capable import CAPABLE
from in_memory import ENCODER

from fedclip_edge.coordinator.admission import Admission
from fedclip_edge.coordinator.devices import Devices
from fedclip_edge.coordinator.journal import Journal, open_journal
from fedclip_edge.coordinator.journal_tables import Run, StoredModel
from fedclip_edge.pki.registry import Device, Registry
from fedclip_edge.protocol.messages import Hello
from fedclip_edge.records import Plan

RUN = Run("run-1", Plan("fedclip"), ENCODER, "c" * 64)
KEY, OTHER = "1" * 64, "2" * 64
HELLO = Hello("b1", KEY, "photo", ENCODER, "c" * 64, CAPABLE)
REGISTRY = Registry(
    "lab", "localhost", 1883, "3" * 64, devices={"cam-0": Device(KEY, (), "2099-01-01")}
)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = open_journal(tmp_path / "journal.sqlite")
    opened.runs.add(RUN, StoredModel(0, "a" * 64, b"model", b"", None))
    yield opened
    opened.close()


def admission_to(journal: Journal, registry: Registry | None) -> Admission:
    """The admission of a coordinator that starts now with the run RUN."""
    return Admission(RUN, journal, Devices(journal.devices.keys(RUN.id)), registry)


def test_the_first_key_an_id_shows_is_its_key_also_after_a_restart(journal: Journal) -> None:
    admission = admission_to(journal, None)
    assert admission.admit("cam-0", HELLO) is None
    assert admission.admit("cam-0", replace(HELLO, key=OTHER)) is not None
    again = admission_to(journal, None)
    assert again.devices.keys == {"cam-0": KEY}
    refused = again.admit("cam-0", replace(HELLO, key=OTHER))
    assert refused is not None
    assert "another id" in refused.reason
    assert (refused.scope, refused.key) == ("device", OTHER)


def test_a_registry_decides_whatever_was_shown_first(journal: Journal) -> None:
    admission_to(journal, None).admit("cam-0", replace(HELLO, key=OTHER))
    admission = admission_to(journal, REGISTRY)
    assert admission.admit("cam-0", HELLO) is None
    assert admission.devices.keys["cam-0"] == KEY
    assert journal.devices.keys(RUN.id) == {"cam-0": KEY}
    refused = admission.admit("cam-1", HELLO)
    assert refused is not None
    assert "not enrolled" in refused.reason
    assert refused.scope == "device"


def test_a_new_key_in_the_registry_replaces_the_old_one_also_after_a_restart(
    journal: Journal,
) -> None:
    admission = admission_to(journal, REGISTRY)
    assert admission.admit("cam-0", HELLO) is None
    device = REGISTRY.devices["cam-0"]
    admission.registry = REGISTRY.with_device("cam-0", replace(device, key=OTHER))
    assert admission.refusal("cam-0") == "its key is not the one that it was enrolled with"
    assert admission.admit("cam-0", HELLO) is not None
    assert admission.admit("cam-0", replace(HELLO, key=OTHER)) is None
    assert admission_to(journal, admission.registry).admitted == ("cam-0",)


@pytest.mark.parametrize("name", ["encoder_id", "classes_digest"])
def test_what_cannot_be_averaged_stays_out(journal: Journal, name: str) -> None:
    hello = replace(HELLO, **{name: "f" * 64})  # type: ignore[arg-type]
    refused = admission_to(journal, None).admit("cam-0", hello)
    assert refused is not None
    assert "copy the coordinator's bundle" in refused.reason
    assert refused.scope == "run"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"methods": ("ridge", "linear")}, "'fedclip', and the device allows only: ridge, linear"),
        ({"methods": ()}, "the device allows only: none"),
        ({"codecs": ("fp32",)}, "the device has no codec 'int8'"),
    ],
)
def test_a_device_that_cannot_or_may_not_take_part_is_refused_in_this_run(
    journal: Journal, changes: dict[str, tuple[str, ...]], reason: str
) -> None:
    hello = replace(HELLO, capabilities=replace(CAPABLE, **changes))  # type: ignore[arg-type]
    refused = admission_to(journal, None).admit("cam-0", hello)
    assert refused is not None
    assert reason in refused.reason
    assert (refused.scope, refused.key) == ("run", KEY)


def test_who_is_revoked_is_admitted_no_longer(journal: Journal) -> None:
    admission = admission_to(journal, REGISTRY)
    admission.admit("cam-0", HELLO)
    assert admission.refusal("cam-0") is None
    admission.registry = REGISTRY.with_device(
        "cam-0", replace(REGISTRY.devices["cam-0"], revoked=True)
    )
    assert admission.refusal("cam-0") == "it was revoked"
    assert admission_to(journal, None).refusal("cam-0") is None


def test_how_many_the_fleet_has(journal: Journal) -> None:
    assert admission_to(journal, None).fleet_size == 1
    admission = admission_to(journal, None)
    for number in range(3):
        admission.admit(f"cam-{number}", HELLO)
    assert admission.fleet_size == 3
    assert admission_to(journal, REGISTRY).fleet_size == 3


@pytest.mark.parametrize("registry", [None, REGISTRY])
@pytest.mark.parametrize("changes", [{"encoder_id": "f" * 64}, {"classes_digest": "f" * 64}])
def test_a_device_that_does_not_fit_is_not_waited_for_after_a_restart(
    journal: Journal, registry: Registry | None, changes: dict[str, str]
) -> None:
    refused = admission_to(journal, registry).admit("cam-0", replace(HELLO, **changes))  # type: ignore[arg-type]
    assert refused is not None
    assert refused.scope == "run"
    assert admission_to(journal, registry).admitted == ()
    assert admission_to(journal, registry).admit("cam-0", HELLO) is None
    assert admission_to(journal, registry).admitted == ("cam-0",)


def test_a_refusal_says_what_differs_and_what_to_do(journal: Journal) -> None:
    admission = admission_to(journal, None)
    admission.class_names = ("ant", "b\u00e4r")
    encoder = admission.admit("cam-0", replace(HELLO, encoder_id="f" * 64))
    assert encoder is not None
    assert f"another encoder (ffffffffffff) than the run ({ENCODER[:12]})" in encoder.reason
    assert encoder.classes == ()
    classes = admission.admit("cam-0", replace(HELLO, classes_digest="f" * 64))
    assert classes is not None
    assert "other classes (ffffffffffff) than the run (cccccccccccc)" in classes.reason
    for words in ("copy the coordinator's bundle", "correct 'bundle' in fleet.toml and restart"):
        assert words in classes.reason
    assert classes.classes == ("ant", "b\u00e4r")


@pytest.mark.parametrize(
    "names",
    [
        tuple(map(str, range(1001))),
        tuple(f"{'class':90}{n}" for n in range(100)),
        ("a\nb", "c"),
        ("x" * 129, "c"),
        ("\ud800", "c"),
    ],
)
def test_names_that_do_not_fit_into_a_refusal_are_left_out(
    journal: Journal, names: tuple[str, ...]
) -> None:
    admission = admission_to(journal, None)
    admission.class_names = names
    refused = admission.admit("cam-0", replace(HELLO, classes_digest="f" * 64))
    assert refused is not None
    assert refused.classes == ()


def test_a_device_without_a_bundle_is_told_what_happens_or_what_to_do(journal: Journal) -> None:
    empty = replace(HELLO, encoder_id="", classes_digest="")
    admission = admission_to(journal, None)
    refused = admission.admit("cam-0", empty)
    assert refused is not None
    assert refused.scope == "run"
    assert "sign the coordinator's bundle with `fedclip-edge bundle sign`" in refused.reason
    admission.is_bundle_offered = True
    refused = admission.admit("cam-0", empty)
    assert refused is not None
    assert refused.reason == "it has no bundle yet; it fetches the run's bundle now"
