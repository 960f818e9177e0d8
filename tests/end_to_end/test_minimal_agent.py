"""The example agent for implementers, in a run with the real coordinator and a real broker."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
from example_agent import EXAMPLES, initial, start
from system import DEADLINE_S, Site, wait_until

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.coordinator.journal import open_journal
from fedclip_edge.coordinator.run_state import master_model
from fedclip_edge.learning import mixture
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.vision.bundle import Bundle

ALLOWED = {"cryptography", "minimal_bodies", "paho", "zstandard", *sys.stdlib_module_names}


def test_it_is_made_of_nothing_of_ours() -> None:
    for path in (EXAMPLES / "minimal_agent.py", EXAMPLES / "minimal_bodies.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= ALLOWED
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] in ALLOWED


@pytest.mark.parametrize("codecs", [("int8", "fp16"), ("fp16", "fp32"), ("fp32", "int8")])
def test_its_contributions_are_kept(
    tmp_path: Path, random_bundle: Bundle, mosquitto: BrokerAddress, codecs: tuple[str, str]
) -> None:
    up, down = codecs
    rounds = 2
    with Site(tmp_path, random_bundle, mosquitto, f"minimal-{up}") as site:
        fleet = site.write_fleet(2, rounds, extra=f'codec_up = "{up}"\ncodec_down = "{down}"\n')
        fleet.write_text(fleet.read_text().replace('vote = "off"', 'vote = "on"'))
        serve = site.start("serve", "--once", fleet, "--json", log="serve")
        boxes = [start(site, name) for name in ("tiny-1", "tiny-2")]
        wait_until(lambda: serve.poll() is not None, "the run to end")
        assert serve.returncode == 0, site.text("serve")
        assert [box.wait(DEADLINE_S) for box in boxes] == [0, 0]
    assert not any("refused" in site.text(box) for box in ("tiny-1", "tiny-2"))
    closed = [event for event in site.events("serve") if event["event"] == "round_closed"]
    assert [event["contributions"] for event in closed] == [2] * (rounds + 1)  # the vote
    (decided,) = [e for e in site.events("serve") if e["event"] == "vote_decided"]
    assert (decided["candidate"], decided["pictures"]) == (1, 0)
    (done,) = [event for event in site.events("serve") if event["event"] == "run_done"]
    assert done["refused_messages"] == 0
    journal = open_journal(tmp_path / "journal.sqlite")
    run = journal.runs.last()
    assert run is not None
    shapes = Schedule(run.plan, random_bundle.classes, 16).layout(rounds + 1).parameters
    trained = mixture.members_of(master_model(journal.rounds.newest_model(run.id), shapes))[
        "fedclip"
    ]
    journal.close()
    for name, values in initial(run.plan, random_bundle).items():
        # One per cent per round; the codecs lose at most a few per cent of that.
        grown = trained[name] / values - 1
        large = np.abs(values) > 0.1
        assert np.abs(grown[large] - (1.01**rounds - 1)).max() < 4e-3
