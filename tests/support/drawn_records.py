"""Hypothesis strategies for valid records."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from fedclip_edge.protocol.report import Report
from fedclip_edge.records import Plan

IDS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?", fullmatch=True)


SCALARS = st.one_of(
    st.text(max_size=8),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
)


PLANS = st.builds(
    Plan,
    method=st.text(max_size=8),
    options=st.dictionaries(st.text(max_size=8), SCALARS, max_size=4),
    rounds=st.integers(0, 1_000_000),
    seed=st.integers(0, 2**63 - 1),
    grid_bits=st.integers(1, 52),
    max_weight=st.integers(1, 2**40),
    max_norm=st.floats(0, 1e9, exclude_min=True, exclude_max=True),
    local_baseline=st.booleans(),
)


COUNTS = st.integers(0, 2**53)


SECONDS = st.floats(0, 1e12)


REPORTS = st.builds(
    Report,
    run=st.sampled_from(["run-1", "r"]),
    round=COUNTS,
    device=st.sampled_from(["cam-01", "c"]),
    domain=st.text("abc Δé", max_size=16),
    model=st.binary(min_size=32, max_size=32).map(bytes.hex),
    accuracy=st.fixed_dictionaries(
        {"zero_shot": st.floats(0, 1), "federated": st.floats(0, 1)},
        optional={"local": st.floats(0, 1), "federated_f1": st.floats(0, 1)},
    ),
    per_class=st.dictionaries(
        st.sampled_from(["zero_shot", "federated"]),
        st.lists(st.none() | st.floats(0, 1), max_size=4).map(tuple),
    ),
    train_pictures=COUNTS,
    test_pictures=COUNTS,
    encoded=COUNTS,
    skipped=COUNTS,
    bytes_up=st.none() | COUNTS,
    bytes_down=st.none() | COUNTS,
    encode_s=SECONDS,
    train_s=SECONDS,
    wait_s=SECONDS,
)


def report(**changes: Any) -> Report:
    fields: dict[str, Any] = {
        "run": "run-1",
        "round": 3,
        "device": "cam-01",
        "domain": "photo",
        "model": "a" * 64,
        "accuracy": {"zero_shot": 0.5, "federated": 1.0},
        "train_pictures": 60,
        "test_pictures": 20,
        "encoded": 80,
        "skipped": 0,
        "bytes_up": None,
        "bytes_down": 12,
        "encode_s": 1.5,
        "train_s": 0.25,
        "wait_s": 0.0,
    }
    return Report(**{**fields, **changes})
