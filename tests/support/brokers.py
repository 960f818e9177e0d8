"""A real mosquitto for tests, and free ports for it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from system import DEADLINE_S

from fedclip_edge.config.broker import BrokerAddress

MOSQUITTO = shutil.which("mosquitto", path=os.defpath + ":/usr/sbin:/usr/local/sbin")


@dataclass
class Mosquitto:
    """A real broker on a loopback port; it is stopped through its process handle."""

    address: BrokerAddress
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        stop(self.process)


def start(words: Sequence[str | Path], log: Path) -> subprocess.Popen[bytes]:
    """Start mosquitto with these options; the caller ends it with `stop`."""
    with log.open("ab") as file:
        return subprocess.Popen([str(MOSQUITTO), *words], stdout=file, stderr=file)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End mosquitto with SIGTERM; if it goes on, kill it and raise TimeoutExpired."""
    process.terminate()
    try:
        process.wait(DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


StartMosquitto = Callable[..., Mosquitto]


def free_port() -> int:
    """A port on which nothing listens.

    It is none of those that Linux gives to outgoing connections. One of those could be taken before
    the broker starts or while it restarts, also by a client that then connects to itself.
    """
    while True:
        port = secrets.choice(range(10_000, 32_000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until_served(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until mosquitto answers at the port; False if it exits or does not answer in time.

    mosquitto 2.0.11 accepts connections shortly before its main loop begins, and loses a SIGTERM
    that arrives in between. So the probe sends bytes that are neither MQTT nor TLS: only the main
    loop refuses them.
    """
    deadline = time.monotonic() + DEADLINE_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as probe:
                probe.sendall(bytes(8))
                probe.recv(1)
        except ConnectionResetError:
            return True
        except OSError:
            time.sleep(0.01)
        else:
            return True
    return False
