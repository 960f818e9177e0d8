"""The registry: enrolled devices, their keys, and revocations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedclip_edge.errors import ConfigError
from fedclip_edge.pki import registry
from fedclip_edge.pki.registry import Device, Registry

KEYS = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
IDS = st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True)
DEVICES = st.builds(
    Device,
    KEYS,
    st.tuples(st.from_regex(r"[0-9a-f]{1,40}", fullmatch=True)),
    st.dates().map(str),
    st.booleans(),
)
REGISTRIES = st.builds(
    Registry,
    IDS,
    st.text(max_size=20),
    st.integers(1, 65535),
    KEYS,
    st.text(max_size=20),
    st.dictionaries(IDS, DEVICES, max_size=5),
)
EMPTY = Registry("lab", "edge", 8883, "0" * 64)


@settings(max_examples=50)
@given(REGISTRIES)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, enrolled: Registry
) -> None:
    path = tmp_path_factory.getbasetemp() / "devices.json"
    registry.write(path, enrolled)
    assert registry.read(path) == enrolled


@settings(max_examples=100)
@given(REGISTRIES, IDS, KEYS)
def test_only_an_enrolled_device_under_its_own_key_is_believed(
    enrolled: Registry, id: str, key: str
) -> None:
    known = enrolled.devices.get(id)
    believed = known is not None and not known.revoked and known.key == key
    assert (enrolled.refusal(id, key) is None) == believed
    for name, device in enrolled.devices.items():
        assert (enrolled.refusal(name, device.key) is None) == (name not in enrolled.revoked)


def test_a_refusal_says_why() -> None:
    enrolled = EMPTY.with_device("a", Device("1" * 64, ("1",), "2030-01-01"))
    assert (
        enrolled.refusal("b", "1" * 64)
        == "it is not enrolled; enroll it with `fedclip-edge enroll`"
    )
    assert enrolled.refusal("a", "2" * 64) == "its key is not the one that it was enrolled with"
    gone = enrolled.with_device("a", replace(enrolled.devices["a"], revoked=True))
    assert gone.refusal("a", "1" * 64) == "it was revoked"
    assert enrolled.revoked == ()  # the original registry does not change


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "broker init"),
        (b"{", r"line 1 .* is not valid JSON: .* \(or restore the registry"),
        (b"[]", "not a registry"),
        (b'{"fleet": "lab"}', "'host' is missing"),
        (registry.pack(EMPTY).replace(b"0" * 64, b"x"), "coordinator"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "devices.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        registry.read(path)
    assert str(path) in str(caught.value)
