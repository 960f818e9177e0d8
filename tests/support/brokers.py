"""A real mosquitto that tests start, and free ports for it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from fedclip_edge.config import BrokerAddress

MOSQUITTO = shutil.which("mosquitto", path=os.defpath + ":/usr/sbin:/usr/local/sbin")
BROKER_STARTS_S = 10.0


@dataclass
class Mosquitto:
    """A real broker on a loopback port, ended by its own process handle."""

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
