"""TLS: certificates over real sockets, with mosquitto and the files of `broker init`."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from brokers import MOSQUITTO
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from mqtt_client import connected, fill, next_of, until_end
from secured import Secured
from system import DEADLINE_S, wait_until

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import ConfigError, LinkError, RefusedError
from fedclip_edge.pki import authority, enrolment
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport import base, tls
from fedclip_edge.transport.base import Connected, Disconnected, Received, Will
from fedclip_edge.transport.disconnect import disconnect_client
from fedclip_edge.transport.mqtt import PahoTransport

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
LAB = Topics("lab")
REFUSAL_S = 20.0  # time limit for a refusal
ACCEPTED_S = 3.0  # time without a refusal


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    with Secured(tmp_path) as made:
        yield made


def come(address: BrokerAddress, name: str, topics: Iterable[str] = ()) -> PahoTransport:
    return connected(address, name, topics, Will(LAB.state("nobody"), b"gone"))


def refused(address: BrokerAddress) -> str:
    """The reason of a final refusal, which must be the same on connecting and from `examine`."""
    with pytest.raises(RefusedError) as examined:
        tls.examine(address, REFUSAL_S)
    with pytest.raises(RefusedError) as tried:
        come(address, "x")
    assert str(tried.value) == str(examined.value)
    return str(tried.value)


def is_refused(address: BrokerAddress) -> bool:
    try:
        tls.examine(address, ACCEPTED_S)
    except RefusedError:
        return True
    return False


def test_a_device_reads_and_writes_only_what_is_its_own(secured: Secured) -> None:
    boxes = {name: secured.box(name) for name in ("cam-01", "cam-02")}
    secured.start()
    coordinator = come(secured.coordinator, "c", ["fedclip/#"])
    # Each device asks for all topics, with a client id and a user name that are not its own.
    links = {
        name: come(replace(box, username="coordinator"), f"x-{name}", ["fedclip/#"])
        for name, box in boxes.items()
    }
    everybody = {"coordinator": coordinator, **links}
    try:
        everything = [LAB.coordinator_state, LAB.manifest, LAB.model]
        for name in boxes:
            everything += [LAB.state(name), LAB.up(name), LAB.down(name)]
        for name, link in everybody.items():
            next_of(link, Connected)
            for topic in everything:
                link.publish(topic, f"{name} says".encode())
        for name in boxes:  # after all other messages on the same connection
            links[name].publish(LAB.up(name), b"end")
        said = {
            (topic, f"{name} says".encode())
            for name in boxes
            for topic in (LAB.state(name), LAB.up(name))
        }
        ends = {(LAB.up(name), b"end") for name in boxes}
        heard: set[tuple[str, bytes]] = set()
        while not ends <= heard:
            event = next_of(coordinator, Received)
            heard.add((event.topic, event.payload))
        coordinator.publish(LAB.model, b"end")
        to_all = {
            (t, b"coordinator says") for t in (LAB.coordinator_state, LAB.manifest, LAB.model)
        }
        assert heard - to_all == said | ends
        for name, link in links.items():
            own = {(LAB.down(name), b"coordinator says")}
            assert until_end(link, LAB.model) == to_all | own
    finally:
        for link in everybody.values():
            link.close()
    log = secured.log()
    for name in boxes:
        other = "cam-02" if name == "cam-01" else "cam-01"
        for topic in (LAB.up(other), LAB.state(other), LAB.down(other), LAB.manifest, LAB.model):
            assert f"Denied PUBLISH from x-{name} (d0, q1, r0, m" in log
            assert f"'{topic}'" in log


def test_who_has_no_certificate_or_a_strangers_is_refused_for_good(
    secured: Secured, tmp_path: Path
) -> None:
    secured.start()
    assert "it requires a certificate" in refused(secured.nobody())
    other = Secured(tmp_path / "other")
    strangers = other.box("cam-01")
    mixed = replace(strangers, ca=secured.coordinator.ca, port=secured.port)
    assert "by another authority" in refused(mixed)


def test_another_broker_or_another_name_is_for_a_person_to_correct(
    secured: Secured, tmp_path: Path
) -> None:
    box = secured.box("cam-01")
    secured.start()
    other = Secured(tmp_path / "other", secured.port)
    for address, said in (
        (other.box("cam-01"), "does not show a certificate of the authority"),
        (replace(box, host="127.0.0.2"), "IP address mismatch"),
    ):
        with pytest.raises(ConfigError, match=said):
            come(address, "x")
        with pytest.raises(ConfigError, match=said):
            tls.examine(address, REFUSAL_S)


def test_a_revoked_device_is_deaf_and_mute_at_once_thrown_out_and_told(secured: Secured) -> None:
    name, client = "cam-01", base.device_client("lab", "cam-01", "b1")
    gone, stays = secured.box(name), secured.box("cam-02")
    secured.start()
    ours = come(secured.coordinator, "c", [LAB.up("+")])
    its, others = come(gone, client, [LAB.model]), come(stays, "two", [LAB.model])
    try:
        for link in (ours, its, others):
            next_of(link, Connected)
        ours.publish(LAB.model, b"before")
        assert next_of(its, Received).payload == b"before"
        enrolment.revoke(secured.site, name)
        wait_until(lambda: is_refused(gone), "the broker to read its files again")
        its.publish(LAB.up(name), b"mute")
        others.publish(LAB.up("cam-02"), b"speaks")
        ours.publish(LAB.model, b"after")
        assert next_of(ours, Received).payload == b"speaks"
        assert next_of(others, Received, lambda e: e.payload == b"after")
        assert its.next_event(0.3) is None  # connected, but receives nothing
        tls.examine(stays, ACCEPTED_S)  # this certificate is still accepted
        disconnect_client(secured.coordinator, client)
        next_of(its, Disconnected)
        with pytest.raises(RefusedError, match="certificate was revoked"):
            its.next_event(DEADLINE_S)
        others.publish(LAB.up("cam-02"), b"still speaks")
        assert next_of(ours, Received).payload == b"still speaks"
    finally:
        for link in (ours, its, others):
            link.close()
    # the revocation must survive a restart of the broker
    secured.stop()
    secured.start()
    assert "certificate was revoked" in refused(gone)


def test_a_renewed_certificate_is_let_in_and_an_expired_one_told(secured: Secured) -> None:
    box = secured.box("cam-01", days=0)
    secured.start()
    assert box.certificate is not None
    while not tls._has_expired(box.certificate):
        time.sleep(0.05)
    assert "has expired; renew it" in refused(box)
    enrolment.renew(secured.site, "cam-01", out=box.certificate)
    link = come(box, "x")
    next_of(link, Connected)
    link.close()


def test_an_expired_revocation_list_is_the_brokers_trouble_and_waited_for(secured: Secured) -> None:
    box = secured.box("cam-01")
    whole = (secured.site.broker / "crl.pem").read_bytes()
    ca = authority.load(
        (secured.site.path / "ca.crt").read_bytes(), (secured.site.path / "ca.key").read_bytes()
    )
    now = dt.datetime.now(dt.timezone.utc)
    expired = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.certificate.subject)
        .last_update(now - dt.timedelta(days=2))
        .next_update(now - dt.timedelta(days=1))
        .sign(ca.key, None)
    )
    pem = expired.public_bytes(serialization.Encoding.PEM)
    (secured.site.broker / "crl.pem").write_bytes(pem)
    secured.start()
    with pytest.raises(LinkError, match="CERTIFICATE_EXPIRED"):
        tls.examine(box, REFUSAL_S)
    link = PahoTransport(box, "x", [LAB.model], Will("w", b""))
    mended = threading.Timer(1.0, lambda: mend(secured, whole))
    mended.start()
    link.connect(DEADLINE_S)
    next_of(link, Connected)
    link.close()
    mended.join()


def mend(secured: Secured, crl: bytes) -> None:
    (secured.site.broker / "crl.pem").write_bytes(crl)
    assert secured.process is not None
    os.kill(secured.process.pid, signal.SIGHUP)


def test_a_clock_that_is_behind_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client cannot tell whether its clock is behind or the certificate begins in the future."""
    real = authority._now
    monkeypatch.setattr(authority, "_now", lambda: real() + dt.timedelta(days=3))
    with Secured(tmp_path) as ahead:
        monkeypatch.undo()
        ahead.start()
        with pytest.raises(LinkError, match=r"not valid yet, by this box's clock \(2"):
            tls.examine(ahead.nobody(), REFUSAL_S)
        link = PahoTransport(ahead.nobody(), "x", [], Will("w", b""))
        with pytest.raises(LinkError, match="not valid yet"):
            link.connect(0.5)


def answer(data: bytes, server: socket.socket) -> None:
    """Answer every client with the same bytes."""
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        with client:
            client.recv(65536)
            client.sendall(data)


def test_an_alert_in_the_clear_ends_nobody(secured: Secured) -> None:
    """An unencrypted alert 44 (certificate_revoked) may come from an attacker on the network."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        record = b"\x15\x03\x03\x00\x02\x02\x2c"
        threading.Thread(target=answer, args=(record, server), daemon=True).start()
        address = replace(secured.box("cam-01"), port=server.getsockname()[1])
        with pytest.raises(LinkError, match=r"(?i)revoked"):
            tls.examine(address, REFUSAL_S)
        with pytest.raises(LinkError, match=r"(?i)revoked"):
            PahoTransport(address, "x", [], Will("w", b"")).connect(0.5)


def test_an_enrolled_device_cannot_pass_for_the_broker(secured: Secured) -> None:
    """This holds even if the device's id is the name of the broker."""
    impostor = secured.box("localhost")
    honest = replace(secured.box("cam-01"), host="localhost")
    assert impostor.certificate is not None
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(impostor.certificate, impostor.key)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with contextlib.suppress(OSError), shown.wrap_socket(client, server_side=True) as link:
                link.read(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(ConfigError, match=r"(?i)purpose"):
            tls.examine(replace(honest, port=server.getsockname()[1]), REFUSAL_S)
        thread.join(DEADLINE_S)


def test_nobody_speaks_less_than_tls_1_3(secured: Secured) -> None:
    secured.start()
    old = ssl.create_default_context(cafile=str(secured.coordinator.ca))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", secured.port)) as plain,
        pytest.raises(ssl.SSLError),
    ):
        old.wrap_socket(plain, server_hostname="127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, args=(b"HTTP/1.1 400\r\n\r\n", server), daemon=True).start()
        with pytest.raises(LinkError, match=r"the TLS 1\.3 handshake failed"):
            tls.examine(replace(secured.nobody(), port=server.getsockname()[1]), REFUSAL_S)


def test_where_nobody_answers_nothing_is_refused(secured: Secured) -> None:
    with pytest.raises(LinkError, match="no MQTT broker answers at 127"):
        tls.examine(secured.nobody(), ACCEPTED_S)
    tls.examine(BrokerAddress(port=secured.port), ACCEPTED_S)  # no TLS: nothing to examine
    assert tls.context(BrokerAddress()) is None


def test_a_broker_over_tls_without_room_for_another_connection_says_what_to_raise(
    secured: Secured,
) -> None:
    text = secured.settings.read_text()
    secured.settings.write_text(re.sub("max_connections .*", "max_connections 2", text))
    secured.start()
    others = fill(secured.coordinator)
    try:
        with pytest.raises(LinkError, match="mosquitto: max_connections"):
            PahoTransport(secured.coordinator, "x", [], None).connect(1.0)
        with pytest.raises(LinkError, match="mosquitto: max_connections"):
            tls.examine(secured.coordinator, ACCEPTED_S)
    finally:
        for other in others:
            other.close()


def test_files_that_cannot_be_used_are_named(secured: Secured, tmp_path: Path) -> None:
    box, other = secured.box("cam-01"), secured.box("cam-02")
    (tmp_path / "junk").write_text("junk")
    for change, said in (
        ({"ca": tmp_path / "none"}, "none under .* cannot be read: No such file"),
        ({"ca": tmp_path / "junk"}, "junk under .* is not a PEM certificate or key"),
        ({"certificate": tmp_path / "none"}, "none under .* cannot be read"),
        ({"key": tmp_path / "none"}, "none under .* cannot be read"),
        ({"key": other.key}, "does not belong to the pair"),
    ):
        with pytest.raises(ConfigError, match=said):
            PahoTransport(replace(box, **change), "x", [], None)


def test_a_broker_over_tls_that_goes_comes_back(secured: Secured) -> None:
    box = secured.box("cam-01")
    secured.start()
    link = come(box, "x", [LAB.model, LAB.down("cam-01")])
    ours = come(secured.coordinator, "c", ["ready"])
    try:
        next_of(link, Connected)
        for _ in range(2):
            secured.stop()
            next_of(link, Disconnected)
            # The client examines the broker after a failed attempt.
            wait_until(
                lambda: "no MQTT broker answers" in link._inbox.complaint, "a failed attempt"
            )
            secured.start()
            next_of(link, Connected)
    finally:
        link.close()
        ours.close()


def test_over_tls_too_a_link_is_made_anew_while_messages_arrive(secured: Secured) -> None:
    box = secured.box("cam-01")
    secured.start()
    ours = come(secured.coordinator, "c", [LAB.up("+")])
    its = come(box, base.device_client("lab", "cam-01", "b1"))
    try:
        for link in (ours, its):
            next_of(link, Connected)
        for _ in range(200):
            its.publish(LAB.up("cam-01"), bytes(50_000))
        next_of(ours, Received)
        ours.set_topics([LAB.state("+")], anew=True)
        next_of(ours, Disconnected)
        assert ours.next_event(DEADLINE_S) == Connected()
        its.publish(LAB.state("cam-01"), b"heard")
        assert next_of(ours, Received) == Received(LAB.state("cam-01"), b"heard")
    finally:
        for link in (ours, its):
            link.close()
