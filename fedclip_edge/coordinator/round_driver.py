"""What comes of an event in a run: `round_machine.py` decides, and this keeps, combines and announces.

Laws:
- A contribution that was checked (`receiver.py`) is on disk before it is added, and added before it
  is acknowledged.
- A round whose contributions are refused again and again ends the run, and is not tried for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedclip_edge import log
from fedclip_edge.coordinator import round_events, round_machine
from fedclip_edge.coordinator.admission import Admission
from fedclip_edge.coordinator.publisher import Announcer
from fedclip_edge.coordinator.receiver import Arrival, Receiving, UnfitError
from fedclip_edge.coordinator.run_state import Ledger
from fedclip_edge.errors import RunError

# The same seed trains to the same bytes: what is refused this often is refused for ever.
_ATTEMPTS = 5


@dataclass(eq=False)
class Conducting:
    """One run's rounds. `finished` once every round is closed and the last model evaluated."""

    state: round_machine.State
    ledger: Ledger
    voice: Announcer
    receiving: Receiving
    admission: Admission
    boots: dict[str, str] = field(default_factory=dict)  # of who is here: its process's boot
    finished: bool = False
    _opened_at: float = 0.0
    _last_refusal: str = ""  # of a contribution to the open round

    def step(self, event: round_events.Event, now: float, arrival: Arrival | None = None) -> None:
        """Does all that follows from the event; with an `Arrived` comes what arrived.

        Raises RunError where no attempt at the round found a quorum.
        """
        state, actions = round_machine.step(self.state, event, now)
        for action in actions:
            if isinstance(action, round_events.Keep):
                assert arrival is not None
                sha256 = state.kept[action.device]
                self.ledger.keep(arrival.contribution, sha256, arrival.body)
        self.state = state
        for action in actions:
            self._do(action, now)

    def reject(self, device: str, error: UnfitError, now: float) -> None:
        """What the device sent does not fit, and it has been told."""
        self._last_refusal = f"{device}: {error}"
        self.step(round_events.Rejected(device, error.round), now)

    def say_manifest(self) -> None:
        """To all."""
        self.voice.say_manifest(self.state, self.admission.devices)

    def answer(self, device: str, boot: str) -> None:
        """Tells one device where the run stands."""
        self.voice.answer(device, boot, self.state, self.admission.devices)

    def _do(self, action: round_events.Action, now: float) -> None:
        if isinstance(action, round_events.Announce):
            self._announce(now)
        elif isinstance(action, round_events.Remind):
            self.answer(action.device, self.boots.get(action.device, ""))
        elif isinstance(action, round_events.Forget):
            log.event("given_up", device=action.device)
            self.boots.pop(action.device, None)
            self.receiving.uploads.release(action.device)
        elif isinstance(action, round_events.Upload):
            self.receiving.uploads.request(action.device)
            self.receiving.ask_due(now)
        elif isinstance(action, round_events.Keep | round_events.Acknowledge):
            self.receiving.say_kept(action.device)
            self.receiving.ask_due(now)
        elif isinstance(action, round_events.Drop):
            log.event("contribution_dropped", device=action.device, reason=action.reason)
            self.receiving.refuse(action.device, action.reason)
        elif isinstance(action, round_events.CloseRound):
            self._close_round(now)
        else:
            path = self.ledger.finish()
            self.finished = True
            log.event("model_written", path=path)

    def _close_round(self, now: float) -> None:
        self.ledger.close_round()
        self._last_refusal = ""
        run, closed = self.ledger.run, self.ledger.model.round
        log.event(
            "round_closed",
            round=closed,
            rounds=run.plan.rounds,
            contributions=len(self.state.kept),
            cohort=len(self.state.cohort),
            updates_bytes=self.ledger.store.kept_bytes(run.id, closed),
            model_bytes=self.ledger.parcel.size_bytes,
            seconds=round(now - self._opened_at, 3),
        )
        self.receiving.uploads.release_all()
        self.step(round_events.Closed(), now)

    def _announce(self, now: float) -> None:
        self._opened_at = now
        if self._last_refusal and self.state.attempt >= _ATTEMPTS:
            raise RunError(
                f"round {self.state.round} found no quorum in {_ATTEMPTS} attempts; the last "
                f"contribution was refused: {self._last_refusal}; change [plan] and begin anew"
            )
        self.say_manifest()
        if self.state.phase != "done":
            self.voice.say_model()
