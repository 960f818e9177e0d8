"""Messages from devices: each is checked, and turned into a round event.

Laws:
- A message that breaks the protocol is dropped, with PeerError. It has no other effect.
- A device that is not admitted is refused, and so is one whose messages have another revision.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedclip_edge import log
from fedclip_edge.coordinator import round_events
from fedclip_edge.coordinator.admission import Admission
from fedclip_edge.coordinator.devices import Devices
from fedclip_edge.coordinator.publisher import Publisher
from fedclip_edge.coordinator.receiver import Receiver, UnfitError
from fedclip_edge.coordinator.round_driver import RoundDriver
from fedclip_edge.coordinator.run_state import RunState
from fedclip_edge.errors import PeerError
from fedclip_edge.protocol import chunks, wire
from fedclip_edge.protocol.messages import DeviceState, Hello, Offer, Refused, Want
from fedclip_edge.protocol.refusals import Line, Refusals
from fedclip_edge.protocol.report import Report, check_possible
from fedclip_edge.protocol.revision import UNNUMBERED, OtherRevisionError, difference
from fedclip_edge.protocol.topics import CHUNK
from fedclip_edge.transport.base import Received

# The largest increase of the epoch that one hello can cause. No coordinator restarts this often,
# and the limit keeps a faulty device from using up all epochs.
_EPOCHS_AT_ONCE = 2**20


@dataclass(eq=False)
class DeviceMessages:
    """The messages of all devices of a run, and the answers that are no part of a round.

    Methods raise RunError and JournalError as `Coordinator.handle_event` does.
    """

    run_state: RunState
    publisher: Publisher
    devices: Devices
    admission: Admission
    receiver: Receiver
    driver: RoundDriver
    refusals: Refusals = field(default_factory=Refusals)  # what the log says of refused devices

    def handle(self, device: str, event: Received, now: float) -> None:
        """Handle a message on a topic of `device`; raises PeerError if it breaks the protocol."""
        if chunks.is_chunk(event.payload):
            self.publisher.topics.check_kind(event.topic, CHUNK)
            if not self.devices.is_online(device):
                raise PeerError("a chunk from a device that is not online")
            self._handle_chunk(device, event.payload, now)
            return
        try:
            signed = wire.unpack_control(event.topic, event.payload)
        except OtherRevisionError as error:
            if error.kind == "hello" and event.topic == self.publisher.topics.up(device):
                self._refuse_revision(device, error, now)
            raise
        message = signed.message
        self.publisher.topics.check_kind(event.topic, signed.kind)
        if signed.sender != device:
            raise PeerError(f"a message from {signed.sender!r} on the topic of {device!r}")
        if isinstance(message, Hello):
            signed.check(message.key)
            self._handle_hello(device, message, now)
            return
        if isinstance(message, Want) and device in self.devices.fetching:
            signed.check(self.devices.fetching[device])
            if self.publisher.deliveries is not None:
                self.publisher.deliveries.add(message)
            return
        if device not in self.devices.keys or not self.devices.is_online(device):
            if isinstance(message, DeviceState):
                # Its hello follows, or it encodes, or this is a will from an earlier run.
                self._handle_state(device, message, signed, now)
                return
            # The device sends messages as if it was admitted, but this run does not know it, or its
            # hello was lost. A state that is sent to it alone asks it for a hello.
            self.publisher.send(device, self.publisher.state(online=True))
            if isinstance(message, Report) and message.run != self.run_state.run.id:
                return  # it is late
            raise PeerError("the device has not said hello; it is asked to")
        signed.check(self.devices.keys[device])
        self.devices.saw(device, now)
        if isinstance(message, DeviceState):
            if message.boot != self.devices.incarnations[device]:
                pass  # of an earlier process
            elif message.online:
                self.devices.activities[device] = message.activity
            else:
                self.remove(device, now, reason=message.reason)
                self.devices.note_away(device, message)
        elif isinstance(message, Offer):
            offered = self.receiver.receive_offer(device, message)
            if offered is not None:
                self.driver.handle(offered, now)
        elif isinstance(message, Want):
            self._handle_want(device, message, now)
        elif isinstance(message, Report):
            self._handle_report(device, message, now)

    def refuse(self, device: str, refused: Refused, incarnation: str, now: float) -> None:
        """Tell a device that it is refused, and the log."""
        log_device_refused(self.refusals.add(device, "", refused.reason, now))
        if refused.scope == "run" and self.admission.registry is not None:
            self.devices.unfit[device] = refused.reason
        if refused.scope == "run":
            self.devices.let_fetch(device, refused.key)
        else:
            self.devices.fetching.pop(device, None)
        # The manifest goes first: the device verifies the refusal with the key in it.
        self.driver.answer_hello(device, incarnation)
        self.publisher.send(device, refused)

    def remove(self, device: str, now: float, *, by_itself: bool = True, reason: str = "") -> None:
        """Count a device as offline, until it says hello again; `reason` is what it says."""
        log.event("left", device=device, reason=reason or None)
        self.devices.set_offline(device)
        self.receiver.uploads.leave(device)
        self.driver.handle(round_events.Left(device, by_itself=by_itself), now)

    def _handle_state(
        self, device: str, state: DeviceState, signed: wire.Signed, now: float
    ) -> None:
        """Note the progress of a device that has not said hello, or why it is offline.

        Without a registry, anybody may claim the name of a device that has not joined; only the log
        shows it.
        """
        enrolled, key = self.admission.enrolled, self.admission.key_of(device)
        if enrolled is not None and device not in enrolled:
            return
        encoding = state.encoding if state.online else None
        if encoding is None:
            self.devices.note_encoding(device, None, now)
            if not state.online and (key is not None or not state.reason):
                if key is not None and state.reason:
                    signed.check(key)
                self.devices.note_away(device, state)
            return
        if key is not None:
            signed.check(key)
        if self.devices.note_encoding(device, state, now):
            log.event("device_encodes", device=device, done=encoding.done, total=encoding.total)

    def _handle_hello(self, device: str, hello: Hello, now: float) -> None:
        refused = self.admission.admit(device, hello)
        if refused is not None:
            self.refuse(device, refused, hello.boot, now)
            return
        # One epoch belongs to one run. So another run with the same epoch comes from another
        # journal.
        is_other = hello.run not in ("", self.run_state.run.id)
        knows_later = is_other or hello.closed > self.run_state.model.round
        if hello.epoch > self.publisher.epoch or (
            hello.epoch == self.publisher.epoch and knows_later
        ):
            self._raise_epoch(device, hello.epoch)
        roles = hello.capabilities.roles
        if not self.devices.is_online(device):
            log.event("joined", device=device, domain=hello.domain, roles="+".join(roles) or None)
        self.devices.set_online(device, hello)
        self.devices.saw(device, now)
        joined = round_events.Joined(device, "train" in roles, "evaluate" in roles)
        self.driver.handle(joined, now)
        self.driver.answer_hello(device, hello.boot)

    def _refuse_revision(self, device: str, error: OtherRevisionError, now: float) -> None:
        """Refuse the hello of a device whose messages have another revision.

        If they have one, the device compares it itself, and gets no answer.
        """
        sender = error.introduction()
        known = self.admission.key_of(device)
        if error.sender != device or sender.key != (sender.key if known is None else known):
            raise error
        if known is None and self.admission.registry is not None:
            raise error
        reason = difference(error.revision, "the device", "the coordinator")
        log_device_refused(self.refusals.add(device, "", reason, now))
        if self.admission.registry is not None:
            self.devices.unfit[device] = reason
        if error.revision == UNNUMBERED:
            refused, size = Refused(reason, "run", key=sender.key), self.admission.fleet_size
            self.publisher.refuse_unnumbered(device, sender.boot, refused, self.driver.state, size)

    def _raise_epoch(self, device: str, epoch: int) -> None:
        """Raise the epoch above one that the fleet knows: this journal is new, or an old copy."""
        if epoch - self.publisher.epoch > _EPOCHS_AT_ONCE:
            raise PeerError(
                f"a hello with epoch {epoch}, too far above this epoch {self.publisher.epoch}"
            )
        self.publisher.epoch = self.run_state.journal.next_epoch(above=epoch)
        log.event("epoch_raised", device=device, epoch=self.publisher.epoch)
        self.publisher.publish_state(online=True)
        self.driver.publish_manifest()

    def _handle_chunk(self, device: str, chunk: bytes, now: float) -> None:
        try:
            arrival = self.receiver.receive_chunk(device, chunk, now)
        except UnfitError as error:
            self.driver.reject(device, error, now)
            raise
        if arrival is not None:
            self.driver.handle(arrival.event, now, arrival)

    def _handle_want(self, device: str, want: Want, now: float) -> None:
        self.driver.handle(round_events.Heard(device), now)
        # A want for another model is ignored: the manifest that replaces that model is on its way.
        version = self.run_state.version
        if want.sha256 == version and self.devices.grant_model(device, version, now):
            self.publisher.send_wanted(want.missing)

    def _handle_report(self, device: str, report: Report, now: float) -> None:
        run_state = self.run_state
        if report.device != device:
            raise PeerError(f"a report of device {report.device!r}")
        if report.run != run_state.run.id:
            return  # it is late: a device repeats its last report until another run begins
        if report.round > run_state.model.round:
            raise PeerError(f"a report on round {report.round}, which is not closed yet")
        if report.round == run_state.model.round and report.model != run_state.version:
            raise PeerError(f"a report on another model than that of round {report.round}")
        check_possible(report)
        run_state.journal.reports.add(report)
        self.devices.reports[device] = report.to_json()
        log.event("report", device=device, round=report.round, **report.accuracy)
        self.driver.handle(round_events.Reported(device, report.round), now)


def log_device_refused(line: Line | None) -> None:
    """Write a line on refused devices, if there is one."""
    if line is not None:
        log.event("device_refused", device=line.sender, reason=line.reason, count=line.count)
