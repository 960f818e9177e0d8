"""The coordinator of one run, under way or over: its link, its deadlines and its registry.

It needs neither torch nor onnxruntime: the coordinator only combines client updates.

Laws:
- A message that breaks the protocol is dropped and counted against its peer.
- A device that loses its admission is refused at once.
- For MUTED_S, the coordinator does not listen to a device that floods it: it makes a new link
  without the topics of the device, which counts as offline.
- After a kill at any moment the journal is enough to continue: `resume_coordinator` starts from it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from fedclip_edge import log
from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator import attendance, round_events
from fedclip_edge.coordinator.admission import Admission
from fedclip_edge.coordinator.device_messages import DeviceMessages, log_device_refused
from fedclip_edge.coordinator.devices import Devices
from fedclip_edge.coordinator.publisher import Publisher
from fedclip_edge.coordinator.receiver import Receiver
from fedclip_edge.coordinator.round_driver import RoundDriver
from fedclip_edge.coordinator.round_state import RoundState
from fedclip_edge.coordinator.run_state import RunState
from fedclip_edge.errors import PeerError, RunError
from fedclip_edge.pki.registry import Registry
from fedclip_edge.protocol import version1, wire
from fedclip_edge.protocol.messages import (
    CoordinatorState,
    Refused,
)
from fedclip_edge.protocol.refusals import Line, Refusals
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.records import COORDINATOR
from fedclip_edge.transport.base import Connected, Event, Flooding, Received

# Refused messages are counted by device for up to this many names; further names share one count.
_PEERS_COUNTED = 10_000
MUTED_S = 60.0


@dataclass(eq=False)
class Coordinator:
    """The coordinator of one run. `resume_coordinator` makes it."""

    config: FleetConfig
    run_state: RunState
    publisher: Publisher
    devices: Devices
    admission: Admission
    receiver: Receiver
    driver: RoundDriver
    messages: DeviceMessages
    # Number of refused messages by the device in the topic; "" counts all others (_PEERS_COUNTED).
    refused_messages: Counter[str] = field(default_factory=Counter)
    _muted: dict[str, float] = field(default_factory=dict)  # device -> time at which it ends
    _refusals: Refusals = field(default_factory=Refusals)  # what the log says of refused messages

    def handle_event(self, event: Event, now: float, *, more: bool = False) -> None:
        """Handle one event of the link; `now` is monotonic, in seconds.

        With `more`, another event is waiting. Contributions and reports may then be put on disk
        together with those that follow. Without it, and in `tick`, they are put there at once.

        Raises RunError if another coordinator took over the fleet or the journal, or if the
        contributions of all devices are refused (round_driver.py); JournalError on a disk error.
        """
        if more:
            self.driver.hold(now)
        if isinstance(event, Connected):
            self._handle_connected(now)
        elif isinstance(event, Received):
            self._handle_received(event, now)
        elif isinstance(event, Flooding):
            self._mute(event.sender, now)
        elif event.reason:
            log.event("link_lost", reason=event.reason)
        if not more:
            self.driver.sync()

    def tick(self, now: float) -> None:
        """Handle due deadlines, leases and repeated requests; `now` is monotonic, in seconds.

        Raises RunError and JournalError as `handle_event` does. It checks here that no other
        coordinator has claimed the journal, because that coordinator's state message may be lost.
        Otherwise a coordinator that has nothing to write would never notice.
        """
        self.driver.sync()
        self.run_state.journal.check_claim()
        for device in self.receiver.uploads.expire(now):
            log.event("upload_abandoned", device=device)
        self.receiver.request_missing(now)
        self.driver.handle(round_events.Tick(), now)
        if self.publisher.deliveries is not None:
            self.publisher.deliveries.poll(now)
        over = [device for device, until in self._muted.items() if now >= until]
        if over:
            self._muted = {d: until for d, until in self._muted.items() if d not in over}
            self._subscribe()
        for line in self._refusals.poll(now):
            _log_message_refused(line)
        for line in self.messages.refusals.poll(now):
            log_device_refused(line)

    def apply_registry(self, registry: Registry, now: float) -> dict[str, str]:
        """Use a changed registry, and refuse every device that it no longer admits.

        Returns the incarnations of the refused devices that were online, by device. `now` is
        monotonic, in seconds. Raises RunError and JournalError as `handle_event` does.
        """
        # A device that encodes has shown the key that was enrolled then, and takes no messages yet.
        encoding = {device: self.admission.key_of(device) for device in self.devices.encoding}
        before = self.publisher.state(online=True)
        self.admission.registry = self.publisher.registry = registry
        if self.publisher.state(online=True) != before:  # the broker moves
            self.publisher.publish_state(online=True)
        refused = {}
        for device, key in encoding.items():
            reason = registry.refusal(device, key or "")
            if reason is not None:
                log_device_refused(self.messages.refusals.add(device, "", reason, now))
                refused[device] = self.devices.encoding[device].boot
                self.devices.note_encoding(device, None, now)
        for device, key in list(self.devices.fetching.items()):
            if registry.refusal(device, key) is not None:
                del self.devices.fetching[device]
        for device, key in list(self.devices.keys.items()):
            reason = self.admission.refusal(device)
            if reason is None:
                continue
            incarnation = self.devices.set_offline(device)
            if incarnation is not None:
                self.messages.refuse(device, Refused(reason, "device", key=key), incarnation, now)
                refused[device] = incarnation
            self.receiver.uploads.release(device)
            self.driver.handle(round_events.Left(device, for_good=True), now)
        self.driver.handle(round_events.Enrolled(self.admission.enrolled or frozenset()), now)
        self.count_enrolled()
        return refused

    def count_enrolled(self) -> None:
        """Wait for no more training devices than are enrolled and not revoked.

        If fewer ids than `devices` were ever enrolled, the run waits for all `devices`: the others
        may be enrolled at any time.
        """
        registry, enrolled = self.admission.registry, self.admission.enrolled
        if registry is None or enrolled is None:
            return
        configured = devices = self.config.rules.devices
        if len(registry.devices) >= configured:
            devices = max(1, min(configured, len(enrolled)))
        rules = replace(self.rounds.rules, devices=devices)
        self.driver.state = replace(self.rounds, rules=rules)
        is_first = self.rounds.phase == "gathering" and attendance.is_first_opening(self.rounds)
        if is_first and len(enrolled) < configured:
            log.event(
                "too_few_enrolled",
                devices=configured,
                enrolled=len(enrolled),
                waiting_for=devices,
                hint="enrol more devices, or set 'devices' under [rules] in fleet.toml",
            )

    @property
    def muted(self) -> frozenset[str]:
        """The devices that the coordinator does not listen to for now."""
        return frozenset(self._muted)

    def follow(self, before: Coordinator) -> None:
        """Take over, from the coordinator of an earlier run, what it knows about the devices."""
        self.refused_messages = before.refused_messages
        self._muted, self._refusals = before._muted, before._refusals
        self.messages.refusals = before.messages.refusals
        self.devices.recall(before.devices)

    def say_goodbye(self) -> None:
        """Tell the devices that the coordinator is going offline."""
        self.publisher.publish_state(online=False)

    @property
    def rounds(self) -> RoundState:
        """The state of the rounds."""
        return self.driver.state

    @property
    def has_begun(self) -> bool:
        """True once a round has been opened."""
        return self.rounds.round > 1 or self.rounds.phase != "gathering"

    @property
    def finished(self) -> bool:
        """True once every round is closed and the evaluation of the last model is over."""
        return self.driver.finished

    @property
    def epoch(self) -> int:
        """The epoch. It grows with each start; the coordinator with a lower epoch stops."""
        return self.publisher.epoch

    @property
    def topics(self) -> Topics:
        return self.publisher.topics

    def _handle_connected(self, now: float) -> None:
        # Devices may have gone offline while this link was down, so each device counts as offline
        # until it says hello again. A device says hello when the coordinator comes online after
        # being offline. If only this link broke (one node of a broker cluster), the coordinator's
        # will may have been lost, so its state is first published as offline.
        if self.devices.incarnations:
            self.publisher.publish_state(online=False)
        for device in tuple(self.devices.incarnations):
            self.messages.remove(device, now, by_itself=False)
        self.publisher.publish_state(online=True)
        self.driver.publish_manifest()

    def _mute(self, device: str, now: float) -> None:
        """Stop listening to a device for MUTED_S."""
        if device in self._muted:
            return
        log.event("device_muted", device=device, seconds=MUTED_S)
        self._muted[device] = now + MUTED_S
        # On the old link, thousands of its messages come before all others, and the broker may have
        # dropped acknowledgements for them (mqtt.py).
        self._subscribe(anew=True)
        # A round does not wait for it, as it would for a device whose link broke.
        self.devices.set_offline(device)
        self.receiver.uploads.release(device)
        self.driver.handle(round_events.Left(device, for_good=True), now)

    def _subscribe(self, *, anew: bool = False) -> None:
        """Listen to all devices or, while one is muted, to each known one that is not."""
        if not self._muted:
            names = {"+"}
        elif self.admission.registry is None:
            names = self.devices.keys.keys() - self._muted
        else:
            names = self.admission.registry.devices.keys() - self._muted
        self.publisher.transport.set_topics(self.topics.for_coordinator(sorted(names)), anew=anew)

    def _handle_received(self, event: Received, now: float) -> None:
        if self._muted and self.topics.owner(event.topic) in self._muted:
            return  # it was on its way already
        device = ""
        try:
            if event.topic == self.topics.coordinator_state:
                self._handle_coordinator_state(event)
            elif event.topic.startswith(self.topics.earlier.prefix):
                device = self.topics.earlier.device_of(event.topic)
                self._refuse_earlier(device, event.payload)
            else:
                device = self.topics.device_of(event.topic)
                self.messages.handle(device, event, now)
        except PeerError as error:
            counted = self.refused_messages
            full = device not in counted and len(counted) >= _PEERS_COUNTED
            counted["" if full else device] += 1
            _log_message_refused(self._refusals.add(device, event.topic, str(error), now))

    def _refuse_earlier(self, device: str, payload: bytes) -> None:
        """Refuse a device that speaks the earlier protocol, if this is its hello."""
        ours, topic = self.publisher, self.topics.earlier.down(device)
        answers = version1.refuse_device(self.config.fleet, device, payload, ours.identity)
        for answer in answers:
            ours.transport.publish(topic, answer)
        if answers:
            raise PeerError(version1.OLD_DEVICE)

    def _handle_coordinator_state(self, event: Received) -> None:
        signed = wire.unpack_coordinator(event.topic, event.payload)
        state = signed.message
        self.topics.check_kind(event.topic, signed.kind)
        assert isinstance(state, CoordinatorState)
        if signed.sender != COORDINATOR:
            raise PeerError(f"a state of a coordinator from {signed.sender!r}")
        registry, ours = self.admission.registry, self.publisher
        signed.check(state.key if registry is None else ours.identity.key)
        if state.boot == ours.incarnation and state.online:
            return  # this process's own state, back from the broker
        if state.online and (state.epoch, state.boot) > (self.epoch, ours.incarnation):
            raise RunError(
                f"another coordinator took over fleet {self.config.fleet} (epoch {state.epoch}); "
                "this one stops and leaves its journal unchanged; run one coordinator per fleet"
            )
        # An earlier coordinator, or the will of an earlier link of this one, has replaced the
        # retained state.
        ours.publish_state(online=True)


def _log_message_refused(line: Line | None) -> None:
    if line is not None:
        log.event(
            "message_refused",
            device=line.sender,
            topic=line.topic,
            reason=line.reason,
            count=line.count,
        )
