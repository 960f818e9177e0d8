"""Execution of the round machine's actions: keep contributions, close rounds, announce them.

Laws:
- A contribution that the receiver checked is added to the sum and on disk before it is
  acknowledged, and before its round is closed.
- If the contributions of every device are refused again and again, the run ends with an error
  instead of trying forever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fedclip_edge import log
from fedclip_edge.coordinator import attendance, phase_open, round_events, round_machine
from fedclip_edge.coordinator.admission import Admission
from fedclip_edge.coordinator.devices import Devices
from fedclip_edge.coordinator.journal_tables import LastContribution
from fedclip_edge.coordinator.publisher import Publisher
from fedclip_edge.coordinator.receiver import Arrival, Receiver, UnfitError
from fedclip_edge.coordinator.round_state import RoundState
from fedclip_edge.coordinator.run_state import RunState
from fedclip_edge.errors import RunError
from fedclip_edge.protocol.messages import Kept

# The most contributions that are put on disk together, and the longest time that one waits for it.
_HELD = 32
_HELD_S = 0.1
_NAMES = 10  # an event names so many devices at most

_Handler = Callable[["RoundDriver", Any, float], round_events.Event | None]


@dataclass(eq=False)
class RoundDriver:
    """The rounds of one run.

    `finished` is set once every round is closed, the evaluation of the last model is over and the
    model file is written; or once the run is abandoned.
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
    # Contributions in the sum that are acknowledged once they are on disk, by device.
    _held: dict[str, Kept] = field(default_factory=dict)
    _held_at: float = 0.0  # when the first of them came

    def handle(self, event: round_events.Event, now: float, arrival: Arrival | None = None) -> None:
        """Handle an event and everything that follows from it; `now` is monotonic, in seconds.

        For an `Arrived` event, `arrival` is required. Raises RunError if the contributions of all
        devices were refused in ATTEMPTS attempts, or if another coordinator took over the journal;
        JournalError on a disk error.
        """
        events = deque([event])
        while events:
            state, actions = round_machine.step(self.state, events.popleft(), now)
            for action in actions:
                if isinstance(action, round_events.Keep):
                    assert arrival is not None
                    sha256 = state.kept[action.device]
                    norm = self.run_state.keep(arrival.contribution, sha256, arrival.payload)
                    size_bytes, is_vote = len(arrival.payload), self.state.is_vote
                    self.devices.add_contribution(
                        action.device, size_bytes, None if is_vote else norm
                    )
                    log.event(
                        "kept",
                        device=action.device,
                        round=arrival.contribution.round,
                        norm=norm,
                        weight=arrival.contribution.update.weight,
                    )
            self.state = state
            for action in actions:
                following = self.perform(action, now)
                if following is not None:
                    events.append(following)

    def hold(self, now: float) -> None:
        """Let contributions wait for `sync` from now on; one that has waited for long is synced."""
        if self._held and (len(self._held) >= _HELD or now - self._held_at >= _HELD_S):
            self.sync()
        self.run_state.journal.hold()

    def sync(self) -> None:
        """Put the contributions that wait on disk, then acknowledge them.

        Raises RunError and JournalError as `handle` does.
        """
        self.run_state.journal.sync()
        held, self._held = self._held, {}
        for device, kept in held.items():
            self.publisher.send(device, kept)

    def perform(self, action: round_events.Action, now: float) -> round_events.Event | None:
        """Carry out one action of the round machine; returns the event that follows, if any."""
        return self._HANDLERS[type(action)](self, action, now)

    def reject(self, device: str, error: UnfitError, now: float) -> None:
        """Record a refused contribution; the refusal was already sent to its device."""
        self._last_refusal = f"{device}: {error}"
        self.handle(round_events.Rejected(device, error.round), now)

    def pause(self, now: float, *, paused: bool) -> None:
        """Open no further round, or open rounds again; `now` is monotonic, in seconds."""
        self.run_state.journal.runs.pause(self.run_state.run.id, paused=paused)
        self.handle(round_events.Pause(paused), now)

    def extend(self, rounds: int, now: float) -> None:
        """Change the plan's number of rounds; a training round must be open, or open next."""
        self.run_state.extend(rounds)
        after = self.run_state.upcoming
        self.handle(round_events.Extend(len(after.steps), after.votes), now)

    def close_early(self, now: float) -> None:
        """Close the round with the contributions that are kept, if there are any."""
        self.sync()
        self.handle(round_events.CloseEarly(), now)

    def end_early(self, now: float) -> None:
        """End the run with the model of the last closed round."""
        self.sync()
        if self.state.phase != "final":
            closed = self.run_state.model.round
            self.run_state.journal.runs.end_early(self.run_state.run.id, closed)
            self.receiver.uploads.release_all()
        self.handle(round_events.EndEarly(), now)

    def abandon(self, now: float) -> None:
        """End the run without a model file."""
        self.sync()
        self.run_state.abandon()
        self.receiver.uploads.release_all()
        self.finished = True
        self.handle(round_events.GiveUp(), now)

    def publish_manifest(self) -> None:
        """Publish the manifest to all devices."""
        self.publisher.publish_manifest(self.state, self.admission.fleet_size)

    def answer_hello(self, device: str, incarnation: str) -> None:
        """Send the manifest to one device, as the answer to the hello of this incarnation."""
        self.sync()  # the answer names the contribution that is kept
        size = self.admission.fleet_size
        self.publisher.answer_hello(device, incarnation, self.state, size)

    def _announce(self, action: round_events.Announce, now: float) -> None:
        self._opened_at = now
        self.publish_manifest()
        if self.state.phase != "done":
            self.publisher.broadcast_model()

    def _remind(self, action: round_events.Remind, now: float) -> None:
        self.answer_hello(action.device, self.devices.incarnations.get(action.device, ""))

    def _forget(self, action: round_events.Forget, now: float) -> None:
        log.event("given_up", device=action.device)
        self.devices.set_offline(action.device)
        self.receiver.uploads.release(action.device)

    def _missed(self, action: round_events.Missed, now: float) -> None:
        log.event(
            "missed",
            device=action.device,
            round=self.state.round,
            reason=action.reason,
            left_out=action.left_out,
        )

    def _restored(self, action: round_events.Restored, now: float) -> None:
        log.event("counts_again", device=action.device, round=self.state.round)

    def _waiting(self, action: round_events.Waiting, now: float) -> None:
        missing = [f"{device} ({why})" for device, why in self.missing(action, now)]
        log.event(
            "waiting",
            round=self.state.round,
            phase=self.state.phase,
            needs=action.needs,
            has=action.has,
            missing=_listed(missing),
            more=_more(missing),
        )

    def missing(self, action: round_events.Waiting, now: float) -> list[tuple[str, str]]:
        """The devices that the run waits for, sorted, each with its state in words."""
        names = set(action.missing)
        if self.state.phase == "gathering":
            # It is not known yet which of these devices train.
            names |= self.devices.encoding.keys()
            names |= (self.admission.enrolled or frozenset()) - self.devices.keys.keys()
        return [(device, self._last_seen(device, now)) for device in sorted(names)]

    def _last_seen(self, device: str, now: float) -> str:
        state = self.devices.encoding.get(device)
        if state is not None and state.encoding is not None:
            kind = "paused; encoding" if state.activity == "paused" else "encoding"
            return f"{kind}: {state.encoding.done} of {state.encoding.total} pictures"
        if device in self.devices.unfit:
            return "refused in this run"
        if (away := self.devices.away.get(device)) is not None:
            return f"{'paused' if away.activity == 'paused' else 'offline'}: {away.reason}"
        seen_s = self.devices.seen_s(device, now)
        return "not seen" if seen_s is None else f"last seen {seen_s:.0f} s ago"

    def _abandon(self, action: round_events.Abandon, now: float) -> None:
        raise RunError(
            f"round {self.state.round} reached no quorum in {phase_open.ATTEMPTS} attempts, and "
            "the contributions of all training devices are refused; the last one: "
            f"{self._last_refusal}; change [plan], and add --new-run to `serve`"
        )

    def _request_upload(self, action: round_events.Upload, now: float) -> None:
        self.receiver.uploads.request(action.device)
        self.receiver.request_missing(now)

    def _keep(self, action: round_events.Keep, now: float) -> None:
        if self.run_state.journal.is_holding:
            self._held_at = self._held_at if self._held else now
            self._held[action.device] = self.receiver.kept(action.device)
        else:
            self.publisher.send(action.device, self.receiver.kept(action.device))
        self.receiver.request_missing(now)

    def _acknowledge(self, action: round_events.Acknowledge, now: float) -> None:
        if action.device not in self._held:
            self.publisher.send(action.device, self.receiver.kept(action.device))
        self.receiver.request_missing(now)

    def _drop(self, action: round_events.Drop, now: float) -> None:
        log.event("contribution_dropped", device=action.device, reason=action.reason)
        self.receiver.refuse(action.device, action.reason)

    def _close_round(self, action: round_events.CloseRound, now: float) -> round_events.Closed:
        self.sync()
        done = self.run_state.close_round(decided=action.has_quorum, lasts=self._of_absent())
        self._last_refusal = ""
        run, closed = self.run_state.run, self.run_state.model.round
        log.event(
            "round_closed",
            round=closed,
            rounds=self.state.rounds,
            contributions=len(self.state.kept),
            cohort=len(self.state.cohort),
            updates_bytes=self.run_state.journal.contributions.kept_bytes(run.id, closed),
            model_bytes=self.run_state.blob.size_bytes,
            seconds=round(now - self._opened_at, 3),
        )
        if done.counted_last:
            log.event(
                "last_counted",
                round=closed,
                absent=_listed(done.counted_last),
                more=_more(done.counted_last),
            )
        if done.dropped:
            log.event(
                "sums_dropped",
                count=done.dropped,
                hint="raise keep_sums_mb in fleet.toml; without them `forget` cannot compute the "
                'model again, and absent = "last" does not count their devices',
            )
        self.receiver.uploads.release_all()
        return round_events.Closed()

    def _of_absent(self) -> list[LastContribution]:
        """The last contributions of the devices that are absent from the open round."""
        every = {last.device: last for last in self.run_state.last_contributions()}
        absent = attendance.absent(self.state, every.keys()) - self.devices.unfit.keys()
        admitted = self.admission.enrolled
        return [
            last
            for device, last in every.items()
            if device in absent and (admitted is None or device in admitted)
        ]

    def _finish(self, action: round_events.Finish, now: float) -> None:
        path = self.run_state.finish()
        self.finished = True
        log.event("model_written", path=path)

    # A handler returns the event that follows from its action, or None.
    _HANDLERS: ClassVar[Mapping[type[round_events.Action], _Handler]] = {
        round_events.Announce: _announce,
        round_events.Remind: _remind,
        round_events.Forget: _forget,
        round_events.Missed: _missed,
        round_events.Restored: _restored,
        round_events.Waiting: _waiting,
        round_events.Abandon: _abandon,
        round_events.Upload: _request_upload,
        round_events.Keep: _keep,
        round_events.Acknowledge: _acknowledge,
        round_events.Drop: _drop,
        round_events.CloseRound: _close_round,
        round_events.Finish: _finish,
    }


def _listed(names: Sequence[str]) -> str | None:
    """The first _NAMES names, for a field of an event."""
    return ", ".join(names[:_NAMES]) or None


def _more(names: Sequence[str]) -> int | None:
    """The number of names that `_listed` leaves out; None for 0."""
    return len(names) - _NAMES if len(names) > _NAMES else None
