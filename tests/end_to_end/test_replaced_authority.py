"""A fleet whose certificate authority is replaced in the middle of a run."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import system
from brokers import MOSQUITTO
from secured import Secured, write_agent, write_fleet
from system import Site, wait_until

from fedclip_edge.errors import ConfigError
from fedclip_edge.vision.bundle import Bundle

pytestmark = [
    pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed"),
    pytest.mark.one_python,
]


def test_a_run_goes_on_while_its_boxes_get_new_files(tmp_path: Path, random_bundle: Bundle) -> None:
    with (
        Secured(tmp_path) as secured,
        Site(tmp_path, random_bundle, secured.coordinator, "lab") as site,
    ):
        secured.start()
        moves, stays = (write_agent(secured, random_bundle, f"cam-0{n}") for n in (1, 2))
        fleet, folder = write_fleet(secured, random_bundle, 100_000), secured.site.path
        serve = site.start("serve", fleet, "--json", log="serve")
        box = site.start("agent", moves, "--json", log="cam-01")
        other = site.start("agent", stays, "--json", log="cam-02")

        def count(log: str, event: str) -> int:
            return sum(e["event"] == event for e in site.events(log))

        def goes_on(*logs: str) -> None:
            before = {log: count(log, "trained") for log in logs}
            wait_until(
                lambda: all(count(log, "trained") > n for log, n in before.items()), "more rounds"
            )

        goes_on("cam-01", "cam-02")
        said = system.run("broker", "replace-authority", folder)
        assert said.returncode == 0, said.stderr
        secured.stop()
        secured.start()
        goes_on("cam-01", "cam-02")  # `serve` has its earlier certificate too
        serve.send_signal(signal.SIGTERM)
        box.send_signal(signal.SIGTERM)
        assert [one.wait(system.DEADLINE_S) for one in (serve, box)] == [0, 0]
        place = moves.parent
        said = system.run("renew", "cam-01", "--site", folder, "--out", place / "device.crt")
        assert said.returncode == 0, said.stderr
        shutil.copy(folder / "ca.crt", place / "ca.crt")
        site.start("serve", fleet, "--json", log="again")
        site.start("agent", moves, "--json", log="renewed")
        goes_on("renewed", "cam-02")
        said = system.run("broker", "replace-authority", folder, "--finish", "--cut-off")
        assert said.stdout.endswith("refused then: cam-02\n")
        secured.stop()
        secured.start()
        goes_on("renewed")
        refused = "does not show a certificate of the authority in"
        wait_until(lambda: refused in site.text("cam-02"), "the refusal")
        other.kill()
        said = system.run("agent", stays)  # an agent that starts ends at once
        assert said.returncode == ConfigError.exit_code
        assert refused in said.stderr
