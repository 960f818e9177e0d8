"""A fleet of real processes with a real broker; faults are injected at a chosen moment.

It uses `fedclip-edge serve`, light agents, and mosquitto with the configuration that ships,
including certificates. Every client connects through a link that decodes the traffic, so tests read
all messages from the wire and can inject a fault between two messages.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from link import Link, Seen
from secured import Secured
from system import wait_until

from fedclip_edge.config.fleet import RunRules
from fedclip_edge.processes.children import Children, own_command
from fedclip_edge.protocol.chunks import is_chunk
from fedclip_edge.records import ClassTexts, Features
from fedclip_edge.vision.bundle import Bundle, Golden, Manifest, write_bundle
from fedclip_edge.vision.pictures import Preprocessing

COORDINATOR = "coordinator"
VICTIM, *OTHERS = AGENTS = ("cam-1", "cam-2", "cam-3")
VARIANT = "light"  # the variant of the updates in device_laws.py
HEAVY_FILE = "heavy"  # in the state folder of an agent that sends updates of a forbidden weight
HOLD_FILE = "hold"  # in the state folder of an agent that does not vote while the file is there
# Validation pictures of each agent. Their sum says how often each agent's vote counts, up to twice.
VOTES = {"cam-1": 10, "cam-2": 30, "cam-3": 90}
RULES = RunRules(devices=len(AGENTS), quorum=0.6, deadline_s=300.0, grace_s=20.0)
DIM = 512  # width of ViT-B-32: 525,312 parameters in 15 chunks
PLACES = Path(__file__).parent


@dataclass(frozen=True)
class Said:
    """A control message of the coordinator when it passed the link."""

    at: float
    topic: str
    payload: bytes
    kind: str
    body: dict[str, Any]


def make_bundle(folder: Path) -> Bundle:
    """A bundle whose encoder is never run; only its classes and its width are used."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(3, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    manifest = Manifest(
        model="none",
        pretrained="none",
        weights_sha256="0" * 64,
        dim=DIM,
        preprocessing=Preprocessing(8, "shortest", 8, "bicubic", (0.5,) * 3, (0.25,) * 3),
        activation="none",
        precision="fp32",
        opset=18,
    )
    golden = Golden(np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, DIM), np.float32))
    texts = ClassTexts(("circle", "square", "triangle"), vectors, 100.0, "a {}")
    return write_bundle(folder, manifest, b"no encoder", texts, golden)


def validation_of(device: str, encoder_id: str) -> Features:
    """The drawn features that a device votes with; a guest has a few."""
    count = VOTES.get(device, 5)
    random = np.random.default_rng(list(device.encode()))
    vectors = random.normal(size=(count, DIM)).astype(np.float32)
    return Features(vectors, np.zeros(count, np.int64), encoder_id)


@dataclass(eq=False)
class Fleet:
    """A context manager; `said` lists all control messages of the coordinator."""

    folder: Path
    bundle: Bundle
    rounds: int
    rules: RunRules
    train_s: float
    guests: tuple[str, ...] = ()  # further enrolled devices, which only evaluate
    votes: bool = False  # the run ends with a vote
    said: list[Said] = field(default_factory=list)
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    # Words before the command of a process.
    before: dict[str, list[str]] = field(default_factory=dict)
    # Called in the thread of the link; returns True when it has fired.
    armed: Callable[[Seen], bool] | None = None
    broken: list[BaseException] = field(default_factory=list)

    def __enter__(self) -> Fleet:
        with ExitStack() as ends:
            self.secured = ends.enter_context(Secured(self.folder))
            self.secured.start()
            self.link = ends.enter_context(Link(self.secured.port, looks=True, watch=self._watch))
            self.children = ends.enter_context(Children())
            keys = self.secured.coordinator
            self._write_fleet(self.link.door(COORDINATOR, self.secured.both_ends(keys)))
            for name in (*AGENTS, *self.guests):
                self._write_agent(name)
            self.ends = ends.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.ends.close()

    def make_homes(self) -> None:
        """Create the folders, so that a disk can be mounted there."""
        for name in (COORDINATOR, *AGENTS, *self.guests):
            self.home(name).mkdir(parents=True)

    @property
    def journal(self) -> Path:
        return self.home(COORDINATOR) / "journal.sqlite"

    def home(self, name: str) -> Path:
        """The folder that only this process writes to."""
        return self.folder / "homes" / name

    def start(self, name: str) -> None:
        """Start the coordinator or an agent, also after an earlier one has ended."""
        if name == COORDINATOR:
            command = own_command("serve", "--once", str(self.folder / "fleet.toml"), "--json")
        else:
            script = str(PLACES / "light_agent.py")
            config = str(self.folder / name / "agent.toml")
            command = [sys.executable, script, str(self.train_s), config]
        log = self.folder / f"{name}.log"
        self.processes[name] = self.children.start([*self.before.get(name, []), *command], log)

    def events(self, name: str, event: str) -> list[dict[str, Any]]:
        """All events of that name in the process's log so far."""
        log = self.folder / f"{name}.log"
        lines = log.read_text().splitlines() if log.exists() else []
        found = [json.loads(line) for line in lines if line.startswith("{") and line[-1] == "}"]
        return [entry for entry in found if entry["event"] == event]

    def last_words(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text().strip().rpartition("\n")[2]

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = 240.0) -> None:
        def holds() -> bool:
            if self.broken:
                raise self.broken[0]
            return condition()

        wait_until(holds, what, timeout_s)

    def manifests(self) -> list[Said]:
        """The manifests that were broadcast so far."""
        return [s for s in self.said if s.kind == "manifest" and s.topic.endswith("/manifest")]

    @property
    def round(self) -> int:
        """The round that is open or next to open, according to the last broadcast."""
        manifests = self.manifests()
        return manifests[-1].body["exchange"]["number"] if manifests else 0

    @property
    def is_open(self) -> bool:
        """True if a round is open, according to the last broadcast."""
        manifests = self.manifests()
        return bool(manifests) and manifests[-1].body["phase"] == "open"

    def closed_at(self, round: int) -> float | None:
        """The time at which the model that closes `round` was announced."""
        return next((s.at for s in self.manifests() if s.body["closed"] >= round), None)

    def done_at(self) -> float | None:
        return next((s.at for s in self.manifests() if s.body["phase"] == "done"), None)

    def kept(self, round: int) -> set[str]:
        """The devices whose contribution to `round` was acknowledged."""
        return {
            s.topic.split("/")[-2]
            for s in self.said
            if s.kind == "kept" and s.body["number"] == round
        }

    def answered_at(self, device: str, since: float) -> float | None:
        """The time of the first answer to a hello of this device after `since`."""
        topic = f"/dev/{device}/down"
        return next(
            (
                s.at
                for s in self.said
                if s.at > since
                and s.kind == "manifest"
                and s.topic.endswith(topic)
                and s.body["answers"]
            ),
            None,
        )

    def _watch(self, seen: Seen) -> None:
        try:
            if seen.client == COORDINATOR and seen.upward and not is_chunk(seen.payload):
                message = json.loads(seen.payload.partition(b"\n")[0])
                self.said.append(
                    Said(
                        time.monotonic(),
                        seen.topic,
                        seen.payload,
                        message["kind"],
                        message["body"],
                    )
                )
            if self.armed is not None and self.armed(seen):
                self.armed = None
        except BaseException as error:  # the thread of the link has no caller
            self.broken.append(error)
            raise

    def _write_fleet(self, port: int) -> None:
        here, rules = self.secured.site.coordinator, self.rules
        (self.folder / "fleet.toml").write_text(
            f'fleet = "lab"\nbundle = "{self.bundle.folder}"\njournal = "{self.journal}"\n'
            f'registry = "{self.secured.site.registry}"\n'
            f'[broker]\nport = {port}\nca = "{here}/ca.crt"\n'
            f'certificate = "{here}/coordinator.crt"\nkey = "{here}/coordinator.key"\n'
            f"[rules]\ndevices = {rules.devices}\nquorum = {rules.quorum}\n"
            f"deadline_s = {rules.deadline_s}\ngrace_s = {rules.grace_s}\n"
            f'[plan]\nmethod = "fedclip"\nrounds = {self.rounds}\nmax_weight = 1\n'
            f'vote = "{"on" if self.votes else "off"}"\n'
            f'codec_up = "fp32"\ncodec_down = "fp32"\n'
        )

    def _write_agent(self, name: str) -> None:
        """Write the agent.toml of the archive with the paths and the port of the link."""
        keys = self.secured.box(name)
        home = self.home(name)
        roles = '\nroles = ["evaluate"]' if name in self.guests else ""
        port = self.link.door(name, self.secured.both_ends(keys))
        path = self.folder / name / "agent.toml"
        text = path.read_text()
        for old, new in (
            ('# bundle = "bundle"', f'bundle = "{self.bundle.folder}"'),
            ('"/var/lib/fedclip-edge"', f'"{home}"{roles}'),
            (f"port = {self.secured.port}", f"port = {port}"),
        ):
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
