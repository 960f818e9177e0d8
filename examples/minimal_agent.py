"""A device of protocol v2 in one file: an example for implementations in other languages.

It was written from docs/reference/protocol.md alone and imports nothing from fedclip_edge. It takes
part in one run and exits when the run is done. It has no pictures: in place of training, it
increases every value of the model by one per cent. It does not evaluate, and its votes are empty.

    python examples/minimal_agent.py agent.json

agent.json holds host, port, fleet, id, dim (the feature width), encoder_id, classes_digest and
state (the path of this device's state file); with enrolment also coordinator_key, ca, certificate
and key.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import queue
import secrets
import ssl
import struct
import sys
import time
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from minimal_bodies import (
    Arrays,
    Json,
    blob_of,
    candidates,
    chunks,
    count_of,
    f32,
    pack,
    read_chunk,
    read_json,
    unpack,
)
from paho.mqtt.enums import CallbackAPIVersion

REPEAT_S, REPAIR_S, MAX_GAPS = 5.0, 1.0, 1024
REFUSED = (ValueError, TypeError, LookupError, RecursionError, struct.error)
NOTHING: Json = {"epoch": 0, "run": "", "closed": 0, "parked": None, "settled": [], "residual": {}}
TEMPERATURES, BINS = 3, 192  # of a vote
CODECS = ["fp32", "fp16", "int8"]


class Agent:
    def __init__(self, config: Json) -> None:
        self.config, self.path = config, Path(config["state"])
        self.state: Json = dict(NOTHING)
        if self.path.exists():
            self.state = json.loads(self.path.read_text())
        self.key = self._own_key()
        d = config["dim"]
        self.shapes = {"0.weight": [d, d], "0.bias": [d], "2.weight": [d, d], "2.bias": [d]}
        self.top, self.boot = f"fedclip/v2/{config['fleet']}", secrets.token_hex(8)
        self.mine = f"{self.top}/dev/{config['id']}"
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.pins: dict[str, str] = {}
        self.coordinator: Json = {}
        self.manifest: Json = {}
        self.hello_at = self.heard_at = self.said_at = self.chunk_at = -math.inf
        self.connected = self.greeted = self.unwanted = self.finished = False
        self.parts: dict[int, bytes] = {}
        self.taken = self.candidates = 0
        self.version, self.terms = "", Arrays()

    def _own_key(self) -> ed25519.Ed25519PrivateKey:
        if "key" in self.config:
            key = load_pem_private_key(Path(self.config["key"]).read_bytes(), None)
            assert isinstance(key, ed25519.Ed25519PrivateKey)
            return key
        if "key" not in self.state:
            self.state["key"] = secrets.token_hex(32)
            self.save()
        return ed25519.Ed25519PrivateKey.from_private_bytes(bytes.fromhex(self.state["key"]))

    def save(self) -> None:
        """Write the state file atomically and sync it, before a message depends on it."""
        new = self.path.with_suffix(".new")
        with new.open("w") as file:
            json.dump(self.state, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)

    # Connection and outgoing messages.

    def envelope(self, topic: str, kind: str, body: Json) -> bytes:
        message = {"kind": kind, "from": self.config["id"], "revision": 2, "body": body}
        line = json.dumps(message, allow_nan=False).encode()
        return line + b"\n" + base64.b64encode(self.key.sign(topic.encode() + b"\0" + line))

    def say(self, kind: str, body: Json) -> None:
        self.link.publish(f"{self.mine}/up", self.envelope(f"{self.mine}/up", kind, body), qos=1)

    def say_state(self, *, online: bool) -> tuple[str, bytes]:
        topic = f"{self.mine}/state"
        return topic, self.envelope(topic, "device", {"boot": self.boot, "online": online})

    def run(self) -> None:
        config = self.config
        name = f"{config['fleet']}.{config['id']}.{self.boot}"
        self.link = mqtt.Client(CallbackAPIVersion.VERSION2, name, clean_session=True)
        self.link.max_inflight_messages_set(8)
        self.link.will_set(*self.say_state(online=False), qos=1, retain=True)
        if "ca" in config:
            context = ssl.create_default_context(cafile=config["ca"])
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.load_cert_chain(config["certificate"], config["key"])
            self.link.tls_set_context(context)
        here = (f"{self.top}/coord/state", f"{self.top}/manifest", f"{self.top}/model")
        topics = [(topic, 1) for topic in (*here, f"{self.mine}/down")]
        first = []  # packet ids: the link is up when the broker has answered this subscription
        self.link.on_connect = lambda client, *_: first.append(client.subscribe(topics)[1])
        self.link.on_subscribe = lambda _client, _data, packet, *_: (
            self.events.put("connected") if packet in first else None
        )
        self.link.on_disconnect = lambda *_: self.events.put("disconnected")
        self.link.on_message = lambda _client, _data, message: self.events.put(message)
        self.link.connect(config["host"], config["port"], keepalive=30)
        self.link.loop_start()
        while not self.finished:
            try:
                event = self.events.get(timeout=0.2)
            except queue.Empty:
                event = None
            if event is not None:
                self.take(event)
            self.taken += 1
            if self.connected and (self.events.empty() or self.taken % 100 == 0):
                self.act(time.monotonic())
        self.link.publish(*self.say_state(online=False), qos=1, retain=True).wait_for_publish(5)
        self.link.disconnect()
        self.link.loop_stop()

    # Incoming messages.

    def take(self, event: Any) -> None:
        if event == "connected":
            self.connected, self.greeted = True, False
            self.link.publish(*self.say_state(online=True), qos=1, retain=True)
            self.hello()
        elif event == "disconnected":
            self.connected = False
        else:
            try:
                self.take_message(event.topic, event.payload)
            except (*REFUSED, InvalidSignature) as error:
                print(f"refused on {event.topic}: {error!r:.200}", flush=True)

    def take_message(self, topic: str, payload: bytes) -> None:
        if payload.startswith(b"\xfc\x1e"):
            found = read_chunk(payload, self.manifest["model"])
            if found is not None:
                self.parts[found[0]], self.chunk_at = found[1], time.monotonic()
            return
        if len(payload) > 64 * 1024:
            raise ValueError("more than 64 KiB")
        line, _, signature = payload.partition(b"\n")
        message = read_json(line)
        kind, body = message["kind"], message["body"]
        if message["revision"] != 2:
            raise ValueError("the coordinator has another revision of the protocol")
        if message["from"] != "coordinator":
            raise ValueError("not the coordinator's")
        introduces = kind in ("coordinator", "manifest")
        run = body["run"] if introduces else self.manifest["run"]
        key = self.config.get("coordinator_key") or self.pins.get(run) or body["key"]
        ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(
            base64.b64decode(signature, validate=True), topic.encode() + b"\0" + line
        )
        self.pins[run] = key
        direct = topic == f"{self.mine}/down"
        if kind == "coordinator":
            self.take_coordinator(body, direct=direct)
        elif kind == "manifest":
            self.take_manifest(body, direct=direct)
        elif kind == "want":
            self.send(body)
        elif kind in ("kept", "refused"):
            self.settle(kind, body)

    def take_coordinator(self, state: Json, *, direct: bool) -> None:
        known = self.coordinator
        old = state["epoch"] < max(self.state["epoch"], known.get("epoch", 0))
        if old and state["boot"] != known.get("boot"):
            raise ValueError("an older coordinator")
        self.coordinator = state
        new = direct or not known or known["boot"] != state["boot"] or not known["online"]
        if state["online"] and new:
            self.greeted = False
            self.hello()

    def take_manifest(self, manifest: Json, *, direct: bool) -> None:
        if direct and manifest["answers"] != self.boot:
            raise ValueError("an answer to an earlier process")
        epoch, run, closed = manifest["epoch"], manifest["run"], manifest["closed"]
        known = self.state
        is_later = epoch > known["epoch"] or not known["run"]
        is_same = (epoch, run) == (known["epoch"], known["run"]) and closed >= known["closed"]
        if not is_later and not is_same:
            raise ValueError("an older manifest")
        if run != known["run"]:
            known.update(parked=None, settled=[], residual={})
        if (epoch, run, closed) != (known["epoch"], known["run"], known["closed"]):
            known.update(epoch=epoch, run=run, closed=closed)
            self.save()
        before, self.manifest = self.manifest, manifest
        now = (manifest["exchange"], manifest["attempt"])
        if (before.get("exchange"), before.get("attempt")) != now:
            self.unwanted, self.said_at = False, -math.inf
        self.heard_at = time.monotonic()
        if direct and not self.greeted:
            self.greeted, self.chunk_at = True, -math.inf
        if before.get("model") != manifest["model"]:
            self.parts = {}
            self.chunk_at = -math.inf if direct else self.heard_at
        self.finished = manifest["phase"] == "done"

    def settle(self, kind: str, answer: Json) -> None:
        parked = self.state["parked"]
        if kind == "refused" and answer["scope"] != "contribution":
            if answer["key"] == self.key.public_key().public_bytes_raw().hex():
                sys.exit(f"refused: {answer['reason']}")
            return
        if parked is None or parked["sha256"] != answer["sha256"]:
            return
        if kind == "refused" and answer["closed"] < parked["round"]:
            self.unwanted = True
            return
        if kind == "kept":
            self.state["residual"] = parked["residual"]
        self.state.update(settled=[parked["run"], parked["round"]], parked=None)
        self.save()

    # Work that is due.

    def hello(self) -> None:
        self.hello_at, config = time.monotonic(), self.config
        self.say("hello", {
            "boot": self.boot, "key": self.key.public_key().public_bytes_raw().hex(),
            "domain": "", "encoder_id": config["encoder_id"],
            "classes_digest": config["classes_digest"],
            "capabilities": {
                "roles": ["train"],
                "methods": ["fedclip"], "codecs": CODECS, "min_per_class": 1,
                "pictures": {"train": 1, "validation": 0, "test": 0, "withheld": 0},
            },
            "epoch": self.state["epoch"],
            "run": self.state["run"], "closed": self.state["closed"],
        })  # fmt: skip
        self.said_at = -math.inf

    def act(self, now: float) -> None:
        manifest, parked = self.manifest, self.state["parked"]
        if not self.greeted:
            if now - self.hello_at >= REPEAT_S:
                self.hello()
            return
        patience_s = REPEAT_S if manifest["phase"] == "final" else manifest["deadline_s"]
        if now - self.heard_at >= patience_s:
            self.heard_at = now
            self.hello()
        if parked is not None and not self.unwanted and now - self.said_at >= REPEAT_S:
            self.offer()
        elif self.version != manifest["model"]["sha256"]:
            self.fetch(manifest["model"], now)
        elif self.is_drawn(manifest) and parked is None:
            self.contribute(manifest)

    def fetch(self, blob: Json, now: float) -> None:
        count, topic = count_of(blob), f"{self.top}/blob/{blob['sha256']}"
        missing = [[i, i] for i in range(count) if i not in self.parts]
        if missing and now - self.chunk_at >= REPAIR_S:
            self.chunk_at = now
            self.link.subscribe(topic, 1)
            self.say("want", {"sha256": blob["sha256"], "missing": missing[:MAX_GAPS]})
        elif not missing:
            self.link.unsubscribe(topic)
            data, self.parts = b"".join(self.parts[i] for i in range(count)), {}
            if hashlib.sha256(data).hexdigest() == blob["sha256"]:
                codec = self.manifest["plan"]["codec_down"]
                if self.manifest["exchange"]["kind"] == "vote":
                    self.candidates = candidates(data, codec)
                elif self.manifest["phase"] in ("gathering", "open"):
                    self.terms = unpack(data, self.shapes, codec)
                self.version = blob["sha256"]

    def is_drawn(self, manifest: Json) -> bool:
        run, number = manifest["run"], manifest["exchange"]["number"]
        if manifest["phase"] != "open" or self.state["settled"] == [run, number]:
            return False
        if manifest["takes_part"] is not None:
            return bool(manifest["takes_part"])
        drawn = hashlib.sha256(f"{run}/{number}/{self.config['id']}".encode()).hexdigest()
        return drawn <= str(manifest["cohort"])

    def contribute(self, manifest: Json) -> None:
        """Train, add the residual of the last kept contribution, write to disk, and offer.

        Its answer to a vote is empty, because it has no pictures.
        """
        codec, residual = manifest["plan"]["codec_up"], self.state["residual"]
        meant, zeros = {}, {}
        if manifest["exchange"]["kind"] == "vote":
            table = [self.candidates, TEMPERATURES]
            bins = [self.candidates, BINS]
            zeros = {"pictures": [1], "correct": table[:1], "differ": table[:1]}
            zeros |= {"loss": table, "squares": table, "known": bins, "removed": bins}
            self.terms = {}
        for name, values in self.terms.items():
            lost = residual.get(name) or [0.0] * len(values)
            meant[name] = f32([0.01 * v + left for v, left in zip(values, lost, strict=True)])
        # The decoded norm must be within the bound: nine tenths leave room for the codec.
        norm = math.sqrt(sum(v * v for values in meant.values() for v in values))
        scale = min(1.0, 0.9 * manifest["exchange"]["max_norm"] / (norm or 1.0))
        meant = {name: f32([scale * v for v in values]) for name, values in meant.items()}
        head = {
            "schema": 2, "kind": "contribution", "run": manifest["run"],
            "round": manifest["exchange"]["number"], "device": self.config["id"],
            "exchange": manifest["exchange"]["sha256"], "update": "sum", "weight": 1,
        }  # fmt: skip
        body = pack(head, self.shapes, meant, codec, zeros)
        received = {} if zeros else unpack(body, self.shapes, codec)
        left = {n: [m - r for m, r in zip(meant[n], received[n], strict=True)] for n in meant}
        self.state["parked"] = {
            "run": manifest["run"], "round": head["round"], "residual": left,
            "sha256": hashlib.sha256(body).hexdigest(), "body": base64.b64encode(body).decode(),
        }  # fmt: skip
        self.save()
        self.offer()

    def offer(self) -> None:
        parked, self.said_at = self.state["parked"], time.monotonic()
        blob = blob_of(base64.b64decode(parked["body"]))
        self.say("offer", {"run": parked["run"], "number": parked["round"], "blob": blob})

    def send(self, want: Json) -> None:
        parked = self.state["parked"]
        if parked is None or self.unwanted or parked["sha256"] != want["sha256"]:
            return
        self.said_at = time.monotonic()
        for chunk in chunks(base64.b64decode(parked["body"]), want["missing"]):
            self.link.publish(f"{self.mine}/up", chunk, qos=1)


if __name__ == "__main__":
    Agent(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8-sig"))).run()
