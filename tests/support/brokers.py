"""A real mosquitto for tests, and free ports for it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from fedclip_edge.config import BrokerAddress

MOSQUITTO = shutil.which("mosquitto", path=os.defpath + ":/usr/sbin:/usr/local/sbin")
BROKER_STARTS_S = 10.0


@dataclass
class Mosquitto:
    """A real broker on a loopback port; it is stopped through its process handle."""

    address: BrokerAddress
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


StartMosquitto = Callable[..., Mosquitto]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_served(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until mosquitto answers at the port; False if it exits or does not answer in time.

    mosquitto 2.0.11 accepts connections shortly before its main loop begins, and loses a SIGTERM
    that arrives in between. So the probe sends bytes that are neither MQTT nor TLS: only the main
    loop refuses them.
    """
    deadline = time.monotonic() + BROKER_STARTS_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=BROKER_STARTS_S) as probe:
                probe.sendall(bytes(8))
                probe.recv(1)
        except ConnectionResetError:
            return True
        except OSError:
            time.sleep(0.01)
        else:
            return True
    return False
