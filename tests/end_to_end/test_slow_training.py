"""A device that trains for longer than `grace_s`, the keepalive and the first reminders."""

from __future__ import annotations

import secrets
import sys
import time
from pathlib import Path

import pytest
import slow_trainer
import system
from brokers import MOSQUITTO
from system import Site, wait_until

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.vision.bundle import Bundle

pytestmark = [
    pytest.mark.one_python,
    pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed"),
]
# The coordinator reminds a silent device 5 s and 10 s after the round opened, and the broker ends a
# link after 1.5 keepalives of silence.
TRAINS_S = 12.0
GRACE_S, KEEPALIVE_S = 1, 5


def test_a_round_waits_for_a_device_that_trains_for_long(
    tmp_path: Path, random_bundle: Bundle, mosquitto: BrokerAddress
) -> None:
    with Site(tmp_path, random_bundle, mosquitto, f"lab-{secrets.token_hex(4)}") as site:
        fleet = site.write_fleet(devices=2, rounds=1)
        fleet.write_text(fleet.read_text().replace("grace_s = 20", f"grace_s = {GRACE_S}"))
        settings = site.write_agent("slow")
        settings.write_text(f"{settings.read_text()}keepalive_s = {KEEPALIVE_S}\n")
        state = settings.parent / "state"
        state.mkdir()
        (state / slow_trainer.HOLD).touch()
        serve = site.start("serve", "--once", fleet, "--json", log="serve")
        site.start("agent", site.write_agent("quick"), "--json", log="quick")
        slow = site.start_program([sys.executable, slow_trainer.__file__, str(settings)], "slow")
        wait_until((state / slow_trainer.HELD).exists, "the start of the slow training")
        wait_until(lambda: kept(site) == {"quick"}, "the contribution of the quick device")
        ends_at = time.monotonic() + TRAINS_S
        wait_until(lambda: time.monotonic() >= ends_at, "the end of the slow training")
        assert kept(site) == {"quick"}
        (state / slow_trainer.HOLD).unlink()
        assert serve.wait(system.DEADLINE_S) == 0, site.text("serve")
        assert slow.poll() is None
        assert kept(site) == {"quick", "slow"}
        gone = {"left", "given_up", "missed"}
        assert not [event for event in site.events("serve") if event["event"] in gone]
        assert not [event for event in site.events("slow") if event["event"] == "link_lost"]


def kept(site: Site) -> set[str]:
    """The devices whose contribution is kept, according to the coordinator's log."""
    return {str(event["device"]) for event in site.events("serve") if event["event"] == "kept"}
