"""A real mosquitto with the files that `broker init` makes, and enrolled boxes."""

from __future__ import annotations

import os
import ssl
import subprocess
import tarfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import brokers
from brokers import free_port, wait_until_served
from socket_faults import Encryption
from system import write_pictures

from fedclip_edge.config.agent import load_agent
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.pki import enrolment, site
from fedclip_edge.pki.site import Folder
from fedclip_edge.transport import tls
from fedclip_edge.vision.bundle import Bundle


@dataclass
class Secured:
    """An operator's folder; as a context manager, also its broker."""

    folder: Path
    port: int = field(default_factory=free_port)
    is_entered: bool = False

    def __post_init__(self) -> None:
        self.site: Folder = site.create_site(
            self.folder / "site", ["127.0.0.1"], fleet="lab", port=self.port
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> Path:
        return self.site.broker / "mosquitto.conf"

    def __enter__(self) -> Secured:
        self.is_entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        assert self.is_entered, "nothing would end the broker"
        if os.geteuid() == 0 and "user root" not in self.settings.read_text():
            with self.settings.open("a") as file:
                file.write("user root\n")  # the user mosquitto may not read the test's folder
        words = ["-v", "-c", str(self.settings)]
        self.process = brokers.start(words, self.folder / "broker.log")
        if wait_until_served(self.process, self.port):
            return
        raise AssertionError(f"mosquitto did not start: {self.log()}")

    def log(self) -> str:
        return (self.folder / "broker.log").read_text()

    def stop(self) -> None:
        if self.process is not None:
            process, self.process = self.process, None
            brokers.stop(process)

    def box(self, id: str, days: int = 30) -> BrokerAddress:
        """Enrol a device and unpack its archive; return the [broker] section of its agent.toml."""
        archive = enrolment.enroll(self.site, id, out=self.folder / f"{id}.tar", days=days)
        with tarfile.open(archive) as tar:
            tar.extractall(self.folder / id, filter="data")
        return load_agent(self.folder / id / "agent.toml").broker

    @property
    def coordinator(self) -> BrokerAddress:
        here = self.site.coordinator
        return BrokerAddress(
            port=self.port,
            ca=here / "ca.crt",
            certificate=here / "coordinator.crt",
            key=here / "coordinator.key",
        )

    def at(self, address: BrokerAddress, port: int) -> BrokerAddress:
        """The same client with another port for the broker."""
        return replace(address, port=port)

    def both_ends(self, client: BrokerAddress) -> Encryption:
        """The TLS contexts that a link between this client and the broker needs."""
        as_broker = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        as_broker.minimum_version = ssl.TLSVersion.TLSv1_3
        as_broker.load_cert_chain(self.site.broker / "broker.crt", self.site.broker / "broker.key")
        as_broker.load_verify_locations(self.site.broker / "ca.crt")
        as_broker.verify_mode = ssl.CERT_REQUIRED
        as_client = tls.context(client)
        assert as_client is not None
        as_client.sslsocket_class = ssl.SSLSocket
        return Encryption(as_broker, as_client)

    def nobody(self) -> BrokerAddress:
        """A client that knows the authority and has no certificate."""
        return replace(self.coordinator, certificate=None, key=None)


def write_fleet(secured: Secured, bundle: Bundle, rounds: int) -> Path:
    here = secured.site.coordinator
    path = secured.folder / "fleet.toml"
    path.write_text(
        f'fleet = "lab"\nbundle = "{bundle.folder}"\nregistry = "{secured.site.registry}"\n'
        f'[broker]\nport = {secured.port}\nca = "{here}/ca.crt"\n'
        f'certificate = "{here}/coordinator.crt"\nkey = "{here}/coordinator.key"\n'
        f"[rules]\ndevices = 2\nquorum = 0.5\ndeadline_s = 60\ngrace_s = 1\n"
        f'[plan]\nmethod = "fedclip"\nrounds = {rounds}\nvote = "off"\n'
    )
    return path


def write_agent(secured: Secured, bundle: Bundle, name: str) -> Path:
    """The agent.toml of the archive with the entries that a user adds: pictures and paths."""
    secured.box(name)
    return complete(secured.folder / name, bundle, name)


def complete(folder: Path, bundle: Bundle, name: str) -> Path:
    write_pictures(folder / "pictures", bundle.classes.names, 12, len(name))
    path = folder / "agent.toml"
    text = path.read_text()
    for old, new in (
        ('# bundle = "bundle"', f'bundle = "{bundle.folder}"'),
        ('"/var/lib/fedclip-edge"', '"state"'),
        ('"/srv/pictures"', '"pictures"'),
    ):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path
