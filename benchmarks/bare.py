"""The lower bound for a round: a bare paho exchange with one QoS 1 message each way and no more.

Run as a program, it is one client that answers every message with its own update of --size bytes.
"""

from __future__ import annotations

import argparse
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from fedclip_edge.processes.children import Children

_DOWN, _UP = "bare/down", "bare/up"
_WAIT_S = 60.0
OnMessage = Callable[[mqtt.Client, object, mqtt.MQTTMessage], None]


def _client(port: int, topic: str, on_message: OnMessage) -> mqtt.Client:
    """A connected and subscribed client whose thread runs."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    ready = threading.Event()
    client.on_message = on_message
    client.on_subscribe = lambda *_: ready.set()
    client.connect("127.0.0.1", port, 60)
    client.loop_start()
    client.subscribe(topic, 1)
    if not ready.wait(_WAIT_S):
        raise TimeoutError("the broker does not answer")
    return client


class Exchange:
    """A server in this process and clients in others; `once` sends a model down and updates up."""

    def __init__(
        self, children: Children, folder: Path, port: int, clients: int, size: int
    ) -> None:
        self._clients = clients
        self._models = [np.random.default_rng(n).bytes(size) for n in range(2)]
        self._came: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._turn = 0
        self._server = _client(port, _UP, lambda _c, _d, m: self._came.put(len(m.payload)))
        for n in range(clients):
            command = [sys.executable, __file__, "--port", str(port)]
            command += ["--seed", str(100 + n), "--size", str(size)]
            children.start(command, folder / f"bare-{n}.log")
        self._take(0)

    def once(self) -> float:
        """Seconds from the first byte sent to the last update received."""
        self._turn += 1
        began = time.perf_counter()
        self._server.publish(_DOWN, self._models[self._turn % 2], 1)
        self._take(len(self._models[0]))
        return time.perf_counter() - began

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._server.disconnect()
        self._server.loop_stop()

    def _take(self, size: int) -> None:
        for _ in range(self._clients):
            assert self._came.get(timeout=_WAIT_S) == size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    options = parser.parse_args()
    update = np.random.default_rng(options.seed).bytes(options.size)

    def answer(client: mqtt.Client, _data: object, _message: mqtt.MQTTMessage) -> None:
        client.publish(_UP, update, 1)

    client = _client(options.port, _DOWN, answer)
    client.publish(_UP, b"", 1)  # the client is ready
    threading.Event().wait()


if __name__ == "__main__":
    main()
