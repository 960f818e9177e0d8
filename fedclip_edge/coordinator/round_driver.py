"""Execution of the round machine's actions: keep contributions, close rounds, announce them.

Laws:
- A contribution that the receiver checked is on disk before it is added to the sum, and added
  before it is acknowledged.
- If a round has no quorum after _ATTEMPTS attempts and a contribution to it was refused, the run
  ends with an error instead of trying forever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedclip_edge import log
from fedclip_edge.coordinator import round_events, round_machine
from fedclip_edge.coordinator.admission import Admission
from fedclip_edge.coordinator.devices import Devices
from fedclip_edge.coordinator.publisher import Publisher
from fedclip_edge.coordinator.receiver import Arrival, Receiver, UnfitError
from fedclip_edge.coordinator.round_state import RoundState
from fedclip_edge.coordinator.run_state import RunState
from fedclip_edge.errors import RunError

# Training is deterministic: a contribution that was refused this often will always be refused.
_ATTEMPTS = 5

_Handler = Callable[["RoundDriver", Any, float], round_events.Event | None]


@dataclass(eq=False)
class RoundDriver:
    """The rounds of one run.

    `finished` is set once every round is closed, the evaluation of the last model is over and the
    model file is written.
    """

    state: RoundState
    run_state: RunState
    publisher: Publisher
    receiver: Receiver
    admission: Admission
    devices: Devices
    finished: bool = False
    _opened_at: float = 0.0
    _last_refusal: str = ""  # of a contribution to the open round

    def handle(self, event: round_events.Event, now: float, arrival: Arrival | None = None) -> None:
        """Handle an event and everything that follows from it; `now` is monotonic, in seconds.

        For an `Arrived` event, `arrival` is required. Raises RunError if a contribution to the
        round was refused and _ATTEMPTS attempts reached no quorum, or if another coordinator took
        over the journal; JournalError on a disk error.
        """
        events = deque([event])
        while events:
            state, actions = round_machine.step(self.state, events.popleft(), now)
            for action in actions:
                if isinstance(action, round_events.Keep):
                    assert arrival is not None
                    sha256 = state.kept[action.device]
                    self.run_state.keep(arrival.contribution, sha256, arrival.payload)
            self.state = state
            for action in actions:
                following = self.perform(action, now)
                if following is not None:
                    events.append(following)

    def perform(self, action: round_events.Action, now: float) -> round_events.Event | None:
        """Carry out one action of the round machine; returns the event that follows, if any."""
        return self._HANDLERS[type(action)](self, action, now)

    def reject(self, device: str, error: UnfitError, now: float) -> None:
        """Record a refused contribution; the refusal was already sent to its device."""
        self._last_refusal = f"{device}: {error}"
        self.handle(round_events.Rejected(device, error.round), now)

    def publish_manifest(self) -> None:
        """Publish the manifest to all devices."""
        self.publisher.publish_manifest(self.state, self.admission.fleet_size)

    def answer_hello(self, device: str, incarnation: str) -> None:
        """Send the manifest to one device, as the answer to the hello of this incarnation."""
        size = self.admission.fleet_size
        self.publisher.answer_hello(device, incarnation, self.state, size)

    def _announce(self, action: round_events.Announce, now: float) -> None:
        self._opened_at = now
        if self._last_refusal and self.state.attempt >= _ATTEMPTS:
            raise RunError(
                f"round {self.state.round} reached no quorum in {_ATTEMPTS} attempts; the last "
                f"contribution was refused: {self._last_refusal}; change [plan], and start a new "
                "run by setting 'journal' to a new file"
            )
        self.publish_manifest()
        if self.state.phase != "done":
            self.publisher.broadcast_model()

    def _remind(self, action: round_events.Remind, now: float) -> None:
        self.answer_hello(action.device, self.devices.incarnations.get(action.device, ""))

    def _forget(self, action: round_events.Forget, now: float) -> None:
        log.event("given_up", device=action.device)
        self.devices.set_offline(action.device)
        self.receiver.uploads.release(action.device)

    def _request_upload(self, action: round_events.Upload, now: float) -> None:
        self.receiver.uploads.request(action.device)
        self.receiver.request_missing(now)

    def _acknowledge(
        self, action: round_events.Keep | round_events.Acknowledge, now: float
    ) -> None:
        self.receiver.acknowledge(action.device)
        self.receiver.request_missing(now)

    def _drop(self, action: round_events.Drop, now: float) -> None:
        log.event("contribution_dropped", device=action.device, reason=action.reason)
        self.receiver.refuse(action.device, action.reason)

    def _close_round(self, action: round_events.CloseRound, now: float) -> round_events.Closed:
        self.run_state.close_round()
        self._last_refusal = ""
        run, closed = self.run_state.run, self.run_state.model.round
        log.event(
            "round_closed",
            round=closed,
            rounds=run.plan.rounds,
            contributions=len(self.state.kept),
            cohort=len(self.state.cohort),
            updates_bytes=self.run_state.journal.kept_bytes(run.id, closed),
            model_bytes=self.run_state.blob.size_bytes,
            seconds=round(now - self._opened_at, 3),
        )
        self.receiver.uploads.release_all()
        return round_events.Closed()

    def _finish(self, action: round_events.Finish, now: float) -> None:
        path = self.run_state.finish()
        self.finished = True
        log.event("model_written", path=path)

    # A handler returns the event that follows from its action, or None.
    _HANDLERS: ClassVar[Mapping[type[round_events.Action], _Handler]] = {
        round_events.Announce: _announce,
        round_events.Remind: _remind,
        round_events.Forget: _forget,
        round_events.Upload: _request_upload,
        round_events.Keep: _acknowledge,
        round_events.Acknowledge: _acknowledge,
        round_events.Drop: _drop,
        round_events.CloseRound: _close_round,
        round_events.Finish: _finish,
    }
