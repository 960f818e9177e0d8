"""The devices of each run in a journal."""

from __future__ import annotations

from fedclip_edge.coordinator.journal import Journal


def test_a_device_has_one_key_in_each_run(journal: Journal) -> None:
    for run, device, key in (
        ("run-1", "cam-01", "a" * 64),
        ("run-1", "cam-01", "b" * 64),
        ("run-1", "cam-02", "c" * 64),
        ("run-2", "cam-01", "d" * 64),
    ):
        journal.devices.pin_key(run, device, key)
    assert journal.devices.keys("run-1") == {"cam-01": "b" * 64, "cam-02": "c" * 64}
    assert journal.devices.keys("run-2") == {"cam-01": "d" * 64}
