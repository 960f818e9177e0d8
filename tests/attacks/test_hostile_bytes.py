"""Hostile bytes on every topic: each is refused with a named reason, counted, and has no effect.

The corpus is in hostile_bytes.py. Here it is sent to the real coordinator and the real session:
each entry alone, randomly mutated, within a memory limit, and during a run that has to end with the
same model. test_hostile_client.py repeats this with processes and a broker.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import subprocess
import sys
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import hostile_bytes as hostile
import pytest
from checkout import SUPPORT
from coordinated_fleet import PLAN, RULES, device, final, undisturbed
from hostile_bytes import Aim, Said
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_memory import ENCODER, Fleet
from opened import opened

from fedclip_edge.agent.session import Session
from fedclip_edge.agent.working import work
from fedclip_edge.errors import PeerError, RefusedError
from fedclip_edge.pki.registry import Device, Registry
from fedclip_edge.protocol import chunks, codec, signing, wire
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport.base import Received
from fedclip_edge.transport.in_memory import InMemoryBroker, InMemoryTransport

pytestmark = pytest.mark.one_python

TOPICS = Topics("lab")
MALLORY, QUIET, STRANGER = (
    signing.create_identity(),
    signing.create_identity(),
    signing.create_identity(),
)
ME = "cam-9"  # an enrolled device that is hostile
UP, STATE = TOPICS.up(ME), TOPICS.state(ME)
FROM_DEVICE = {"device": STATE, "hello": UP, "offer": UP, "want": UP, "report": UP}
ALL_TOPICS = (
    TOPICS.coordinator_state, TOPICS.manifest, TOPICS.model, STATE, UP, TOPICS.down("cam-0"),
)  # fmt: skip
# Parsed objects may be this many times larger than their text.
TIMES, PLUS_BYTES = 40, 256 * 1024


class Target:
    """A fleet of two honest devices and a hostile one; its first round is open."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    @property
    def session(self) -> Session:
        return self.fleet.sessions["cam-0"]

    def close(self) -> None:
        self.fleet.close()

    def aim(self) -> Aim:
        coordinator = self.fleet.coordinator
        return Aim(
            sender=ME,
            device=ME,
            identity=MALLORY,
            run=coordinator.run_state.run.id,
            round=min(coordinator.run_state.model.round + 1, PLAN.rounds),
            model=coordinator.run_state.blob,
            plan=PLAN,
            shapes=coordinator.run_state.layout.delta,
            encoder_id=ENCODER,
            classes_digest=self.fleet.classes.digest,
            exchange=coordinator.run_state.exchange.sha256,
            epoch=coordinator.epoch,
        )

    def as_coordinator(self) -> Aim:
        aim = hostile.as_sender(
            self.aim(), "coordinator", self.fleet.coordinator.publisher.identity
        )
        return replace(aim, incarnation=self.session.publisher.incarnation, device="cam-0")

    def to_coordinator(self, topic: str, payload: bytes) -> int:
        """The number of refusals that the message causes."""
        coordinator = self.fleet.coordinator
        before = coordinator.refused_messages.total()
        coordinator.handle_event(Received(topic, payload), self.fleet.now)
        return coordinator.refused_messages.total() - before

    def to_device(self, topic: str, payload: bytes) -> int:
        before = self.session.refused_messages
        self.session.handle_event(Received(topic, payload), self.fleet.now)
        self.session.act(self.fleet.now)
        work(self.session, lambda: self.fleet.now)
        return self.session.refused_messages - before

    def upload(self, body: bytes) -> int:
        """The number of refusals when the hostile device offers and sends a body."""
        offer, chunks = hostile.offered(self.aim(), body, UP)
        refused = self.to_coordinator(UP, offer)
        return refused + sum(self.to_coordinator(UP, chunk) for chunk in chunks)

    def publish(self, body: bytes) -> int:
        """The number of refusals when the coordinator itself announces and sends a model."""
        aim = self.as_coordinator()
        blob = chunks.blob_of(body, "model")
        line = aim.line("manifest", model=vars(blob), takes_part=None, answers="")
        refused = self.to_device(TOPICS.manifest, aim.sign(line, TOPICS.manifest))
        for chunk in chunks.split(body, blob):
            refused += self.to_device(TOPICS.model, chunk)
        return refused


def make(folder: Path, **rules: float) -> Target:
    enrolled = Registry("lab", "edge", 8883, signing.load_or_create(folder / "coordinator.key").key)
    for name in ("cam-0", "cam-1"):
        key = signing.load_or_create(folder / name / "device.key").key
        enrolled = enrolled.with_device(name, Device(key, ("1",), "2099-01-01"))
    for name, key in ((ME, MALLORY.key), ("cam-8", QUIET.key)):
        enrolled = enrolled.with_device(name, Device(key, ("1",), "2099-01-01"))
    wanted = replace(RULES, **{"devices": 2, **rules})  # type: ignore[arg-type]
    return Target(Fleet(folder, PLAN, wanted, broker=InMemoryBroker(), registry=enrolled))


def join(target: Target) -> None:
    """Let all devices say hello, also the hostile one, and open a round that waits for cam-8."""
    for number in range(2):
        device(target.fleet, number, ("evaluate",))
    target.fleet.step()
    for name, key in ((ME, MALLORY), ("cam-8", QUIET)):
        speaker, topic = hostile.as_sender(target.aim(), name, key), TOPICS.up(name)
        assert target.to_coordinator(topic, speaker.sign(speaker.line("hello"), topic)) == 0
    for _ in range(8):
        target.fleet.step()
    assert target.fleet.coordinator.rounds.phase == "open"
    assert target.session.download.held is not None


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with contextlib.closing(make(tmp_path_factory.mktemp("hostile"))) as made:
        join(made)
        yield made


@pytest.fixture(scope="module")
def other_target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A second target for bodies, whose state no mutated control message has changed."""
    with contextlib.closing(make(tmp_path_factory.mktemp("bodies"))) as made:
        join(made)
        yield made


# The corpus by direction: (topic, payload). Each entry must be refused exactly once.

Corpus = dict[str, tuple[str, bytes]]


def everywhere(aim: Aim, topics: tuple[str, ...]) -> Corpus:
    """Bytes that are no message, and messages on the wrong topics."""
    said = {
        f"{name}, on {topic}": (topic, payload)
        for topic in topics
        for name, payload in hostile.not_messages().items()
    }
    for topic in topics:
        for kind in aim.messages():
            try:
                TOPICS.check_kind(topic, kind)
            except PeerError:
                said[f"a {kind} on {topic}"] = (topic, aim.sign(aim.line(kind), topic))
    return said


def signed(aim: Aim, lines: Said, topic: str) -> Corpus:
    return {name: (topic, aim.sign(line, topic)) for name, line in lines.items()}


def for_coordinator(target: Target) -> Corpus:
    aim = target.aim()
    said = everywhere(aim, (UP, STATE, TOPICS.coordinator_state))
    for kind, topic in FROM_DEVICE.items():
        other = STATE if topic == UP else UP
        said |= signed(aim, hostile.wrong_lines(aim, kind), topic)
        wrong = hostile.wrong_signatures(aim, kind, topic, other, STRANGER)
        said |= {name: (topic, payload) for name, payload in wrong.items()}
    said |= signed(aim, hostile.wrong_fields(aim), UP)
    in_charge = hostile.as_sender(aim, "coordinator", MALLORY)
    said |= signed(
        in_charge,
        {"a coordinator of its own": in_charge.line("coordinator", epoch=2**50)},
        TOPICS.coordinator_state,
    )
    # With the name of an honest device, and with a name that is not enrolled.
    for name in ("cam-0", "cam-7"):
        theirs, topic = hostile.as_sender(aim, name, MALLORY), TOPICS.up(name)
        lines = {f"a {kind} as {name}": theirs.line(kind) for kind in ("offer", "want", "report")}
        said |= signed(theirs, lines, topic)
        said[f"a chunk as {name}"] = (TOPICS.state(name), b"\xfc\x1e" + bytes(60))
    said["as another on its own topic"] = (UP, aim.sign(theirs.line("offer"), UP))
    return said


def for_device(target: Target) -> Corpus:
    aim, down = target.as_coordinator(), TOPICS.down("cam-0")
    topics = {
        "coordinator": TOPICS.coordinator_state, "manifest": TOPICS.manifest, "want": down,
        "kept": down, "refused": down,
    }  # fmt: skip
    said = everywhere(aim, (*topics.values(), TOPICS.model))
    for kind, topic in topics.items():
        said |= signed(aim, hostile.wrong_lines(aim, kind), topic)
        other = TOPICS.down("cam-1")
        wrong = hostile.wrong_signatures(aim, kind, topic, other, MALLORY)
        said |= {name: (topic, payload) for name, payload in wrong.items()}
    said |= signed(aim, hostile.wrong_plans(aim), down)
    forged = hostile.as_sender(aim, "coordinator", MALLORY)
    for kind, topic in topics.items():
        said[f"a forged {kind}"] = (topic, forged.sign(forged.line(kind), topic))
    for sender in ("cam-1", "Coordinator", ""):
        liar = hostile.as_sender(aim, sender, aim.identity)
        said[f"a manifest of {sender!r}"] = (down, liar.sign(liar.line("manifest"), down))
    return said


# Each entry alone.


def measured(act: Callable[[], int]) -> tuple[int, int]:
    """The result of `act`, and the peak of memory that Python allocated during it."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    done = act()
    return done, tracemalloc.get_traced_memory()[1] - before


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def check_each(corpus: Corpus, send: Callable[[str, bytes], int]) -> None:
    wrong = []
    for name, (topic, payload) in corpus.items():
        refused, peak = measured(functools.partial(send, topic, payload))
        if refused != 1 or peak > TIMES * len(payload) + PLUS_BYTES:
            wrong.append(f"{name}: refused {refused} times, {peak} bytes for {len(payload)}")
    assert not wrong, wrong[:9]


@pytest.mark.usefixtures("traced")
def test_each_message_to_the_coordinator_is_refused(target: Target) -> None:
    corpus = for_coordinator(target)
    assert len(corpus) > 300
    before = Counter(target.fleet.coordinator.refused_messages)
    check_each(corpus, target.to_coordinator)
    grown = target.fleet.coordinator.refused_messages - before
    by_topic = Counter(
        topic.removeprefix("fedclip/v2/lab/").split("/")[1] for topic, _ in corpus.values()
    )
    by_topic[""] = by_topic.pop("state")  # the coordinator's own topic belongs to no device
    assert grown == by_topic, "each refusal is counted for the sender"


@pytest.mark.usefixtures("traced")
def test_each_message_to_a_device_is_refused(target: Target) -> None:
    corpus = for_device(target)
    assert len(corpus) > 300
    check_each(corpus, target.to_device)


@pytest.mark.usefixtures("traced")
def test_each_contribution_is_refused(target: Target) -> None:
    body = wire.payload_limit_bytes(target.aim().shapes, PLAN.codec_up)
    for name, data in hostile.wrong_contributions(target.aim()).items():
        refused, peak = measured(functools.partial(target.upload, data))
        assert refused == 1, name
        assert peak < TIMES * max(len(data), body) + PLUS_BYTES, name
        assert ME not in target.fleet.coordinator.run_state.kept(), name


@pytest.mark.usefixtures("traced")
def test_each_model_is_refused(target: Target) -> None:
    run_state = target.fleet.coordinator.run_state
    body = wire.payload_limit_bytes(run_state.layout.parameters, PLAN.codec_down)
    held = target.session.download.held
    for name, data in hostile.wrong_models(target.aim(), run_state.stored.payload).items():
        refused, peak = measured(functools.partial(target.publish, data))
        assert refused == 1, name
        assert peak < TIMES * max(len(data), body) + PLUS_BYTES, name
        assert target.session.download.held is held, name


def test_each_chunk_is_refused(target: Target) -> None:
    aim = target.aim()
    body = hostile.contribution(aim)
    offer, _ = hostile.offered(aim, body, UP)
    assert target.to_coordinator(UP, offer) == 0
    for name, chunk in hostile.wrong_chunks(chunks.blob_of(body, "update"), body).items():
        assert target.to_coordinator(UP, chunk) == 1, name
        assert target.to_coordinator(STATE, chunk) == 1, name
    blob = replace(aim.model, sha256="5" * 64, size_bytes=len(body))
    lead = target.as_coordinator()
    line = lead.line("manifest", model=vars(blob), takes_part=None, answers="")
    assert target.to_device(TOPICS.manifest, lead.sign(line, TOPICS.manifest)) == 0
    for name, chunk in hostile.wrong_chunks(blob, body).items():
        assert target.to_device(TOPICS.model, chunk) == 1, name
        assert target.to_device(TOPICS.manifest, chunk) == 1, name


def test_the_right_ones_are_taken(target: Target) -> None:
    """The valid messages that all attacks are derived from are accepted."""
    aim, lead = target.aim(), target.as_coordinator()
    for kind, topic in FROM_DEVICE.items():
        assert target.to_coordinator(topic, aim.sign(aim.line(kind), topic)) == 0, kind
    for kind, topic in (("manifest", TOPICS.manifest), ("want", TOPICS.down("cam-0"))):
        assert target.to_device(topic, lead.sign(lead.line(kind), topic)) == 0, kind


# Floods.


def test_a_flood_of_wants_does_not_fill_the_outbox(tmp_path: Path) -> None:
    target = opened(make(tmp_path))
    join(target)
    aim, broker = target.aim(), target.fleet.broker
    sent: list[str] = []
    publish = broker.accept

    def listen(client: InMemoryTransport, topic: str, payload: bytes, *, retain: bool) -> None:
        sent.append(topic)
        publish(client, topic, payload, retain=retain)

    broker.accept = listen  # type: ignore[method-assign]
    line = aim.line("want", sha256=aim.model.sha256, missing=[[0, 2**40]])
    for _ in range(200):
        target.to_coordinator(UP, aim.sign(line, UP))
    assert sent.count(TOPICS.blob(aim.model.sha256)) == aim.model.chunks
    target.fleet.now += 1.0
    target.to_coordinator(UP, aim.sign(line, UP))
    assert sent.count(TOPICS.blob(aim.model.sha256)) == 2 * aim.model.chunks


def test_names_without_end_are_counted_together(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = target.fleet.coordinator
    known = len(coordinator.refused_messages)
    monkeypatch.setattr("fedclip_edge.coordinator.coordinator._PEERS_COUNTED", known + 10)
    before = coordinator.refused_messages[""]
    for number in range(50):
        assert target.to_coordinator(TOPICS.up(f"nobody-{number}"), b"") == 1
    assert len(coordinator.refused_messages) <= known + 11
    assert coordinator.refused_messages[""] - before >= 39
    assert target.to_coordinator(UP, b"") == 1


def test_runs_without_end_are_not_remembered(target: Target) -> None:
    lead = target.as_coordinator()
    for number in range(200):
        line = lead.line("coordinator", run=f"run-{number}", online=False)
        target.to_device(TOPICS.coordinator_state, lead.sign(line, TOPICS.coordinator_state))
    assert len(target.session.trust._pins) <= 64
    assert target.fleet.coordinator.run_state.run.id in target.session.trust._pins
    line = lead.line("coordinator")
    target.to_device(TOPICS.coordinator_state, lead.sign(line, TOPICS.coordinator_state))


# Mutated entries.


def mutated(data: st.DataObject, payload: bytes, others: list[bytes]) -> bytes:
    """`payload` after a few random changes."""
    changed = bytearray(payload[:4096])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(changed) - 1)))
        match data.draw(st.sampled_from(["flip", "cut", "drop", "double", "splice", "insert"])):
            case "flip" if changed:
                changed[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del changed[at:]
            case "drop":
                del changed[at : at + data.draw(st.integers(1, 40))]
            case "double":
                changed[at:at] = changed[at : at + data.draw(st.integers(1, 200))]
            case "splice":
                other = others[data.draw(st.integers(0, len(others) - 1))]
                changed[at:] = other[min(at, len(other)) :][:4096]
            case _:
                changed[at:at] = data.draw(st.binary(min_size=1, max_size=8))
    return bytes(changed)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_mutation_stops_the_coordinator(target: Target, data: st.DataObject) -> None:
    aim = target.aim()
    corpus = list(for_coordinator_once(target).values())
    topic, payload = corpus[data.draw(st.integers(0, len(corpus) - 1))]
    changed = mutated(data, payload, [other for _, other in corpus])
    if topic in (UP, STATE) and data.draw(st.booleans()):
        changed = aim.sign(changed.partition(b"\n")[0], topic)
    target.to_coordinator(topic, changed)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_mutation_stops_a_device(target: Target, data: st.DataObject) -> None:
    lead = target.as_coordinator()
    corpus = list(for_device_once(target).values())
    topic, payload = corpus[data.draw(st.integers(0, len(corpus) - 1))]
    changed = mutated(data, payload, [other for _, other in corpus])
    if data.draw(st.booleans()):
        changed = lead.sign(changed.partition(b"\n")[0], topic)
    try:
        target.session.handle_event(Received(topic, changed), target.fleet.now)
    except RefusedError:
        assert b'"final": true' in changed


@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_mutation_of_a_body_stops_either(other_target: Target, data: st.DataObject) -> None:
    target = other_target
    aim, right = target.aim(), target.fleet.coordinator.run_state.stored.payload
    bodies = [hostile.contribution(aim, round=aim.round + 1), right]
    plain = [codec.decode(PLAN.codec_up, bodies[0], 2**20)]
    changed = mutated(data, [*bodies, *plain][data.draw(st.integers(0, 2))], bodies)
    if changed[:4] != b"\x28\xb5\x2f\xfd":
        changed = codec.encode(PLAN.codec_up, changed)
    assert target.upload(changed) <= 1
    # A changed bit in a weight may leave a valid model, and its hash is the announced one.
    assert target.publish(changed) <= 1


@functools.cache
def for_coordinator_once(target: Target) -> Corpus:
    right = {
        f"right {kind}": (topic, target.aim().sign(target.aim().line(kind), topic))
        for kind, topic in FROM_DEVICE.items()
    }
    return {**for_coordinator(target), **right}


@functools.cache
def for_device_once(target: Target) -> Corpus:
    aim, down = target.as_coordinator(), TOPICS.down("cam-0")
    right = {
        f"right {kind}": (down, aim.sign(aim.line(kind), down))
        for kind in ("coordinator", "manifest", "want", "kept", "refused")
    }
    return {**for_device(target), **right}


# The memory limit of the operating system also covers allocations of C libraries.

_LIMIT_BYTES = 96 * 2**20


def within_a_limit() -> None:
    """Send the whole corpus in this process, which may grow by _LIMIT_BYTES of address space."""
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(make(Path(folder))) as target:
        join(target)
        bodies = list(hostile.wrong_contributions(target.aim()).values())
        models = hostile.wrong_models(
            target.aim(), target.fleet.coordinator.run_state.stored.payload
        )
        to_coordinator, to_device = for_coordinator(target), for_device(target)
        now_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now_bytes + _LIMIT_BYTES,) * 2)
        refused = sum(target.to_coordinator(*said) for said in to_coordinator.values())
        refused += sum(target.upload(body) for body in bodies)
        refused += sum(target.to_device(*said) for said in to_device.values())
        refused += sum(target.publish(body) for body in models.values())
        total = len(to_coordinator) + len(bodies) + len(to_device) + len(models)
        assert refused == total, (refused, total)
        sys.stderr.write(f"{total} refused\n")


@pytest.mark.one_python
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_the_whole_corpus_fits_into_little_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import test_hostile_bytes as t; t.within_a_limit()"],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.endswith(" refused\n")


# During a run.


def test_a_run_under_fire_ends_with_the_same_model(tmp_path: Path) -> None:
    """The hostile device is in the cohort, and every client may write on every topic."""
    target = opened(make(tmp_path, devices=3, quorum=0.6))
    for number in range(2):
        device(target.fleet, number)
    target.fleet.step()
    assert target.to_coordinator(UP, target.aim().sign(target.aim().line("hello"), UP)) == 0
    fleet, broker = target.fleet, target.fleet.broker
    forged = functools.partial(hostile.as_sender, sender="coordinator", identity=MALLORY)
    to_coordinator = list(for_coordinator(target).values())
    to_device = [
        (topic, payload)
        for topic in (TOPICS.coordinator_state, TOPICS.manifest, TOPICS.model, TOPICS.down("cam-0"))
        for payload in hostile.not_messages().values()
    ]
    fire = [
        *to_coordinator,
        *to_device,
        *signed(forged(target.aim()), hostile.wrong_plans(target.aim()), TOPICS.manifest).values(),
    ]
    bodies = [*hostile.wrong_contributions(target.aim())]
    step = 0
    while not fleet.coordinator.finished:
        for topic, payload in fire[step % 16 :: 16]:
            broker.deliver(topic, payload, retain=step % 3 == 0 and topic != TOPICS.model)
        wrong = hostile.wrong_contributions(target.aim())
        target.upload(wrong[bodies[7 * step % len(bodies)]])
        fleet.step()
        step += 1
        assert step < 500
    assert final(fleet) == undisturbed()
    assert fleet.coordinator.refused_messages[ME] > 50
    assert all(session.refused_messages > 15 for session in fleet.sessions.values())
