"""The duties of an agent beside its part in a run; they go on while a child process works."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedclip_edge.agent.cache_quota import CacheQuota
from fedclip_edge.agent.encoding_link import EncodingLink
from fedclip_edge.agent.monitor import Monitor
from fedclip_edge.agent.new_pictures import NewPictures
from fedclip_edge.agent.now_file import NowFile
from fedclip_edge.agent.pause import Pause
from fedclip_edge.agent.session import Session
from fedclip_edge.agent.settings import Settings
from fedclip_edge.agent.state_lock import StateLock
from fedclip_edge.agent.working import follow
from fedclip_edge.pki.expiry import Expiry
from fedclip_edge.processes.systemd import SYSTEMD
from fedclip_edge.processes.worker import Worker

if TYPE_CHECKING:
    from fedclip_edge.web.on_demand import OnDemand

_TURN_S = 0.2


@dataclass(eq=False)
class Duties:
    """The duties of one agent; `look` does those that are due."""

    expiry: Expiry
    monitor: Monitor | None
    settings: Settings
    pause: Pause
    lock: StateLock
    page: OnDemand | None = None  # None without [page]
    now_file: NowFile | None = None  # None without [page]
    session: Session | None = None  # None until the agent has connected
    new_pictures: NewPictures | None = None  # None without a bundle
    quota: CacheQuota | None = None  # None until the pictures are known
    early: EncodingLink | None = None  # the link until there is a session
    _workers: list[Worker] = field(default_factory=list)

    def watch(self, worker: Worker, *, does_tasks: bool = False) -> None:
        """End this worker when it is idle, pause it, and do the duties while it works.

        While it `does_tasks` of the session, the session follows the run, too.
        """
        worker.meanwhile = self._look_and_follow if does_tasks else self.look
        worker.is_paused = self.pause.is_on
        self._workers.append(worker)

    def look(self) -> None:
        """Do what is due; to be called many times a second.

        Raises DiskError if state_dir has vanished, and the errors of `NewPictures.look`.
        It takes a few milliseconds, and as long as encoding if there are new pictures. Meanwhile
        the encoder's worker calls it again.
        """
        now = time.monotonic()
        SYSTEMD.turn()
        self.lock.look(now)
        if self.page is not None:
            self.page.look(now)
        self.settings.look()
        self.pause.look(now)
        if self.session is not None:
            self.session.pause(self.pause.reason, now)
        else:
            if self.pause.reason:
                SYSTEMD.status(f"pauses: {self.pause.reason}")
            if self.early is not None:
                self.early.pause(self.pause.reason)
        for worker in self._workers:
            worker.rest(now)
        if self.new_pictures is not None:
            self.new_pictures.look(self.session, now)
        if self.quota is not None:
            self.quota.look(now)
        if self.session is not None:
            self.expiry.look(now)
            if self.monitor is not None:
                self.monitor.look(self.session, now)
        if self.now_file is not None:
            self._tell(self.now_file, now)

    def _tell(self, file: NowFile, now: float) -> None:
        """Write the state of the agent, if that is due."""
        new = self.new_pictures
        model = None if new is None else new.answering.choice.current
        file.look(self.session, self.pause, model, now)

    def _look_and_follow(self) -> None:
        """Raise UnwantedError once nobody wants the result of the work, which then ends."""
        self.look()
        if self.session is not None and self.session.task is not None:
            follow(self.session)

    def wait(self) -> None:
        """Do the duties until the pause is over."""
        while self.pause.is_on():
            self.look()
            time.sleep(_TURN_S)

    def end(self) -> None:
        """End all workers, at once, and answer the events that are open."""
        if self.new_pictures is not None:
            self.new_pictures.end(time.monotonic())
        for worker in self._workers:
            worker.end()
