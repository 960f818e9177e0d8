"""A fleet on three RabbitMQ nodes of this machine, one of which is killed during a round.

`make test` leaves this file out. Run it with `make test-cluster`; RabbitMQ must be installed.
"""

from __future__ import annotations

import secrets
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import system
from cluster import NODES, PROGRAMS, Balancer, Cluster
from system import Site, wait_until

from fedclip_edge import model_file
from fedclip_edge.config.agent import load_agent
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import LinkError, RefusedError
from fedclip_edge.pki import enrolment
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport.base import Connected, Disconnected, Received
from fedclip_edge.transport.mqtt import PahoTransport
from fedclip_edge.vision.bundle import Bundle

pytestmark = pytest.mark.cluster

T = TypeVar("T")

DEVICES = ("north", "south", "west")  # the position of a name selects the node that it tries first
ROUNDS = 8


class Fleet:
    """Three agents that keep running, one per node, and a coordinator per run; `ends` ends them."""

    def __init__(self, ends: ExitStack, cluster: Cluster, bundle: Bundle) -> None:
        self.cluster = cluster
        self.folder = cluster.folder
        self.balancers = {}
        for place, name in enumerate(("coordinator", *DEVICES)):
            first = max(0, place - 1)
            balancer = Balancer([*cluster.nodes[first:], *cluster.nodes[:first]])
            ends.callback(balancer.close)
            self.balancers[name] = balancer
        self.site = ends.enter_context(Site(self.folder, bundle, BrokerAddress(), "lab"))
        self.agents = {name: self._start_agent(name) for name in DEVICES}
        self._runs = 0

    def begin(self) -> str:
        """Start a coordinator with a new journal; return the name of its log."""
        self._runs += 1
        log, here = f"serve-{self._runs}", self.cluster.site.coordinator
        path = self.folder / f"fleet-{self._runs}.toml"
        path.write_text(
            f'fleet = "lab"\nbundle = "{self.site.bundle.folder}"\n'
            f'registry = "{self.cluster.site.registry}"\n'
            f"[broker]\nport = {self.balancers['coordinator'].port}\n"
            f'ca = "{here}/ca.crt"\ncertificate = "{here}/coordinator.crt"\n'
            f'key = "{here}/coordinator.key"\n'
            f"[rules]\ndevices = {len(DEVICES)}\nquorum = 1.0\ndeadline_s = 60\ngrace_s = 30\n"
            f'[plan]\nmethod = "fedclip"\nrounds = {ROUNDS}\nvote = "off"\ncodec_up = "fp32"\ncodec_down = "fp32"\n'
        )
        self.serve = self.site.start("serve", "--once", path, "--json", log=log)
        return log

    def finish(self, log: str) -> dict[str, bytes]:
        """Wait for the end of the run; return the bytes of the final model."""
        assert self.serve.wait(system.DEADLINE_S) == 0, self.site.text(log)
        (written,) = (e for e in self.site.events(log) if e["event"] == "model_written")
        model = model_file.read(Path(written["path"])).model
        assert model.round == ROUNDS
        return {name: values.tobytes() for name, values in model.parameters.items()}

    def closed(self, log: str) -> int:
        return sum(event["event"] == "round_closed" for event in self.site.events(log))

    def link(
        self,
        name: str,
        address: BrokerAddress,
        topics: tuple[str, ...],
        patience_s: float = system.DEADLINE_S,
    ) -> PahoTransport:
        """An additional connection with the certificate of a member of the fleet."""
        home = self.cluster.site.coordinator if name == "coordinator" else self.folder / name
        file = name if name == "coordinator" else "device"
        where = replace(
            address, ca=home / "ca.crt", certificate=home / f"{file}.crt", key=home / f"{file}.key"
        )
        made = PahoTransport(where, f"{name}-{secrets.token_hex(8)}", topics, None)
        made.connect(patience_s)
        wait_for(made, Connected)
        return made

    def hold(self, name: str, log: str) -> int:
        """Stop a device in an open round that all other devices have contributed to.

        Returns the number of the round, which cannot close without that device.
        """
        agent = self.agents[name]
        wait_until(lambda: self.closed(log) >= 2, "two closed rounds")
        while True:
            agent.send_signal(signal.SIGSTOP)
            try:
                wait_until(lambda: self._waits_for(name, log), f"a round without {name}", 3)
            # It was stopped after training: let it continue to the next round.
            except AssertionError:
                assert self.closed(log) < ROUNDS, "the run ended before anything happened"
                agent.send_signal(signal.SIGCONT)
            else:
                return self.closed(log) + 1

    def let_go(self, name: str) -> None:
        self.agents[name].send_signal(signal.SIGCONT)

    def _waits_for(self, name: str, log: str) -> bool:
        trained = {device: self._trained(device) for device in DEVICES}
        held = trained.pop(name)
        return set(trained.values()) == {self.closed(log) + 1} and held == self.closed(log)

    def _trained(self, device: str) -> int:
        """The last round that the device trained, in any run."""
        rounds = [e["round"] for e in self.site.events(device) if e["event"] == "trained"]
        return rounds[-1] if rounds else 0

    def _start_agent(self, name: str) -> subprocess.Popen[bytes]:
        archive = enrolment.enroll(self.cluster.site, name, out=self.folder / f"{name}.tar", days=9)
        folder = self.folder / name
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        names = self.site.bundle.classes.names
        system.write_pictures(folder / "pictures", names, 12, DEVICES.index(name))
        path = folder / "agent.toml"
        text = path.read_text()
        for old, new in (
            ('# bundle = "bundle"', f'bundle = "{self.site.bundle.folder}"'),
            ('"/var/lib/fedclip-edge"', '"state"'),
            ('"/srv/pictures"', '"pictures"'),
            ("port = 8883", f"port = {self.balancers[name].port}"),
        ):
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
        assert load_agent(path).broker.port == self.balancers[name].port
        return self.site.start("agent", path, "--json", log=name)


def wait_for(link: PahoTransport, kind: type[T]) -> T:
    """The next event of type `kind`."""
    deadline = time.monotonic() + system.DEADLINE_S
    while time.monotonic() < deadline:
        event = link.next_event(1)
        if isinstance(event, kind):
            return event
    raise AssertionError(f"no {kind.__name__}")


def received(link: PahoTransport, last: bytes) -> list[bytes]:
    """All payloads up to and including `last`."""
    payloads: list[bytes] = []
    while last not in payloads:
        payloads.append(wait_for(link, Received).payload)
    return payloads


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not (PROGRAMS / "rabbitmq-server").exists():
        pytest.fail(
            "RabbitMQ is not installed: run apt-get install rabbitmq-server (Debian 12 has 3.10.8)"
        )
    with Cluster(tmp_path_factory.mktemp("cluster")) as made:
        made.await_nodes()
        made.admit("coordinator", *DEVICES)
        yield made


@pytest.fixture(scope="module")
def fleet(cluster: Cluster, random_bundle: Bundle) -> Iterator[Fleet]:
    with ExitStack() as ends:
        yield Fleet(ends, cluster, random_bundle)


@pytest.fixture(scope="module")
def undisturbed(fleet: Fleet) -> dict[str, bytes]:
    """The final model of a run on all three nodes without any fault."""
    model = fleet.finish(fleet.begin())
    first = [fleet.balancers[name].through[0] for name in ("coordinator", *DEVICES)]
    assert first == [1, *range(1, NODES + 1)]
    return model


def test_a_message_crosses_the_nodes_and_a_retained_one_stays_where_it_was(
    fleet: Fleet, undisturbed: dict[str, bytes]
) -> None:
    """A device that connects to another node therefore needs the answer to its hello."""
    here, there = (BrokerAddress(port=fleet.cluster.nodes[n].port) for n in (0, 1))
    speaker = fleet.link("coordinator", here, ())
    topic = Topics("lab").model  # nothing is retained on it, and no run is open
    speaker.publish(topic, b"kept", retain=True)
    got = {}
    for place, address in (("here", here), ("there", there)):
        listener = fleet.link("north", address, (topic,))
        speaker.publish(topic, b"live")
        got[place] = received(listener, b"live")
        listener.close()
    speaker.publish(topic, b"", retain=True)  # removes the retained message
    speaker.close()
    assert got == {"here": [b"kept", b"live"], "there": [b"live"]}


def test_a_device_reads_and_writes_only_what_is_its_own(
    fleet: Fleet, undisturbed: dict[str, bytes]
) -> None:
    """RabbitMQ closes the connection of such a client; mosquitto drops the message."""
    address, topics = BrokerAddress(port=fleet.cluster.nodes[1].port), Topics("lab")
    device = fleet.link("north", address, topics.for_device("north"))
    coordinator = fleet.link("coordinator", address, topics.for_coordinator())
    for topic in (topics.state("north"), topics.up("north")):
        device.publish(topic, b"mine")
        received(coordinator, b"mine")  # it fails if the message does not come
    for topic in (topics.coordinator_state, topics.manifest, topics.model, topics.down("north")):
        coordinator.publish(topic, b"for you")
        received(device, b"for you")
    for topic in (topics.up("south"), topics.manifest):
        device.publish(topic, b"not mine")
        wait_for(device, Disconnected)
        wait_for(device, Connected)
        device.publish(topics.up("north"), b"mine")
        assert b"not mine" not in received(coordinator, b"mine"), topic
    coordinator.close()
    device.close()
    for topic in (topics.down("south"), Topics("elsewhere").manifest, "#"):
        with pytest.raises(LinkError):
            fleet.link("north", address, (topic,), patience_s=3)


def test_a_device_whose_node_is_killed_comes_back_through_another(
    fleet: Fleet, undisturbed: dict[str, bytes]
) -> None:
    fleet.cluster.heal()
    log = fleet.begin()
    held = fleet.hold("south", log)
    node = fleet.cluster.nodes[fleet.balancers["south"].through[-1] - 1]
    node.kill()
    fleet.let_go("south")
    assert fleet.finish(log) == undisturbed
    assert fleet.balancers["south"].through[-1] != node.number
    (closed,) = (
        e for e in fleet.site.events(log) if e["event"] == "round_closed" and e["round"] == held
    )
    assert closed["contributions"] == len(DEVICES)


def test_a_coordinator_whose_node_is_killed_goes_on_through_another(
    fleet: Fleet, undisturbed: dict[str, bytes]
) -> None:
    fleet.cluster.heal()
    log = fleet.begin()
    fleet.hold("west", log)
    node = fleet.cluster.nodes[fleet.balancers["coordinator"].through[-1] - 1]
    node.kill()
    fleet.let_go("west")
    assert fleet.finish(log) == undisturbed
    assert fleet.balancers["coordinator"].through[-1] != node.number
    assert "link_lost" in {event["event"] for event in fleet.site.events(log)}


def test_a_device_that_is_no_user_any_more_ends(
    fleet: Fleet, undisturbed: dict[str, bytes]
) -> None:
    """With RabbitMQ, `rabbitmqctl delete_user` does what `revoke` does with mosquitto."""
    said = system.run("revoke", "west", "--site", fleet.cluster.site.path)
    assert said.returncode == 0, said.stderr
    assert fleet.agents["west"].poll() is None
    said = fleet.cluster.ctl("delete_user", "west")
    assert said.returncode == 0, said.stderr
    assert fleet.agents["west"].wait(system.DEADLINE_S) == RefusedError.exit_code
    assert "Bad user name or password" in fleet.site.text("west")
