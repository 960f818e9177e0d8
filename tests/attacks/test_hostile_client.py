"""A client floods all topics of a real broker during a run.

Processes: the coordinator, two devices that train (examples/minimal_agent.py), and one that
evaluates (the product's own agent). The final model must equal the computed one.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hostile_bytes as hostile
import numpy as np
import paho.mqtt.client as mqtt
import pytest
import system
from brokers import StartMosquitto
from example_agent import initial, start
from hostile_bytes import Aim
from opened import UNTIL_THE_TEST_ENDS
from paho.mqtt.enums import CallbackAPIVersion
from system import Site, wait_until

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.coordinator.journal import open_journal
from fedclip_edge.coordinator.run_state import master_model
from fedclip_edge.learning import methods
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.pki import registry
from fedclip_edge.pki.registry import Device, Registry
from fedclip_edge.protocol import chunks, signing
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.records import Model, Plan, Update
from fedclip_edge.vision.bundle import Bundle

pytestmark = pytest.mark.one_python

MALLORY = signing.create_identity()
ROUNDS = 3
_IN_FLIGHT = 4
_PACE_S = 0.002  # slow enough for the run to proceed on two cores


def enrol(site: Site, names: tuple[str, ...]) -> str:
    """Create the keys of all parties before they start; return the coordinator's, which all pin."""
    coordinator = signing.load_or_create(site.folder / "journal.key").key
    enrolled = Registry(site.fleet, "127.0.0.1", site.broker.port, coordinator)
    for name in names:
        key = signing.load_or_create(site.folder / name / "state" / "device.key").key
        enrolled = enrolled.with_device(name, Device(key, ("1",), "2099-01-01"))
    registry.write(site.folder / "devices.json", enrolled)
    return coordinator


def fire(site: Site) -> list[tuple[str, bytes]]:
    """The corpus for all parties, signed with a key that no party trusts."""
    topics, bundle = Topics(site.fleet), site.bundle
    plan = Plan("fedclip", rounds=ROUNDS, vote="off")
    shapes = methods.shapes(plan, bundle.classes, 16)
    body = chunks.blob_of(b"x" * 1000, "model")
    aim = Aim(
        "judge", "judge", MALLORY, "run-0", 1, body, plan, shapes,
        bundle.manifest.encoder_id, bundle.classes.digest,
    )  # fmt: skip
    lead = hostile.as_sender(aim, "coordinator", MALLORY)
    said = []
    for name in ("judge", "tiny-1", "nobody"):
        up, state, down = topics.up(name), topics.state(name), topics.down(name)
        theirs = replace(aim, sender=name, device=name)
        for kind, topic in (("hello", up), ("offer", up), ("report", up), ("device", state)):
            lines = {**hostile.wrong_lines(theirs, kind), "right": theirs.line(kind)}
            said += [(topic, theirs.sign(line, topic)) for line in lines.values()]
        for kind in ("manifest", "kept", "refused", "coordinator", "want"):
            lines = {**hostile.wrong_lines(lead, kind), "right": lead.line(kind)}
            said += [(down, lead.sign(line, down)) for line in lines.values()]
        said += [(topic, p) for topic in (up, down, state) for p in hostile.not_messages().values()]
        wrong = hostile.wrong_chunks(body, b"x" * 1000).values()
        said += [(topic, chunk) for topic in (up, topics.model) for chunk in wrong]
    final = lead.line("refused", scope="device", key=MALLORY.key)
    said += [(topics.down("judge"), lead.sign(final, topics.down("judge")))]
    for topic, kind in ((topics.manifest, "manifest"), (topics.coordinator_state, "coordinator")):
        lines = {**hostile.wrong_lines(lead, kind), **hostile.wrong_plans(lead)}
        lines["right"] = lead.line(kind, epoch=2**50)
        said += [(topic, lead.sign(line, topic)) for line in lines.values()]
    return said


class Flood:
    """Publishes some hundred messages per second without end; some of them are retained."""

    def __init__(self, broker: BrokerAddress, said: list[tuple[str, bytes]]) -> None:
        self.sent = 0
        self._said = self._with_retained(said)
        self._free = threading.Semaphore(_IN_FLIGHT)
        self._over = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self._client.on_publish = lambda *_: self._free.release()
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @staticmethod
    def _with_retained(said: list[tuple[str, bytes]]) -> Iterator[tuple[str, bytes, bool]]:
        for number, (topic, payload) in enumerate(itertools.cycle(said)):
            yield topic, payload, number % 5 == 0

    def _run(self) -> None:
        while not self._over.wait(_PACE_S):
            if self._free.acquire(timeout=0.2):
                topic, payload, retain = next(self._said)
                self._client.publish(topic, payload, 1, retain)
                self.sent += 1

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        self._client.disconnect()
        self._client.loop_stop()


def expected(bundle: Bundle, plan: Plan) -> Model:
    """The expected model: two devices add one per cent to each value in every round."""
    model = Model(plan.method, 0, initial(plan, bundle))
    for _ in range(plan.rounds):
        total = ExactSum(plan)
        for _ in range(2):
            grown = {
                n: (0.01 * t.astype(np.float64)).astype(np.float32)
                for n, t in model.parameters.items()
            }
            total.add(Update("sum", 1, grown))
        model, _ = methods.combine(model, total, {})
    return model


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_run_completes_under_a_flood_with_the_same_model(
    tmp_path: Path, random_bundle: Bundle, start_mosquitto: StartMosquitto
) -> None:
    # As in the demo: with a limited queue the broker would drop messages.
    settings = "allow_anonymous true\nmax_queued_messages 0"
    mosquitto = start_mosquitto(settings=settings).address
    site = UNTIL_THE_TEST_ENDS.enter_context(Site(tmp_path, random_bundle, mosquitto, "flooded"))
    key = enrol(site, ("judge", "tiny-1", "tiny-2"))
    for name in ("tiny-1", "tiny-2"):
        raw = (tmp_path / name / "state" / "device.key").read_bytes()
        nothing = {
            "epoch": 0,
            "run": "",
            "closed": 0,
            "parked": None,
            "settled": [],
            "residual": {},
        }
        (tmp_path / f"{name}.json").write_text(json.dumps({**nothing, "key": raw.hex()}))
    fleet = site.write_fleet(2, ROUNDS, extra='codec_up = "fp32"\ncodec_down = "fp32"\n')
    fleet.write_text('registry = "devices.json"\n' + fleet.read_text())
    judge_state = tmp_path / "judge" / "state"
    saved = (judge_state / "device.key").read_bytes()
    (judge_state / "device.key").unlink()
    judge_state.rmdir()
    (tmp_path / "judge").rmdir()
    extra = f'roles = ["evaluate"]\ncoordinator_key = "{key}"'
    judge = site.write_agent("judge", extra=extra)
    judge_state.mkdir()
    (judge_state / "device.key").write_bytes(saved)
    flood = Flood(mosquitto, fire(site))
    try:
        wait_until(lambda: flood.sent > 500, "the flood to begin")
        serve = site.start("serve", "--once", fleet, "--json", log="serve")
        agent = site.start("agent", judge, "--once", "--json", log="judge")
        # The judge only evaluates, so the round does not wait for it; it must join before the
        # others.
        wait_until(lambda: "joined" in site.text("serve"), "the judge to join")
        for name in ("serve", "judge"):
            wait_until(
                lambda log=name: site.text(log).count("message_refused") > 10,  # type: ignore[misc]
                f"the flood to reach {name}",
            )
        before = flood.sent
        wait_until(lambda: flood.sent > before + 500, "the flood to go on")
        boxes = [start(site, name, coordinator_key=key) for name in ("tiny-1", "tiny-2")]
        peak_kb = 0
        status = Path(f"/proc/{serve.pid}/status")
        deadline = time.monotonic() + system.DEADLINE_S
        while serve.poll() is None and time.monotonic() < deadline:
            lines = status.read_text().splitlines()
            peak_kb = max([peak_kb, *(int(x.split()[1]) for x in lines if x.startswith("VmHWM"))])
            time.sleep(0.1)
        assert serve.wait(system.DEADLINE_S) == 0, site.text("serve")[-2000:]
        assert [box.wait(system.DEADLINE_S) for box in (*boxes, agent)] == [0, 0, 0]
    finally:
        flood.end()
    assert peak_kb < 300_000
    (done,) = [event for event in site.events("serve") if event["event"] == "run_done"]
    assert done["refused_messages"] > 100
    assert site.events("judge")[-1]["refused_messages"] > 100
    journal = open_journal(tmp_path / "journal.sqlite")
    run = journal.runs.last()
    assert run is not None
    shapes = methods.shapes(run.plan, random_bundle.classes, 16)
    trained = master_model(journal.rounds.newest_model(run.id), shapes)
    journal.close()
    made = expected(random_bundle, run.plan)
    assert {n: t.tobytes() for n, t in trained.parameters.items()} == {
        n: t.tobytes() for n, t in made.parameters.items()
    }
