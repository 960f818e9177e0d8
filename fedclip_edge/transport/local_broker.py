"""A local MQTT broker as a child process, for a machine without one.

It is mosquitto if that is installed, else amqtt, which is pure Python. Both listen on the loopback
address only and accept every client. A broker for other machines is set up from `broker/`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import BrokerError
from fedclip_edge.processes.children import Children

_HOST = "127.0.0.1"
_READY_S = 15.0
# Debian installs daemons in folders that are not on an ordinary user's PATH.
_DAEMON_PATH = "/usr/sbin:/usr/local/sbin"

_MOSQUITTO = """\
listener {port} {host}
allow_anonymous true
persistence false
# The default of 1000 drops messages behind a PUBACK that promised them.
max_queued_messages 0
max_packet_size {max_packet_bytes}
set_tcp_nodelay true
{as_root}
"""

_AMQTT = """\
listeners:
  default: {{type: tcp, bind: "{host}:{port}"}}
plugins:
  amqtt.plugins.authentication.AnonymousAuthPlugin: {{allow_anonymous: true}}
"""


@dataclass(frozen=True)
class Broker:
    """A running broker; it ends with the `Children` that started it."""

    name: str
    address: BrokerAddress
    process: subprocess.Popen[str]


def start(
    children: Children, folder: Path, port: int = 0, *, max_packet_bytes: int = 200_000
) -> Broker:
    """Start a broker, with its configuration and log in `folder`; port 0 means a free port.

    Every message of the protocol is smaller than the default of `max_packet_bytes`. Returns once it
    accepts connections. Raises BrokerError if no broker is installed, the port is taken, or the
    broker ends or does not accept connections within 15 s.
    """
    port = _claim_port(port)
    mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path=_DAEMON_PATH)
    if mosquitto:
        name, text = "mosquitto", _MOSQUITTO
        command = [mosquitto, "-c", str(folder / "broker.conf")]
    elif importlib.util.find_spec("amqtt"):
        name, text = "amqtt", _AMQTT
        script = "amqtt.scripts.broker_script"
        command = [sys.executable, "-m", script, "-c", str(folder / "broker.conf")]
    else:
        raise BrokerError(
            "no MQTT broker is installed; install mosquitto (Debian: apt-get install mosquitto) or "
            "a small broker in Python with `pip install 'fedclip-edge[serve]'`"
        )
    folder.mkdir(parents=True, exist_ok=True)
    # If a child changes its user, the kernel no longer ends it when its parent dies (prctl(2)). So
    # if this process runs as root, as in a container, the broker keeps running as root.
    as_root = "user root" if os.geteuid() == 0 else ""
    settings = text.format(
        host=_HOST, port=port, as_root=as_root, max_packet_bytes=max_packet_bytes
    )
    (folder / "broker.conf").write_text(settings, encoding="utf-8")
    log = folder / "broker.log"
    process = children.start(command, log)
    _await(process, name, port, log)
    return Broker(name, BrokerAddress(_HOST, port), process)


def _claim_port(port: int) -> int:
    """`port` if it is free, or a free port for 0; raises BrokerError if it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            raise BrokerError(
                f"port {port} on {_HOST} is in use; stop the program that listens there, or choose "
                "another port with --port"
            ) from None
        return int(probe.getsockname()[1])


def _await(process: subprocess.Popen[str], name: str, port: int, log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BrokerError(f"{name} ended with code {process.returncode} at start; see {log}")
        try:
            socket.create_connection((_HOST, port), timeout=1.0).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise BrokerError(f"{name} does not answer on port {port} within {_READY_S:g} s; see {log}")
