"""Assembly of a run's coordinator from the state in its journal."""

from __future__ import annotations

from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator.admission import Admission
from fedclip_edge.coordinator.coordinator import Coordinator
from fedclip_edge.coordinator.device_messages import DeviceMessages
from fedclip_edge.coordinator.devices import Devices
from fedclip_edge.coordinator.publisher import Publisher
from fedclip_edge.coordinator.receiver import Receiver
from fedclip_edge.coordinator.round_driver import RoundDriver
from fedclip_edge.coordinator.round_state import RoundState
from fedclip_edge.coordinator.run_state import RunState
from fedclip_edge.coordinator.slots import Slots
from fedclip_edge.coordinator.uploads import LEASE_S, Uploads
from fedclip_edge.pki.registry import Registry
from fedclip_edge.protocol.messages import Phase


def resume_coordinator(
    config: FleetConfig,
    run_state: RunState,
    publisher: Publisher,
    now: float,
    *,
    invited: frozenset[str] = frozenset(),
    registry: Registry | None = None,
    class_names: tuple[str, ...] = (),
) -> Coordinator:
    """Make the coordinator of a new or interrupted run; `now` is monotonic, in seconds.

    The first round waits for every device id in `invited`. Without a `registry` of enrolled devices
    the first key that each id uses is pinned. `class_names` are told to a device that has other
    classes. Raises JournalError if the journal cannot be read.
    """
    run, closed = run_state.run, run_state.model.round
    course = run_state.journal.runs.course(run.id)
    rounds = len(run_state.upcoming.steps) if course.ends_after is None else course.ends_after
    phase: Phase = "gathering" if closed < rounds else "final"
    phase = "done" if course.is_over else phase
    journal = run_state.journal
    votes = run_state.upcoming.votes
    devices = Devices(
        journal.devices.keys(run.id),
        reports=journal.reports.newest(run.id),
        sent=journal.contributions.sent(run.id, votes),
    )
    admission = Admission(
        run,
        run_state.journal,
        devices,
        registry,
        class_names,
        is_bundle_offered=publisher.deliveries is not None,
    )
    receiver = Receiver(
        run_state, publisher, Uploads(Slots(config.rules.upload_slots, LEASE_S)), devices
    )
    state = RoundState(
        run=run.id,
        rules=config.rules,
        rounds=rounds,
        votes=votes,
        round=min(closed + 1, rounds),
        phase=phase,
        paused=course.paused or course.state == "held",
        deadline=now + config.rules.deadline_s,
        gathering_since=now,
        # The run waits for devices from before the restart as if they had just gone offline. Until
        # they say hello, each of them may be a training device.
        absent=frozenset(admission.admitted),
        away_since=dict.fromkeys(admission.admitted, now),
        invited=invited,
        enrolled=admission.enrolled or frozenset(),
        kept=run_state.kept() if phase == "gathering" else {},
    )
    driver = RoundDriver(
        state, run_state, publisher, receiver, admission, devices, finished=course.is_over
    )
    messages = DeviceMessages(run_state, publisher, devices, admission, receiver, driver)
    return Coordinator(config, run_state, publisher, devices, admission, receiver, driver, messages)
