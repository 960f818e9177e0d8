"""A fleet whose broker has limits that it does not announce, until its operator raises them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import system
from brokers import Mosquitto, StartMosquitto
from mqtt_client import Gate, fill
from system import Site, wait_until

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import LinkError
from fedclip_edge.records import ClassTexts
from fedclip_edge.vision.bundle import Bundle, Golden, Manifest, write_bundle
from fedclip_edge.vision.encoder import open_onnx
from fedclip_edge.vision.pictures import Preprocessing

pytestmark = pytest.mark.one_python
OPEN = "allow_anonymous true\n"
DIM = 128
LIMIT = 20_000
# One is above the limit: a model of fedclip has 60 kB, and its update less; one of ridge has 2 kB,
# and its update, whose size grows with the square of DIM, more than the limit.
MODEL, UPDATE = "fedclip", "ridge"


@pytest.fixture
def bundle(tmp_path: Path, make_encoder: Callable[..., bytes]) -> Bundle:
    preprocessing = Preprocessing(32, "shortest", 32, "bicubic", (0.5,) * 3, (0.25,) * 3)
    encoder = make_encoder(dim=DIM)
    pixels = np.random.default_rng(1).normal(size=(2, 3, 32, 32)).astype(np.float32)
    golden = Golden(pixels, open_onnx(encoder, EncoderConfig(), image_size=32).embed(pixels))
    manifest = Manifest(
        model="random",
        pretrained="none",
        weights_sha256="0" * 64,
        dim=DIM,
        preprocessing=preprocessing,
        activation="tanh",
        precision="fp32",
        opset=18,
    )
    vectors = np.eye(3, DIM, dtype=np.float32)
    texts = ClassTexts(("circle", "square", "triangle"), vectors, 100.0, "a {}")
    return write_bundle(tmp_path / "bundle", manifest, encoder, texts, golden)


class Limited:
    """A fleet behind a broker with a limit. In MQTT 3.1.1 its clients come through a gate.

    `ends` ends its processes.
    """

    def __init__(
        self,
        ends: ExitStack,
        start: StartMosquitto,
        folder: Path,
        bundle: Bundle,
        setting: str,
        method: str,
        version: str,
    ) -> None:
        self._start = start
        self.broker: Mosquitto = start(settings=f"{OPEN}{setting} {LIMIT}")
        address = self.broker.address
        if version != "5":
            gate = Gate(address)
            ends.callback(gate.close)
            address = gate.address
        self.site = ends.enter_context(Site(folder, bundle, address, "lab"))
        fleet = self.site.write_fleet(devices=1, rounds=1, method=method)
        agent = self.site.write_agent("north")
        self.serve = self.site.start("serve", "--once", fleet, "--json", log="serve")
        self.agent = self.site.start("agent", agent, "--once", "--json", log="north")

    def await_event(self, log: str, event: str) -> dict[str, Any]:
        found = list[dict[str, Any]]()

        def came() -> bool:
            found[:] = [e for e in self.site.events(log) if e["event"] == event]
            return bool(found)

        wait_until(came, f"{event} of {log}")
        return found[0]

    def raise_limit(self) -> None:
        self.broker.stop()
        self._start(self.broker.address.port, OPEN)

    def ends_well(self) -> None:
        assert self.serve.wait(2 * system.DEADLINE_S) == 0, self.site.text("serve")
        assert self.agent.wait(system.DEADLINE_S) == 0, self.site.text("north")

    def counts(self, log: str) -> Counter[str]:
        return Counter(event["event"] for event in self.site.events(log))


@pytest.fixture
def limited(
    start_mosquitto: StartMosquitto, tmp_path: Path, bundle: Bundle, request: pytest.FixtureRequest
) -> Iterator[Limited]:
    with ExitStack() as ends:
        yield Limited(ends, start_mosquitto, tmp_path, bundle, *request.param)


WHO = {
    "serve, 5": (("message_size_limit", MODEL, "5"), "serve"),
    "an agent, 5": (("message_size_limit", UPDATE, "5"), "north"),
    "serve, 3.1.1": (("max_packet_size", MODEL, "3.1.1"), "serve"),
    "an agent, 3.1.1": (("max_packet_size", UPDATE, "3.1.1"), "north"),
}


@pytest.mark.parametrize(("limited", "who"), WHO.values(), ids=WHO, indirect=["limited"])
def test_who_meets_a_limit_says_so_once_and_goes_on_when_it_is_raised(
    limited: Limited, who: str
) -> None:
    reason = limited.await_event(who, "broker_limit")["reason"]
    assert "message_size_limit" in reason
    assert "max_packet_size" in reason
    lost = limited.counts(who)["link_lost"]
    limited.raise_limit()
    limited.ends_well()
    counts = limited.counts(who)
    assert (counts["broker_limit"], counts["broker_limit_over"]) == (1, 1)
    assert counts["link_lost"] <= lost + 1, "a flood of lost links"
    assert counts["message_not_taken"] == 0


SILENT = {
    "the model": (("message_size_limit", MODEL, "3.1.1"), "model"),
    "an update": (("message_size_limit", UPDATE, "3.1.1"), "update"),
}


@pytest.mark.parametrize(("limited", "what"), SILENT.values(), ids=SILENT, indirect=["limited"])
def test_what_the_broker_drops_without_an_error_is_reported_by_the_device(
    limited: Limited, what: str
) -> None:
    told = limited.await_event("north", "parts_lost")
    assert told["of"] == what
    assert "message_size_limit" in told["hint"]
    limited.raise_limit()
    limited.ends_well()
    counts = limited.counts("north")
    assert (counts["parts_lost"], counts["parts_arrive"]) == (1, 1)


@pytest.mark.parametrize("role", ["agent", "serve"])
def test_a_broker_without_room_ends_the_start_with_what_to_raise(
    start_mosquitto: StartMosquitto, tmp_path: Path, random_bundle: Bundle, role: str
) -> None:
    broker = start_mosquitto(settings=OPEN + "max_connections 1")
    site = Site(tmp_path, random_bundle, broker.address, "lab")
    links = fill(broker.address)
    config = site.write_agent("north") if role == "agent" else site.write_fleet(1, 1)
    done = system.run(role, config)
    assert done.returncode == LinkError.exit_code
    assert "mosquitto: max_connections" in done.stderr
    for link in links:
        link.close()
