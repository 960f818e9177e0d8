"""Repeated reading of a device's picture folder while its agent runs.

Laws:
- The folder is read again when a run opens, before the device trains in it, and every RESCAN_S
  while no round is open. So every run uses the pictures that exist when it opens.
- If the pictures have changed, the device says hello again: its capabilities name their numbers.
- A device without labelled pictures takes part in runs too: it only receives their models.
- While a folder is away (`folder_guard.py`) or cannot be read, the device goes on with the pictures
  that it knows, and says so once.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fedclip_edge import log
from fedclip_edge.agent.answered_pictures import AnsweredPictures
from fedclip_edge.agent.encoding import Encode
from fedclip_edge.agent.features import CACHE, DevicePictures, prepare_pictures
from fedclip_edge.agent.folder_watch import FolderWatch
from fedclip_edge.agent.session import Session
from fedclip_edge.agent.trainer import LocalTrainer
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.errors import BundleError, DataError, DiskError, WorkerError
from fedclip_edge.processes.worker import PausedError
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.picture_files import labels_of
from fedclip_edge.vision.picture_index import PictureIndex

INDEX = "pictures.sqlite"  # in state_dir
RESCAN_S = 60.0
_AWAY_S = 10.0  # encoding that takes longer is not waited for: the device counts as offline


@contextmanager
def watched(
    config: AgentConfig, bundle: Bundle, answered: AnsweredPictures
) -> Iterator[FolderWatch]:
    """Watch the device's folders; the index of the watch is open until the end of the block.

    Pictures that are in `answered` are not new.

    Raises DataError if a file in state_dir is another program's, DiskError if it cannot be used.
    """
    index = PictureIndex(file=config.state_dir / INDEX)

    def forget(hashes: Sequence[str]) -> None:
        # While the cache cannot be written, the features stay; they harm nothing.
        with (
            contextlib.suppress(DataError, DiskError),
            FeatureCache(config.state_dir / CACHE) as cache,
        ):
            cache.forget(hashes)

    index.open()
    with (
        contextlib.closing(index),
        FolderWatch(
            config.data.folder,
            None if config.inbox is None else config.inbox.folder,
            index,
            labels_of(bundle.classes.names),
            answered.settled(),
            forget=forget,
        ) as watch,
    ):
        try:
            yield watch
        finally:
            with contextlib.suppress(DiskError):  # what is not saved is read again
                index.save()


def _do_nothing() -> None:
    """There is nothing else to do."""


@dataclass(eq=False)
class Rescan:
    """The rescans of one device; `now` is monotonic, in seconds."""

    config: AgentConfig
    bundle: Bundle
    encode: Encode
    trainer: LocalTrainer
    watch: FolderWatch
    read_at: float  # time of the last reading
    meanwhile: Callable[[], object] = _do_nothing  # called several times a second while it reads
    _run: str = ""  # the last run for which the folder was read
    _unread: str = ""  # why the folder could not be read

    def look(self, session: Session, now: float) -> None:
        """Read the folder again if that is due; errors of the encoder are passed on."""
        manifest = session.trust.manifest
        run = "" if manifest is None else manifest.run
        is_new = run != self._run
        is_busy = manifest is not None and manifest.phase in ("open", "final")
        if not is_new and (is_busy or now - self.read_at < RESCAN_S):
            return
        self._run, self.read_at = run, now
        if self.watch.is_away():
            return
        reading = _Reading(session)
        try:
            data = prepare_pictures(
                self.config,
                self.bundle,
                self.encode,
                reading.tell,
                self.watch.index,
                self.trainer.data,
                self.meanwhile,
            )
        except PausedError:
            self._run, self.read_at = "", -math.inf  # it is read again after the pause
            data = self.trainer.data
        except (BundleError, DataError, DiskError, WorkerError) as error:
            if str(error) != self._unread:
                self._unread = str(error)
                log.event("pictures_not_read", reason=str(error))
            data = self.trainer.data
        else:
            self._unread = ""
        if reading.is_away and not session.paused:
            session.publisher.publish_state(online=True)
        if data.sides is self.trainer.data.sides:
            self.trainer.data = data  # it may have other unlabelled pictures
            if not reading.is_away:
                return
        else:
            _log_change(self.trainer.data, data)
            self.trainer.use(data)
        session.renew_capabilities(time.monotonic())


@dataclass(eq=False)
class _Reading:
    """One reading of the folder; the device goes offline if it has to encode for long."""

    session: Session
    is_away: bool = False

    def __post_init__(self) -> None:
        self._began = time.monotonic()

    def tell(self, done: int, total: int) -> None:
        if not self.is_away and time.monotonic() - self._began >= _AWAY_S and done < total:
            self.is_away = True
            log.event("encoding_new_pictures", done=done, total=total)
            self.session.say_goodbye("it encodes new pictures")


def _log_change(before: DevicePictures, after: DevicePictures) -> None:
    known = {picture.hash for picture in before.found}
    found = {picture.hash for picture in after.found}
    if found != known:  # else there are features now for some that could not be read
        log.event("pictures_changed", added=len(found - known), removed=len(known - found))
