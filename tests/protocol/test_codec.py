"""The codecs: smaller bodies, a bounded loss, and no more bytes than declared.

Error feedback keeps the loss of one update for the next.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fedclip_edge.errors import PeerError
from fedclip_edge.protocol import codec
from fedclip_edge.records import F32, Arrays

CODECS = st.sampled_from(sorted(codec.CODECS))
LIMIT = 1 << 20


@settings(max_examples=100)
@given(CODECS, st.binary(min_size=1, max_size=200))
def test_bytes_of_any_length_come_back_exactly(name: str, body: bytes) -> None:
    coded = codec.encode(name, body)
    assert codec.decode(name, coded, LIMIT) == body
    assert codec.decode(name, coded, len(body)) == body
    assert codec.encode(name, body) == coded


@settings(max_examples=50)
@given(CODECS, st.binary(min_size=2, max_size=200), st.data())
def test_what_declares_more_than_the_limit_is_refused(
    name: str, body: bytes, data: st.DataObject
) -> None:
    limit = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(PeerError, match=f"declares {len(body)} bytes, expected 1 to {limit}"):
        codec.decode(name, codec.encode(name, body), limit)


def test_a_bomb_is_refused_before_memory_is_taken() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 26))
    assert len(bomb) < 10_000
    with pytest.raises(PeerError, match=r"declares 67108864 bytes"):
        codec.decode("fp32", bomb, LIMIT)


def test_a_frame_that_does_not_declare_its_size_is_refused() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    with pytest.raises(PeerError, match="declares -1 bytes"):
        codec.decode("fp32", compressor.compress(b"body"), LIMIT)


def test_a_frame_that_holds_more_than_it_declares_is_refused() -> None:
    coded = bytearray(zstandard.ZstdCompressor(write_checksum=False).compress(bytes(200)))
    assert coded[5] == 200  # RFC 8878: magic number, descriptor, one byte of content size
    coded[5] = 100
    with pytest.raises(PeerError, match="not a complete zstd frame"):
        codec.decode("fp32", bytes(coded), LIMIT)


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=200), st.data())
def test_a_frame_cut_short_or_followed_by_more_is_refused(body: bytes, data: st.DataObject) -> None:
    coded = codec.encode("fp32", body)
    cut = data.draw(st.integers(0, len(coded) - 1))
    with pytest.raises(PeerError):
        codec.decode("fp32", coded[:cut], LIMIT)
    with pytest.raises(PeerError):
        codec.decode("fp32", coded + data.draw(st.binary(min_size=1, max_size=9)), LIMIT)


@settings(max_examples=100)
@given(CODECS, st.binary(max_size=100))
def test_any_bytes_are_decoded_or_refused(name: str, data: bytes) -> None:
    for candidate in (data, b"\x28\xb5\x2f\xfd" + data):
        with contextlib.suppress(PeerError):
            codec.decode(name, candidate, LIMIT)


def test_an_empty_body_is_refused() -> None:
    with pytest.raises(PeerError, match="declares 0 bytes"):
        codec.decode("fp32", codec.encode("fp32", b""), LIMIT)


def test_floats_shrink_more_than_by_zstd_alone() -> None:
    floats = np.random.default_rng(0).normal(scale=0.02, size=50_000).astype("<f4").tobytes()
    alone = zstandard.ZstdCompressor(level=1).compress(floats)
    assert len(codec.encode("fp32", floats)) < 0.95 * len(alone)


def test_fp32_puts_bytes_of_one_significance_together() -> None:
    body = bytes(range(8)) + b"xy"
    shuffled = zstandard.ZstdDecompressor().decompress(codec.encode("fp32", body))
    assert shuffled == bytes([0, 4, 1, 5, 2, 6, 3, 7]) + b"xy"


@pytest.mark.parametrize(
    "asked",
    [
        lambda: codec.encode("int3", b"body"),
        lambda: codec.decode("int3", b"body", LIMIT),
        lambda: codec.tensor_layout("int3", {}),
        lambda: codec.store("int3", {}),
        lambda: codec.restore("int3", {}, {}),
    ],
)
def test_a_codec_that_is_not_there_is_refused_by_name(asked: Callable[[], object]) -> None:
    with pytest.raises(PeerError, match="unknown codec 'int3'"):
        asked()


def test_a_registered_codec_is_used_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "CODECS", dict(codec.CODECS))
    codec.register("mine", codec.CODECS["fp16"])
    terms = {"a": np.array([0.1, 7e4], np.float32)}
    assert through("mine", terms)["a"].tolist() == through("fp16", terms)["a"].tolist()
    body = bytes(range(9))
    assert codec.encode("mine", body) == codec.encode("fp16", body) != codec.encode("int8", body)


def test_a_registered_codec_does_not_replace_another() -> None:
    before = codec.CODECS["int8"]
    with pytest.raises(ValueError, match="there is a codec 'int8' already"):
        codec.register("int8", codec.CODECS["fp16"])
    assert codec.CODECS["int8"] is before


# The precision of each codec.


def arrays(largest: float) -> st.SearchStrategy[F32]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=40)
    values = st.floats(-largest, largest, width=32)
    return hnp.arrays(np.float32, shapes, elements=values, fill=values)


def through(name: str, terms: Arrays) -> Arrays:
    stored = codec.store(name, terms)
    shapes = {key: term.shape for key, term in terms.items()}
    layout = codec.tensor_layout(name, shapes)
    assert {key: list(tensor.shape) for key, tensor in stored.items()} == {
        key: shape for key, (_, shape) in layout.items()
    }
    return codec.restore(name, stored, shapes)


@settings(max_examples=100)
@given(CODECS, arrays(1e9))
def test_terms_of_any_shape_come_back_as_terms(name: str, term: F32) -> None:
    found = through(name, {"a": term})["a"]
    assert found.dtype == np.float32
    assert found.shape == term.shape
    assert np.isfinite(found).all()
    if name == "fp32":
        assert found.tobytes() == term.tobytes()


@settings(max_examples=100)
@given(arrays(65504))
def test_half_keeps_eleven_digits(term: F32) -> None:
    found = through("fp16", {"a": term})["a"]
    assert (np.abs(found - term) <= np.maximum(np.abs(term) * 2.0**-11, 2.0**-25)).all()


def test_what_half_cannot_say_is_its_largest_number() -> None:
    found = through("fp16", {"a": np.array([7e4, -1e30, 65519], np.float32)})["a"]
    assert found.tolist() == [65504, -65504, 65504]


@settings(max_examples=200)
@given(arrays(1e9))
def test_a_step_is_a_set_share_of_its_blocks_largest(term: F32) -> None:
    found = through("int8", {"a": term})["a"].ravel()
    for start in range(0, term.size, codec.BLOCK):
        block = slice(start, start + codec.BLOCK)
        largest = float(np.abs(term.ravel()[block]).max())
        # Half a step, rounded up to bfloat16. Scales below float32's normal range are coarse.
        within = largest / codec.STEPS * (1 + 2.0**-7) / 2 * (1 + 1e-6) + 2.0**-126
        assert np.abs(found[block] - term.ravel()[block]).max() <= within


def test_each_block_has_a_scale_of_its_own() -> None:
    term = np.full(3 * codec.BLOCK, 1e-6, np.float32)
    term[0] = 1000
    found = through("int8", {"a": term})["a"]
    assert (found[1 : codec.BLOCK] == 0).all()
    np.testing.assert_allclose(found[codec.BLOCK :], 1e-6, rtol=0.01)
    (_, (scales,)) = codec.tensor_layout("int8", {"a": (3 * codec.BLOCK + 1,)})["a:scale"]
    assert scales == 4


@pytest.mark.parametrize("value", [1e-45, 1e-40, 3e-39, 1e-38, 1e-30])
def test_values_too_small_for_a_step_are_zero_and_never_worse(value: float) -> None:
    term = np.full(300, value, np.float32)
    found = through("int8", {"a": term})["a"]
    assert (np.abs(found - term) <= term).all()


def test_int8_needs_a_quarter_of_float32() -> None:
    """Values distributed like an adapter's changes: all of Adam's steps are about equally large."""
    random = np.random.default_rng(0)
    change = np.clip(random.normal(4e-4, 5e-5, 100_000), 0, 4.2e-4) * random.choice(
        [-1, 1], 100_000
    )
    terms = {"a": change.astype(np.float32)}
    sizes = {
        name: len(codec.encode(name, safetensors.numpy.save(dict(codec.store(name, terms)))))
        for name in codec.CODECS
    }
    assert sizes["int8"] < 0.27 * 4 * change.size
    assert sizes["fp16"] < 0.5 * 4 * change.size
    assert sizes["int8"] < sizes["fp16"] < sizes["fp32"]


def test_no_update_needs_more_than_seven_bits_a_value() -> None:
    """Uniformly drawn steps compress worst; the limit bounds the time of an upload."""
    random, count = np.random.default_rng(0), 200_000
    layout = codec.tensor_layout("int8", {"a": (count,)})
    blocks = layout["a:scale"][1][0]
    worst: dict[str, NDArray[Any]] = {
        "a": random.integers(-codec.STEPS, codec.STEPS + 1, count).astype(np.int8),
        "a:scale": random.integers(0, 0x7000, blocks).astype(np.uint16),
    }
    codec.restore("int8", worst, {"a": (count,)})
    assert len(codec.encode("int8", safetensors.numpy.save(worst))) < count * 7 / 8


# Error feedback.

UPDATES = st.lists(
    hnp.arrays(np.float32, (300,), elements=st.floats(-8, 8, width=32)), min_size=1, max_size=6
)


@settings(max_examples=100)
@given(CODECS, UPDATES)
def test_what_arrived_and_the_residual_add_up_to_what_was_meant(
    name: str, updates: list[F32]
) -> None:
    residual: Arrays = {}
    arrived, meant = np.zeros(300), np.zeros(300)
    for update in updates:
        sent, residual = codec.with_feedback(name, {"a": update}, residual)
        arrived += codec.restore(name, sent, {"a": update.shape})["a"]
        meant += update
    left = residual["a"] if residual else np.zeros(300)
    np.testing.assert_allclose(arrived + left, meant, rtol=0, atol=1e-5)
    assert np.abs(left).max() <= 8 / codec.STEPS  # the residual does not grow


def test_without_feedback_small_changes_would_be_lost_for_ever() -> None:
    update = np.full(256, 1e-3, np.float32)
    update[0] = 1.0
    residual: Arrays = {}
    arrived = np.zeros(256)
    for _ in range(100):
        sent, residual = codec.with_feedback("int8", {"a": update}, residual)
        arrived += codec.restore("int8", sent, {"a": (256,)})["a"]
    assert (through("int8", {"a": update})["a"][1:] == 0).all()
    np.testing.assert_allclose(arrived[1:], 0.1, atol=0.01)


def test_a_lossless_codec_leaves_nothing_behind() -> None:
    terms = {"a": np.linspace(-1, 1, 50, dtype=np.float32)}
    sent, residual = codec.with_feedback("fp32", terms, {})
    assert residual == {}
    assert sent["a"].tobytes() == terms["a"].tobytes()
