"""The errors before a Ray cluster is used; tests/end_to_end/test_ray.py uses one."""

from __future__ import annotations

import socket
import sys
import threading

import pytest
from brokers import free_port
from simulated import pool

from fedclip_edge.errors import ConfigError, RunError
from fedclip_edge.simulating.ray_cluster import RayWorkers


def enter(address: str) -> None:
    with RayWorkers(pool(5), address, 1):
        raise AssertionError("there is no cluster")


@pytest.mark.parametrize("address", ["head", "ray://head:10001", ":6379", "head:0", "head:70000"])
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=f"--ray {address}: expected HOST:PORT"):
        enter(address)


def test_an_address_without_an_answer_is_named() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(RunError, match=f"no Ray cluster answers at {address}: Connection refused"):
        enter(address)


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_server_that_is_not_rays_is_named(says: bytes) -> None:
    """It is asked for seconds; Ray itself would ask it for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            link, _ = server.accept()
            with link:
                link.sendall(says)

        thread = threading.Thread(target=answer)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(RunError, match=f"the server at {address} is not the head of a Ray"):
            enter(address)
        thread.join()


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedclip-edge\[simulate,cluster\]'"):
        enter("auto")
