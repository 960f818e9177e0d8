"""The session of one device: it handles messages, and says which work is due.

It connects `serving.py`, which owns the pictures and the link, with the protocol. It does no I/O
except through the transport and the state file that it is given, and the clock is passed in (`now`,
monotonic, in seconds). So it also runs with an in-memory transport and a simulated clock.

Laws:
- It never trains or evaluates: it sets `task`, and its owner gives it the result (`working.py`).
  Meanwhile it handles messages and calls `act` as always, so the session follows the run.
- There is at most one task at a time. A result that nobody wants any more is dropped.
- A device joins a round only after the coordinator has answered this connection's hello: only that
  answer tells a device that joined late whether it is in the cohort.
- A device that pauses counts as offline at the coordinator, and does not work. It stays connected
  and follows the messages, so it can go on at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedclip_edge import log
from fedclip_edge.agent.activity import Activities, activity_of
from fedclip_edge.agent.coordinator_messages import CoordinatorMessages
from fedclip_edge.agent.evaluation_queue import EvaluationQueue
from fedclip_edge.agent.fetching import Fetching
from fedclip_edge.agent.greeting import Greeting
from fedclip_edge.agent.handshake import Handshake
from fedclip_edge.agent.model_download import ModelDownload
from fedclip_edge.agent.publisher import Publisher
from fedclip_edge.agent.round_work import RoundWork
from fedclip_edge.agent.run_part import RunPart
from fedclip_edge.agent.standby import Standby
from fedclip_edge.agent.state_db import StateDb
from fedclip_edge.agent.task import Task, Training
from fedclip_edge.agent.trust import Trust
from fedclip_edge.agent.upload import Upload
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.errors import PeerError
from fedclip_edge.protocol.messages import Manifest
from fedclip_edge.protocol.refusals import Line, Refusals
from fedclip_edge.records import Measured, Update
from fedclip_edge.transport.base import Connected, Disconnected, Event, Received, Transport


@dataclass(eq=False)
class Session:
    """The session of one device; `session_start.py` makes it."""

    config: AgentConfig
    transport: Transport
    state_db: StateDb
    publisher: Publisher
    trust: Trust
    handshake: Handshake
    greeting: Greeting
    messages: CoordinatorMessages
    download: ModelDownload
    upload: Upload
    evaluation_queue: EvaluationQueue
    fetching: Fetching
    part: RunPart
    work: RoundWork
    activities: Activities
    task: Task | None = None  # the work that is to be done
    _refused: int = 0  # messages
    _refusals: Refusals = field(default_factory=Refusals)  # for the log

    @property
    def standby(self) -> Standby:
        return self.part.standby

    @property
    def paused(self) -> str:
        """The reason why the device pauses; empty while it works."""
        return self.publisher.paused

    @property
    def finished(self) -> bool:
        """True once a run that this device took part in is done. The caller resets it."""
        return self.part.is_finished

    @finished.setter
    def finished(self, value: bool) -> None:
        self.part.is_finished = value

    @property
    def heard_at(self) -> float | None:
        """Time of the coordinator's last message that is trusted."""
        return self.messages.heard_at

    @property
    def refused_messages(self) -> int:
        """Number of messages and models that were refused so far."""
        return self._refused + self.fetching.refused_models

    def say_goodbye(self, reason: str = "") -> None:
        """Tell the coordinator that this device is going offline.

        `reason` says why, if it stays connected.
        """
        self.publisher.publish_state(online=False, reason=reason)

    def pause(self, reason: str, now: float) -> None:
        """Pause for this reason, or go on if it is empty; `now` is monotonic, in seconds."""
        if bool(reason) == bool(self.paused):
            return
        self.publisher.paused = reason
        self.publisher.publish_state(online=not reason, reason=reason)
        if not reason:
            self.greeting.begin_again(now)

    def renew_capabilities(self, now: float) -> None:
        """Say hello with what the learner can do now; `now` is monotonic, in seconds.

        Raises the errors of `learner.capabilities`.
        """
        self.publisher.capabilities = self.work.learner.capabilities()
        self.greeting.begin_again(now)

    def handle_event(self, event: Event, now: float) -> None:
        """Handle one event of the link, and send the answers that need no training or evaluation.

        Raises RefusedError if the coordinator refuses this device permanently; DiskError if the
        state file cannot be used.
        """
        if isinstance(event, Connected):
            self.handshake.start_link(now)
            self.upload.start_link(self.transport.packet_bytes())
            self.publisher.publish_state(online=not self.paused, reason=self.paused)
            self.greeting.say_hello(now)
        elif isinstance(event, Received):
            try:
                self.messages.handle(event.topic, event.payload, now)
            except PeerError as error:
                self._refused += 1
                _log_message_refused(self._refusals.add("", event.topic, str(error), now))
        elif isinstance(event, Disconnected):
            self.handshake.lose_link()
            if event.reason:
                log.event("link_lost", reason=event.reason)

    def act(self, now: float) -> bool:
        """Send what is due, and set `task` if there is none and one is due; False if nothing was.

        Raises DiskError if the state file cannot be used.
        """
        for line in self._refusals.poll(now):
            _log_message_refused(line)
        if not self.handshake.is_connected or self.paused:
            return False
        manifest = self.trust.manifest
        if manifest is not None and self._is_left_alone(manifest):
            log.event("run_ended_without_this_device", run=manifest.run)
            self.part.finish()
            return False
        if self.trust.older_end is not None and self.handshake.gets_no_answer:
            self.part.miss_end()
            return False
        if self.handshake.poll(now):
            self.greeting.repeat_hello(now)
        if manifest is not None and self.is_fetching_bundle:
            self.fetching.fetch_bundle(manifest, now)
            return False
        if manifest is None or not self.handshake.is_answered or not self.part.fits(manifest):
            return False
        has_model = self.download.has(manifest)
        self.activities.look(activity_of(self.task, has_model=has_model), now)
        if self._repeat_offer(now):
            return True
        self.fetching.fetch_model(manifest, now)
        if self.task is None:
            self.task = self.work.due(manifest, now)
            return self.task is not None
        return False

    @property
    def is_task_wanted(self) -> bool:
        """False once nobody wants the result of the task: drop it then."""
        manifest = self.trust.manifest
        if self.task is None or manifest is None or not self.part.fits(manifest):
            return False
        return self.work.is_wanted(self.task, manifest)

    def drop_task(self) -> None:
        """Have no task; `act` asks again for a result that is still wanted."""
        self.task = None

    def take_result(self, result: Update | Measured, now: float) -> None:
        """Take the result of the task, and drop it if nobody wants it any more.

        `now` is monotonic, in seconds. Raises DiskError if the state file cannot be written.
        """
        task, is_wanted = self.task, self.is_task_wanted
        self.task = None
        if task is None or not is_wanted:
            return
        if isinstance(task, Training):
            assert isinstance(result, Update)
            self.work.add_contribution(task, result, now)
            return
        assert isinstance(result, Measured)
        self.work.report(task, result)
        manifest = self.trust.manifest
        assert manifest is not None
        if manifest.phase == "done" and self.evaluation_queue.is_over(manifest):
            self.part.finish()

    def take_failure(self, reason: str, now: float) -> None:
        """Take no part in the run of the task, because the work for its plan fails here."""
        task, manifest, self.task = self.task, self.trust.manifest, None
        if task is not None and manifest is not None and manifest.run == task.manifest.run:
            self.part.stand_by(manifest, reason, now)

    @property
    def has_other_bundle(self) -> bool:
        """True once another bundle is in use: the session is to be made again."""
        bundles = self.fetching.bundles
        return bundles is not None and bundles.is_ready

    @property
    def is_fetching_bundle(self) -> bool:
        """True while the device fetches the bundle of the coordinator's run."""
        manifest = self.trust.manifest
        if manifest is None or self.part.has_its_bundle(manifest):
            return False
        return self.fetching.is_fetching_bundle(manifest)

    def _is_left_alone(self, manifest: Manifest) -> bool:
        """True if the run is done, and no coordinator is online to send its last model."""
        is_over = manifest.phase == "done" and self.trust.is_mine
        can_evaluate = self.handshake.is_answered and self.download.has(manifest)
        is_evaluating = self.task is not None and self.is_task_wanted
        return is_over and self.handshake.is_alone and not (can_evaluate or is_evaluating)

    def _repeat_offer(self, now: float) -> bool:
        offer = self.upload.poll_offer(now, sending=self.publisher.is_sending)
        if offer is not None:
            self.publisher.send(offer)
        return offer is not None


def _log_message_refused(line: Line | None) -> None:
    if line is not None:
        log.event("message_refused", topic=line.topic, reason=line.reason, count=line.count)
