"""Three RabbitMQ nodes on this machine with the files of broker/rabbitmq.

They share nothing with a RabbitMQ that is installed on the machine: names, ports, cookie and epmd
are their own, on loopback, in one folder. Every process is ended through its own handle.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from brokers import free_port
from checkout import ROOT
from system import wait_until

from fedclip_edge.pki import site
from fedclip_edge.processes.children import Children

PLACE = ROOT / "broker" / "rabbitmq"
# Not the scripts in /usr/sbin: they change the user and use the folders of the system's RabbitMQ.
PROGRAMS = Path("/usr/lib/rabbitmq/bin")
HOME = "/etc/rabbitmq/fedclip-edge"  # the path of the files in the rabbitmq.conf that ships
NODES = 3
_STARTS_S = 180.0
_COMMAND_S = 180.0


def settings(number: int, port: int, files: Path) -> str:
    """The rabbitmq.conf that ships, changed for a node on `port` of the loopback address."""
    text = (PLACE / "rabbitmq.conf").read_text(encoding="utf-8")
    changes = {
        "mqtt.listeners.ssl.default = 8883": f"mqtt.listeners.ssl.default = 127.0.0.1:{port}",
        HOME: str(files),
        **{f"rabbit@broker-{n}": name_of(n) for n in range(1, NODES + 1)},
    }
    for shipped, here in changes.items():
        assert shipped in text, shipped
        text = text.replace(shipped, here)
    if number == 1:  # the first node would wait five seconds for the others
        peers = [f"nodes.{n} = {name_of(n)}\n" for n in range(2, NODES + 1)]
        for peer in peers:
            text = text.replace(f"cluster_formation.classic_config.{peer}", "")
    return text


def name_of(number: int) -> str:
    return f"fedclip-{number}@localhost"


@dataclass
class Node:
    """One of the three nodes, numbered from 1; `process` is its Erlang VM."""

    number: int
    port: int
    distribution_port: int
    home: Path
    process: subprocess.Popen[str] = field(init=False)

    @property
    def log(self) -> Path:
        return self.home / "log"

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """Kill with SIGKILL: the node tells neither clients nor other nodes."""
        self.process.kill()
        self.process.wait()


class Cluster:
    """A context manager that starts the cluster and ends it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = site.create_site(folder / "site", ["127.0.0.1"], fleet="lab", reload="true")
        cookie = folder / ".erlang.cookie"
        cookie.write_text("of-this-test-alone")
        cookie.chmod(0o400)
        self._epmd_port = free_port()
        self._children = Children()
        self.nodes: list[Node] = []

    def __enter__(self) -> Cluster:
        with ExitStack() as ends:
            ends.enter_context(self._children)
            ends.callback(self._kill_nodes)
            # `erl` would start an epmd that is never stopped.
            self._children.start(
                [*self._env(), "epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1"],
                self.folder / "epmd.log",
            )
            # One after the other: a node that finds no other node may form a cluster of its own,
            # and two that join at once may wait for ever for the leader that keeps the MQTT client
            # ids.
            for number in range(1, NODES + 1):
                node = self._start(number)
                self.nodes.append(node)
                wait_until(lambda node=node: self._answers(node), f"node {number}", _STARTS_S)  # type: ignore[misc]
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def _kill_nodes(self) -> None:
        for node in self.nodes:
            node.kill()

    def await_nodes(self) -> None:
        """Wait until all nodes know each other and accept connections, which is their last step."""
        for node in self.nodes:
            wait_until(lambda node=node: self._answers(node), f"node {node.number}", _STARTS_S)  # type: ignore[misc]
        said = self.ctl("await_online_nodes", str(NODES))
        assert said.returncode == 0, said.stdout + said.stderr

    def heal(self) -> None:
        """Restart the killed nodes with the data on their disks."""
        dead = [node for node in self.nodes if not node.alive]
        for node in dead:
            node.process = self._spawn(node)
        if dead:
            self.await_nodes()

    def admit(self, *ids: str) -> None:
        """Create users for these ids with an operator's commands."""
        users = subprocess.run(
            [PLACE / "users.sh", "lab", *ids], capture_output=True, check=True
        ).stdout
        said = self.ctl("import_definitions", stdin=users.decode())
        assert said.returncode == 0, said.stdout + said.stderr

    def ctl(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run `rabbitmqctl` on the first node that is alive."""
        alive = next(node for node in self.nodes if node.alive)
        command = [str(PROGRAMS / "rabbitmqctl"), "-n", name_of(alive.number), *arguments]
        return subprocess.run(
            [*self._env(RABBITMQ_CTL_ERL_ARGS="-start_epmd false"), *command],
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )

    def _start(self, number: int) -> Node:
        node = Node(number, free_port(), free_port(), self.folder / f"node-{number}")
        node.home.mkdir()
        (node.home / "rabbitmq.conf").write_text(settings(number, node.port, self.site.broker))
        node.process = self._spawn(node)
        return node

    def _spawn(self, node: Node) -> subprocess.Popen[str]:
        environment = self._env(
            RABBITMQ_NODENAME=name_of(node.number),
            RABBITMQ_DIST_PORT=str(node.distribution_port),
            RABBITMQ_CONFIG_FILE=str(node.home / "rabbitmq.conf"),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(PLACE / "enabled_plugins"),
            RABBITMQ_MNESIA_BASE=str(node.home / "mnesia"),
            RABBITMQ_LOG_BASE=str(node.home),
            RABBITMQ_LOGS="-",
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=(
                "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1} +S 2:2"
            ),
            ERL_CRASH_DUMP=str(node.home / "crash"),
            RUNNING_UNDER_SYSTEMD="true",  # with this setting the script replaces itself by the VM
        )
        return self._children.start([*environment, str(PROGRAMS / "rabbitmq-server")], node.log)

    def _env(self, **more: str) -> list[str]:
        """The `env` command with the variables that separate this cluster from others."""
        words = {
            "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin",
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none"),
            **more,
        }
        return ["env", "-i", *(f"{name}={word}" for name, word in words.items())]

    def _answers(self, node: Node) -> bool:
        assert node.alive, node.log.read_text()[-3000:]
        try:
            socket.create_connection(("127.0.0.1", node.port), timeout=1).close()
        except OSError:
            return False
        return True


class Balancer:
    """A stand-in for a cluster's load balancer: one address for the first node that answers.

    Each party has its own balancer with another order of the nodes, so that every node has clients.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._server]
        self.port: int = self._server.getsockname()[1]
        self.through: list[int] = []  # the node number of each connection
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for one in self._open:
            _shut(one)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self._open.append(client)
                server = self._reach()
                if server is None:
                    _shut(client)
                    continue
                self._open.append(server)
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=_relay, args=pair, daemon=True).start()

    def _reach(self) -> socket.socket | None:
        for node in self._nodes:
            with contextlib.suppress(OSError):
                server = socket.create_connection(("127.0.0.1", node.port), timeout=5)
                server.settimeout(None)
                self.through.append(node.number)
                return server
        return None


def _relay(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    _shut(source)
    _shut(target)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
