"""One enrolled device floods the coordinator; what the others notice, and the memory it costs.

The coordinator is `fedclip-edge serve`, the broker is mosquitto with the limits that `broker init`
writes, without TLS. Four light devices train without pause. The flooder repeats one signed message,
by default with QoS 0 and as fast as the broker takes it, and never reads.

- hello: rounds before, during and after a flood of hellos; the growth of the coordinator's memory;
  the time from the flood's start until the flooder is muted and all others have joined again.
- want: requests for the model with 1,024 gaps, while the round waits; the growth of the memory of
  coordinator and broker.
- retained: large retained messages on topics of made-up fleets and of other devices, with the
  access list of `broker init`; the memory of the broker, and the longest time that a message of
  the coordinator takes to a device.

Flooder, broker, coordinator and devices share this machine's processors, so rounds get longer even
if nobody listens to the flooder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import light
from brokers import MOSQUITTO, free_port, wait_until_served
from capable import CAPABLE
from federation import Federation
from mqtt_client import connected, next_of
from processes import memory_mb

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.config.fleet import RunRules
from fedclip_edge.pki import mosquitto, registry
from fedclip_edge.processes.children import Children
from fedclip_edge.protocol import signing, wire
from fedclip_edge.protocol.messages import MAX_GAPS, Hello, Manifest, Want
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.records import Plan
from fedclip_edge.transport.base import Connected, Received

LIMITS = {
    "hello_slower, during": 2.0,
    "hello_slower, from 2 s after": 1.5,
    "hello_first_round_after_s": 2.0,
    "hello_coordinator_mb": 20.0,
    "hello_heard_again_s": 2.0,
    "want_coordinator_mb": 40.0,
    "want_broker_mb": 40.0,
    "retained_broker_mb": 100.0,
    "retained_longest_s": 2.0,
}
_TOPICS = Topics(light.FLEET)
_EVALUATES = replace(CAPABLE, roles=("evaluate",))
_PARTS = ["want", "hello", "retained"]
_DEVICES = 4
_WARM_ROUNDS = 20
_WAIT_S = 60.0
_SETTLES_S = 2.0
_AFTER_S = 6.0
_MADE_UP = 10_000  # fleets that do not exist
_RETAINED_BYTES = 190_000
# The settings of the real broker that are not about TLS and accounts.
_LIMITS_OF_THE_BROKER = ("max_", "memory_limit", "persistence", "set_tcp_nodelay")


def _length(size: int) -> bytes:
    """MQTT's variable byte integer."""
    out = bytearray()
    while True:
        size, low = divmod(size, 128)
        out.append(low | (0x80 if size else 0))
        if not size:
            return bytes(out)


def _text(text: str) -> bytes:
    return len(text).to_bytes(2, "big") + text.encode()


def _packet(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + _length(len(body)) + body


def _connect(port: int, name: str, user: str = "") -> socket.socket:
    """Connect to the broker without MQTT's library, which would be slower."""
    link = socket.create_connection(("127.0.0.1", port), timeout=_WAIT_S)
    flags = bytes([4, 0x82 if user else 2])
    said = _text("MQTT") + flags + (600).to_bytes(2, "big") + _text(name)
    link.sendall(_packet(0x10, said + (_text(user) if user else b"")))
    link.recv(4)
    return link


@dataclass(frozen=True)
class Pace:
    """The QoS of a flood, and its messages in a second; 0: as many as the broker takes."""

    qos: int = 0
    rate: float = 0.0


class Flooder:
    """A device with its own connection, and its own key in the registry."""

    def __init__(self, name: str, port: int, pace: Pace) -> None:
        self.name = name
        self.identity = signing.create_identity()
        self._port = port
        self._pace = pace

    def flood(self, message: Hello | Want, seconds: float, *, listens: bool) -> int:
        """Send a message until the time is over, after a hello; returns how often it was sent."""
        with _connect(self._port, self.name) as link:
            if listens:
                topic = _text(_TOPICS.down(self.name)) + b"\1"
                link.sendall(_packet(0x82, b"\0\1" + topic))
            link.sendall(self._publish(self.hello()))
            time.sleep(0.5)
            packet, sent, rate = self._publish(message), 0, self._pace.rate
            count = max(1, int(rate / 100) if rate else 65_536 // len(packet))
            begin = time.monotonic()
            while (now := time.monotonic()) < begin + seconds:
                link.sendall(packet * count)
                sent += count
                if rate:
                    time.sleep(max(0.0, begin + sent / rate - now))
            return sent

    def hello(self) -> Hello:
        return replace(self._hello, key=self.identity.key)

    def knows(self, encoder_id: str, classes_digest: str) -> None:
        """Use this bundle in hellos, so that the device is admitted."""
        key = self.identity.key
        self._hello = Hello("boot", key, "", encoder_id, classes_digest, _EVALUATES)

    def _publish(self, message: Hello | Want) -> bytes:
        topic = _TOPICS.up(self.name)
        signed = wire.pack_control(message, self.name, topic, self.identity)
        # mosquitto accepts a packet identifier again before its acknowledgement was read.
        number = b"\0\1" if self._pace.qos else b""
        return _packet(0x30 | self._pace.qos << 1, _text(topic) + number + signed)


class Memory:
    """The growth of some processes' resident memory, sampled."""

    def __init__(self, **processes: int) -> None:
        self._processes = processes
        self._before = {name: memory_mb(pid) for name, pid in processes.items()}
        self.grown_mb = dict.fromkeys(processes, 0.0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._over.wait(0.05):
            for name, pid in self._processes.items():
                grown = memory_mb(pid) - self._before[name]
                self.grown_mb[name] = max(self.grown_mb[name], grown)

    def end(self) -> dict[str, float]:
        self._over.set()
        self._thread.join()
        return self.grown_mb


def start_broker(folder: Path, port: int, *more: str) -> subprocess.Popen[bytes]:
    lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", *more]
    lines += [
        line
        for line in mosquitto.settings(light.FLEET).splitlines()
        if line.startswith(_LIMITS_OF_THE_BROKER)
    ]
    if os.geteuid() == 0:
        lines.append("user root")
    (folder / "broker.conf").write_text("\n".join(lines) + "\n")
    if MOSQUITTO is None:
        raise RuntimeError("mosquitto is not installed")
    with (folder / "broker.log").open("wb") as log:
        command = [MOSQUITTO, "-c", str(folder / "broker.conf")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    if not wait_until_served(process, port):
        raise RuntimeError("mosquitto did not start")
    return process


def enrol(folder: Path, flooders: Iterable[Flooder], port: int) -> Path:
    """Make the keys of all parties, and the registry with them."""
    folder.mkdir()
    made = registry.Registry(
        light.FLEET, "127.0.0.1", port, signing.load_or_create(folder / "journal.key").key
    )
    keys = {flooder.name: flooder.identity.key for flooder in flooders}
    for name in (f"dev-{n}" for n in range(_DEVICES)):
        state = light.state_of(folder / "state", name)
        keys[name] = signing.load_or_create(state / "device.key").key
    for name, key in keys.items():
        made = made.with_device(name, registry.Device(key, ("1",), "2099-01-01"))
    registry.write(folder / "devices.json", made)
    return folder / "devices.json"


def rounds(fleet: Federation, until_s: float) -> list[float]:
    """The times at which rounds close until then."""
    closed = []
    while (left := until_s - time.perf_counter()) > 0:
        try:
            closed.append(fleet.closed.get(timeout=left).at_s)
        except queue.Empty:
            break
    return closed


def seconds_a_round(closed: list[float], begin_s: float, end_s: float) -> float:
    """The time from the first to the last instant, over the rounds closed in between."""
    inside = [at for at in closed if begin_s <= at < end_s]
    return (end_s - begin_s) / max(1, len(inside))


def measure(folder: Path, seconds: float, what: list[str], pace: Pace) -> dict[str, float]:
    figures: dict[str, float] = {}
    port = free_port()
    broker = start_broker(folder, port)
    # One for each flood: after the first, the coordinator does not listen to that device.
    flooders = {name: Flooder(f"mallory-{name}", port, pace) for name in ("want", "hello")}
    try:
        with Children() as children:
            enrolled = enrol(folder / "fleet", flooders.values(), port)
            rules = RunRules(devices=_DEVICES)
            plan = Plan("fedclip", rounds=100_000, vote="off")
            fleet = Federation(children, folder / "fleet", port, rules, plan, registry=enrolled)
            manifest = fleet.bundle.manifest
            for flooder in flooders.values():
                flooder.knows(manifest.encoder_id, fleet.bundle.classes.digest)
            try:
                fleet.permit(_WARM_ROUNDS)
                for _ in range(_WARM_ROUNDS):
                    fleet.next_closed()
                if "want" in what:
                    figures |= want(fleet, flooders["want"], broker.pid, port, seconds)
                if "hello" in what:
                    figures |= hello(fleet, flooders["hello"], seconds)
            finally:
                fleet.end()
    finally:
        broker.terminate()
        broker.wait(10)
    return figures


def hello(fleet: Federation, flooder: Flooder, seconds: float) -> dict[str, float]:
    fleet.permit(1_000_000)
    begin = time.perf_counter()
    closed = rounds(fleet, begin + seconds)
    before_s = seconds_a_round(closed, begin, begin + seconds)
    memory = Memory(coordinator=fleet.serve.pid)
    sent: list[int] = []
    thread = threading.Thread(
        target=lambda: sent.append(flooder.flood(flooder.hello(), seconds, listens=False))
    )
    start = time.perf_counter() + 0.5  # the flooder says hello first
    joined = len(fleet.links)
    thread.start()
    closed = rounds(fleet, start + seconds)
    thread.join()
    end = time.perf_counter()
    closed += rounds(fleet, end + _AFTER_S)
    grown = memory.end()["coordinator"]
    after = [at for at in closed if at > end]
    links = [line for line in fleet.links[joined:] if line.at_s >= start]
    heard_again_s = seconds if links else 0.0  # without a pause they are always heard
    if len(links) > _DEVICES:
        heard_again_s = links[_DEVICES].at_s - start
    during_s = seconds_a_round(closed, start, end)
    after_s = seconds_a_round(closed, end + _SETTLES_S, end + _AFTER_S)
    return {
        "hello_sent_a_second": sent[0] / seconds,
        "hello_muted_after_s": links[0].at_s - start if links else seconds,
        "hello_heard_again_s": heard_again_s,
        "hello_round_s, before": before_s,
        "hello_round_s, during": during_s,
        "hello_round_s, from 2 s after": after_s,
        "hello_slower, during": during_s / before_s,
        "hello_slower, from 2 s after": after_s / before_s,
        "hello_first_round_after_s": after[0] - end if after else _AFTER_S,
        "hello_coordinator_mb": grown,
    }


def want(
    fleet: Federation, flooder: Flooder, broker: int, port: int, seconds: float
) -> dict[str, float]:
    listener = connected(BrokerAddress(port=port), "listener", [_TOPICS.manifest])
    retained = next_of(listener, Received)
    listener.close()
    manifest = wire.unpack_control(retained.topic, retained.payload).message
    assert isinstance(manifest, Manifest)
    gaps = tuple((2 * n, 2 * n) for n in range(MAX_GAPS))
    message = Want(manifest.model.sha256, gaps)
    memory = Memory(coordinator=fleet.serve.pid, broker=broker)
    sent = flooder.flood(message, seconds, listens=True)
    time.sleep(_SETTLES_S)
    grown = memory.end()
    return {
        "want_sent_a_second": sent / seconds,
        "want_coordinator_mb": grown["coordinator"],
        "want_broker_mb": grown["broker"],
    }


def retained(folder: Path, seconds: float) -> dict[str, float]:
    """Retain large messages wherever a device could; needs no coordinator."""
    folder.mkdir()
    (folder / "acl").write_text(mosquitto.access_list(light.FLEET))
    (folder / "acl").chmod(0o600)
    port, longest_s = free_port(), 0.0
    broker = start_broker(folder, port, f"acl_file {folder}/acl")
    sent: list[int] = []
    flood = threading.Thread(target=lambda: sent.append(_retain(port, seconds)))
    try:
        device = connected(_login(port, "dev-0"), "dev-0", [_TOPICS.manifest])
        coordinator = connected(_login(port, "coordinator"), "coordinator")
        for client in (device, coordinator):
            next_of(client, Connected)
        flood.start()
        while flood.is_alive():
            begin = time.perf_counter()
            coordinator.publish(_TOPICS.manifest, b"manifest", retain=True)
            next_of(device, Received)
            longest_s = max(longest_s, time.perf_counter() - begin)
            time.sleep(0.05)
        for client in (device, coordinator):
            client.close()
        return {
            "retained_sent_a_second": sum(sent) / seconds,
            "retained_longest_s": longest_s,
            "retained_broker_mb": memory_mb(broker.pid),
        }
    finally:
        flood.join()
        broker.terminate()
        broker.wait(10)


def _login(port: int, user: str) -> BrokerAddress:
    return BrokerAddress(port=port, username=user)


def _retain(port: int, seconds: float) -> int:
    made_up = (Topics(f"fleet-{n}") for n in range(_MADE_UP))
    topics = [make("mallory") for fleet in made_up for make in (fleet.state, fleet.up)]
    topics += [f"{_TOPICS.up('mallory')}/{n}" for n in range(_MADE_UP)]
    topics += [
        _TOPICS.up("mallory"),
        _TOPICS.state("mallory"),
        _TOPICS.up("dev-0"),
        _TOPICS.manifest,
    ]
    sent, end = 0, time.monotonic() + seconds
    with _connect(port, "mallory", "mallory") as link, contextlib.suppress(ConnectionError):
        # Above its memory limit, the broker ends the connection.
        while time.monotonic() < end:
            topic = _text(topics[sent % len(topics)])
            link.sendall(_packet(0x31, topic + bytes(_RETAINED_BYTES)))
            sent += 1
    return sent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", choices=[*_PARTS, []], default=[])
    parser.add_argument("--seconds", type=float, default=7.0)
    parser.add_argument("--qos", type=int, choices=[0, 1], default=0)
    parser.add_argument("--rate", type=float, default=0.0, help="messages a second; 0: no limit")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as made:
        what = options.what or _PARTS
        figures = retained(Path(made) / "acl", options.seconds) if "retained" in what else {}
        if set(what) - {"retained"}:
            pace = Pace(options.qos, options.rate)
            figures |= measure(Path(made), options.seconds, what, pace)
    missed = [name for name, limit in LIMITS.items() if figures.get(name, 0.0) > limit]
    for name, value in figures.items():
        limit = f"  at most {LIMITS[name]:g}" if name in LIMITS else ""
        print(f"{name:32} {value:10.3f}{limit}{'  MISSED' if name in missed else ''}")
    if options.json:
        print(json.dumps(figures | {"missed": missed}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
