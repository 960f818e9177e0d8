"""The test link between clients and a broker: its counters, and the faults that it injects."""

from __future__ import annotations

import contextlib
import itertools
import queue
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mqtt_frames
import pytest
from brokers import MOSQUITTO
from link import Counted, Link, Seen, Slow
from noise import Noise
from secured import Secured
from socket_faults import HOST
from system import DEADLINE_S, wait_until

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.protocol.chunks import blob_of, split
from fedclip_edge.transport.base import Connected, Disconnected, Received
from fedclip_edge.transport.mqtt import PahoTransport


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back all data."""
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

        def answer(client: socket.socket) -> None:
            with client, contextlib.suppress(OSError):
                while data := client.recv(2**16):
                    client.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def dial(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), timeout=DEADLINE_S)


def exchange(port: int, data: bytes) -> None:
    with dial(port) as client:
        threading.Thread(target=client.sendall, args=(data,), daemon=True).start()
        back = bytearray()
        while len(back) < len(data):
            block = client.recv(2**16)
            assert block, "the connection ended before all data came back"
            back += block
        assert back == data


def test_it_counts_each_client_by_itself(echo: int) -> None:
    with Link(echo) as made:
        ports = {name: made.door(name) for name in ("one", "two", "nobody")}
        exchange(ports["one"], b"x" * 1_000_003)
        exchange(ports["one"], b"y")
        exchange(ports["two"], b"z" * 77)
        assert made.counted("one") == Counted(1_000_004, 1_000_004, 2)
        assert made.counted("two") == Counted(77, 77, 1)
        assert made.counted("nobody") == Counted()


def test_cut_resets_and_refuses_until_it_is_mended(echo: int) -> None:
    with Link(echo) as made:
        one, two = made.door("one"), made.door("two")
        with dial(one) as cut, dial(two) as spared:
            for client in (cut, spared):
                client.sendall(b"here")
                assert client.recv(4) == b"here"
            made.cut("one")
            with pytest.raises(ConnectionResetError):
                cut.recv(1)
            with pytest.raises(ConnectionRefusedError):
                dial(one)
            spared.sendall(b"on")
            assert spared.recv(2) == b"on"
            made.cut()
            with pytest.raises(ConnectionResetError):
                spared.recv(1)
            with pytest.raises(ConnectionRefusedError):
                dial(two)
        made.mend()
        exchange(one, b"again")
        exchange(two, b"again")


def test_where_no_broker_is_a_connection_is_reset() -> None:
    with socket.create_server((HOST, 0)) as gone:
        port = gone.getsockname()[1]
    with (
        Link(port) as made,
        pytest.raises(ConnectionResetError),  # if not at once, then on reading
        dial(made.door("one")) as client,
    ):
        client.recv(1)


def test_a_slow_link_takes_its_time_and_is_reset(echo: int) -> None:
    with Link(echo) as made:
        port = made.door("one")
        made.slow("one", Slow(100_000))
        began = time.monotonic()
        exchange(port, b"x" * 30_000)
        # A guarantee of the link, not a timing of the product.
        assert time.monotonic() - began >= 0.3
        made.slow("one", Slow(100_000, reset_s=0.2))
        for _ in range(2):
            with dial(port) as client, pytest.raises(ConnectionResetError):
                client.recv(1)
        made.slow("one", None)
        exchange(port, b"x" * 3_000_000)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [0, 1])
def test_publishes_are_read_wherever_a_stream_is_cut(version: int, qos: int) -> None:
    payload = bytes(range(256)) * 2
    stream = publish_packet("a/b", payload, version, qos) + b"\xc0\x00" + b"\x30\x05\x00\x01t\x00!"
    for at in range(0, len(stream), 7):
        buffer = bytearray()
        found: list[bytes] = []
        for part in (stream[:at], stream[at:]):
            buffer += part
            found += mqtt_frames.packets(buffer)
        assert b"".join(found) == stream
        assert [mqtt_frames.type_of(packet) for packet in found] == [3, 12, 3]
        read = mqtt_frames.read_publish(found[0], version)
        assert (read.topic, read.payload) == ("a/b", payload)
    assert mqtt_frames.read_publish(found[2], 5).payload == b"!"
    assert mqtt_frames.read_publish(found[2], 4).payload == b"\x00!"


def publish_packet(topic: str, payload: bytes, version: int, qos: int) -> bytes:
    body = len(topic).to_bytes(2, "big") + topic.encode() + (b"\x00\x07" if qos else b"")
    body += (b"\x05\x02" + (60).to_bytes(4, "big") if version == 5 else b"") + payload
    return bytes([0x30 | qos << 1, 0x80 | len(body) % 128, len(body) // 128]) + body


def test_a_length_of_five_bytes_is_no_mqtt() -> None:
    with pytest.raises(ValueError, match="no MQTT"):
        list(mqtt_frames.packets(bytearray(b"\x30\xff\xff\xff\xff\x01")))


DATA = bytes(range(251)) * 40
BLOB = blob_of(DATA, "model", 500)  # 21 chunks


def test_chunks_are_repeated_and_nothing_else(mosquitto: BrokerAddress) -> None:
    seen: list[Seen] = []
    with Link(mosquitto.port, looks=True, watch=seen.append) as made:
        made.door("sender")
        made.noise("sender", Noise("duplicate", every=3))
        got = sent_through(made, "duplicate")
    indices = [index_of(payload) for payload in got[:-1]]
    repeated = [index for index in range(21) if indices.count(index) == 2]
    assert sorted(indices) == sorted([*range(21), *repeated])
    assert {later - sooner for sooner, later in itertools.pairwise(repeated)} == {3}
    upward = [s for s in seen if s.client == "sender" and s.upward]
    assert [s.payload for s in upward] == [*split(DATA, BLOB), b"end"]
    assert {s.topic for s in upward} == {"link/duplicate"}


def test_chunks_are_altered_in_one_bit_the_same_ones_each_time(mosquitto: BrokerAddress) -> None:
    runs = []
    for _ in range(2):
        with Link(mosquitto.port, looks=True) as made:
            made.door("sender")
            made.noise("sender", Noise("corrupt", every=4, seed=5))
            runs.append(sent_through(made, "corrupt"))
    assert runs[0] == runs[1]
    assert runs[0][-1] == b"end"
    whole = list(split(DATA, BLOB))
    flips = [
        sum((a ^ b).bit_count() for a, b in zip(sent, got, strict=True))
        for sent, got in zip(whole, runs[0], strict=False)
    ]
    assert sorted(set(flips)) == [0, 1]
    assert flips.count(1) == 5
    assert {b - a for a, b in itertools.pairwise(at(flips))} == {4}


def at(flips: list[int]) -> list[int]:
    return [index for index, flipped in enumerate(flips) if flipped]


def index_of(chunk: bytes) -> int:
    return int.from_bytes(chunk[12:16], "little")


def sent_through(made: Link, name: str) -> list[bytes]:
    """The messages that arrive when the sender publishes DATA's chunks and "end"."""
    direct = BrokerAddress(port=made.broker_port)
    listener = PahoTransport(direct, f"listener-{name}", [f"link/{name}"], None)
    sender = PahoTransport(BrokerAddress(port=made.port("sender")), f"sender-{name}", [], None)
    got: list[bytes] = []
    try:
        for client in (listener, sender):
            client.connect(DEADLINE_S)
        for chunk in split(DATA, BLOB):
            sender.publish(f"link/{name}", chunk)
        sender.publish(f"link/{name}", b"end")
        while not got or got[-1] != b"end":
            event = listener.next_event(DEADLINE_S)
            assert event is not None
            if isinstance(event, Received):
                got.append(event.payload)
    finally:
        sender.close()
        listener.close()
    return got


@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
def test_it_looks_into_tls_with_the_keys_of_both_ends(tmp_path: Path) -> None:
    seen: queue.SimpleQueue[Seen] = queue.SimpleQueue()
    topic = "fedclip/v2/lab/dev/cam-01/up"
    with Secured(tmp_path) as secured:
        secured.start()
        with Link(secured.port, looks=True, watch=seen.put) as made:
            cam = secured.box("cam-01")
            door = made.door("cam-01", secured.both_ends(cam))
            client = PahoTransport(secured.at(cam, door), "lab.cam-01.boot", [], None)
            try:
                client.connect(DEADLINE_S)
                client.publish(topic, b"hello")
                assert seen.get(timeout=DEADLINE_S) == Seen("cam-01", True, topic, b"hello")
                assert isinstance(client.next_event(DEADLINE_S), Connected)
                made.cut()
                assert isinstance(client.next_event(DEADLINE_S), Disconnected)
                made.mend()
                assert isinstance(client.next_event(DEADLINE_S), Connected)
            finally:
                client.close()
    assert "as lab.cam-01.boot" in secured.log()


@pytest.mark.one_python
def test_what_nobody_reads_does_not_outlive_it() -> None:
    """Unread bytes must not keep a connection open after the broker has closed its side."""
    with socket.create_server((HOST, 0)) as server:
        made = Link(server.getsockname()[1])
        with dial(made.door("deaf")):
            broker, _ = server.accept()
            writers = made._doors["deaf"].writers

            def waits() -> bool:
                broker.sendall(bytes(2**14))
                return any(writer.transport.get_write_buffer_size() for writer in tuple(writers))

            wait_until(waits, "bytes that are not passed on")
            broker.close()
            wait_until(lambda: any(w.is_closing() for w in tuple(writers)), "its end to be seen")
            made.close()
        assert not writers
