"""The vote between real processes: answered, killed in between, lied to, and without a quorum."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkout import SUPPORT
from system import DEADLINE_S, Site, wait_until
from voting_agent import HOLD, LIE

from fedclip_edge import model_file
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.learning import ballot
from fedclip_edge.records import Model
from fedclip_edge.vision.bundle import Bundle

pytestmark = pytest.mark.one_python
NORTH, SOUTH, POOR, DOOR = "north", "south-2", "poor", "door"
FLEETS = itertools.count()
METHODS = {"gda": 1, "fedclip": 2}  # rounds


@pytest.fixture
def site(tmp_path: Path, random_bundle: Bundle, mosquitto: BrokerAddress) -> Iterator[Site]:
    with a_site(tmp_path, random_bundle, mosquitto) as made:
        yield made


@contextlib.contextmanager
def a_site(folder: Path, bundle: Bundle, broker: BrokerAddress) -> Iterator[Site]:
    """Three training devices, of which one has too few pictures to vote, and one that evaluates."""
    with Site(folder, bundle, broker, f"vote-{next(FLEETS)}") as site:
        for name in (NORTH, SOUTH):
            site.write_agent(name, per_class=40)
        site.write_agent(POOR, per_class=6)
        site.write_agent(DOOR, extra='roles = ["evaluate"]\n')
        yield site


def start_agents(site: Site, *without: str) -> None:
    for name in {NORTH, SOUTH, POOR, DOOR} - set(without):
        start_agent(site, name)


def start_agent(site: Site, name: str) -> subprocess.Popen[bytes]:
    agent = str(SUPPORT / "voting_agent.py")
    return site.start_program([sys.executable, agent, str(config_of(site, name))], name)


def config_of(site: Site, name: str) -> Path:
    return site.folder / name / "agent.toml"


def hold(site: Site, name: str) -> Path:
    path = site.folder / name / "state" / HOLD
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


def serve(site: Site, method: str, deadline_s: float = 60) -> subprocess.Popen[bytes]:
    path = site.write_fleet(3, METHODS[method], method=method)
    rules = f"deadline_s = {deadline_s:g}\nquorum = 1.0"
    text = path.read_text().replace('vote = "off"', 'vote = "on"')
    path.write_text(text.replace("deadline_s = 60", rules).replace("grace_s = 20", "grace_s = 10"))
    return site.start("serve", "--once", path, "--json", log="serve")


def ends(site: Site, process: subprocess.Popen[bytes]) -> Model:
    """Wait for the end of the run; return the model in its file."""
    wait_until(lambda: process.poll() is not None, "the run to end", 2 * DEADLINE_S)
    assert process.returncode == 0, site.text("serve")
    (written,) = (e for e in site.events("serve") if e["event"] == "model_written")
    return model_file.read(Path(written["path"])).model


def said(site: Site, event: str, **fields: Any) -> list[dict[str, Any]]:
    return [e for e in site.events("serve") if e["event"] == event and fields.items() <= e.items()]


def content(model: Model) -> dict[str, bytes]:
    return {name: term.tobytes() for name, term in model.parameters.items()}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_ends_with_a_vote_of_the_devices_that_train(site: Site, method: str) -> None:
    process = serve(site, method)
    start_agents(site)
    model = ends(site, process)
    vote = METHODS[method] + 1
    assert model.round == vote
    weights = {e["device"]: e["weight"] for e in said(site, "kept", round=vote)}
    assert weights.keys() == {NORTH, SOUTH, POOR}
    assert weights[POOR] == 1, "an answer without pictures has the weight 1"
    assert min(weights[NORTH], weights[SOUTH]) >= 15
    (decided,) = said(site, "vote_decided")
    assert decided["pictures"] == weights[NORTH] + weights[SOUTH] >= ballot.ENOUGH
    assert "hint" not in decided
    assert len(said(site, "round_closed", contributions=3)) == vote


@pytest.mark.parametrize("method", METHODS)
def test_whoever_is_killed_during_the_vote_the_model_is_the_same(
    site: Site, method: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with a_site(tmp_path_factory.mktemp("undisturbed"), site.bundle, site.broker) as other:
        process = serve(other, method)
        start_agents(other)
        undisturbed = ends(other, process)
    held = hold(site, SOUTH)
    process = serve(site, method)
    start_agents(site, SOUTH)
    victim = start_agent(site, SOUTH)
    vote = METHODS[method] + 1
    for name in (NORTH, POOR):
        wait_until(lambda name=name: said(site, "kept", round=vote, device=name) != [], name)  # type: ignore[misc]
    process.kill()
    process.wait()
    victim.kill()
    victim.wait()
    held.unlink()
    again = site.start("serve", "--once", site.folder / "fleet.toml", "--json", log="serve")
    start_agent(site, SOUTH)
    model = ends(site, again)
    assert content(model) == content(undisturbed)
    assert len(said(site, "kept", round=vote)) == 3, "no answer is counted again"
    (decided,) = said(site, "vote_decided")
    assert "hint" not in decided


def test_an_impossible_answer_is_refused_and_named(site: Site) -> None:
    (site.folder / SOUTH / "state").mkdir()
    (site.folder / SOUTH / "state" / LIE).touch()
    process = serve(site, "gda")
    start_agents(site)
    ends(site, process)
    (refused,) = said(site, "message_refused")
    assert refused["device"] == SOUTH
    assert "answer's correct are from" in refused["reason"]
    assert [e["device"] for e in said(site, "missed", reason="refused")] == [SOUTH]
    assert {e["device"] for e in said(site, "kept", round=2)} == {NORTH, POOR}


def test_a_vote_that_one_of_three_devices_answers_ends_with_the_default(site: Site) -> None:
    held = [hold(site, name) for name in (SOUTH, POOR)]
    process = serve(site, "gda", deadline_s=12)
    start_agents(site)
    wait_until(lambda: said(site, "round_closed", round=2) != [], "the deadline")
    for path in held:
        path.unlink()
    model = ends(site, process)
    (decided,) = said(site, "vote_decided")
    assert (decided["candidate"], decided["temperature"]) == (ballot.DEFAULT, 1)
    assert "too few devices answered before the deadline" in decided["hint"]
    assert {e["device"] for e in said(site, "missed", round=2)} == {SOUTH, POOR}
    assert model.round == 2
