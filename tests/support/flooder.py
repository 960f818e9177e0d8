"""An enrolled device that floods the coordinator with hellos.

python flooder.py CONFIG PORT SECONDS GO

It says hello once. When the file GO appears, it repeats one signed hello at QoS 0 for SECONDS, as
fast as the broker at PORT takes it, and never reads.
"""

from __future__ import annotations

import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

from capable import CAPABLE

from fedclip_edge.agent.publisher import will
from fedclip_edge.config.agent import load_agent
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.messages import Hello
from fedclip_edge.protocol.signing import load_identity
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport import tls
from fedclip_edge.vision.bundle import read_bundle

_CONNECT, _PUBLISH = 0x10, 0x30
_CLEAN, _WILL, _WILL_RETAIN = 0x02, 0x04, 0x20
_AT_ONCE_BYTES = 65_536
_BOOT = "flooder"


def packet(kind: int, body: bytes) -> bytes:
    """Write an MQTT packet; the length of its body is a variable byte integer."""
    length, size = bytearray(), len(body)
    while size > 127:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes([kind, *length]) + body


def field(content: bytes) -> bytes:
    return len(content).to_bytes(2, "big") + content


def main(path: Path, port: int, seconds: float, go: Path) -> None:
    config = load_agent(path)
    identity = load_identity(config.broker.key, config.state_dir / "device.key")
    assert config.bundle is not None
    bundle, topic = read_bundle(config.bundle), Topics(config.fleet).up(config.id)
    able = replace(CAPABLE, roles=("evaluate",))
    encoder_id, classes = bundle.manifest.encoder_id, bundle.classes.digest
    hello = Hello(_BOOT, identity.key, "", encoder_id, classes, able)
    signed = wire.pack_control(hello, config.id, topic, identity)
    said = packet(_PUBLISH, field(topic.encode()) + signed)
    gone = will(config, identity, _BOOT)
    flags = bytes([4, _CLEAN | _WILL | _WILL_RETAIN])  # version 3.1.1
    keepalive = (600).to_bytes(2, "big")
    names = field(config.id.encode()) + field(gone.topic.encode()) + field(gone.payload)
    context = tls.context(config.broker)
    assert context is not None
    plain = socket.create_connection((config.broker.host, port))
    with context.wrap_socket(plain, server_hostname=config.broker.host) as link:
        link.sendall(packet(_CONNECT, field(b"MQTT") + flags + keepalive + names))
        link.recv(4)
        link.sendall(said)
        while not go.exists():
            time.sleep(0.01)
        end = time.monotonic() + seconds
        many = max(1, _AT_ONCE_BYTES // len(said))
        while time.monotonic() < end:
            link.sendall(said * many)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
