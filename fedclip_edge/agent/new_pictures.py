"""The way of a new picture from the folder to its answer.

The folder watch reports it, the encoder process computes its feature, and it is answered. This also
happens while a round trains.

Law: a picture that was found is answered once, also if the agent ends before that
(`answered_pictures.py`), or if the folder is away for a while.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedclip_edge import log
from fedclip_edge.agent.answered_pictures import AnsweredPictures
from fedclip_edge.agent.answering import Answering
from fedclip_edge.agent.encoder_process import EncoderProcess
from fedclip_edge.agent.feature_cache import with_cache
from fedclip_edge.agent.folder_watch import FolderWatch
from fedclip_edge.agent.session import Session
from fedclip_edge.errors import DataError
from fedclip_edge.processes.worker import PausedError
from fedclip_edge.records import F32
from fedclip_edge.vision.datasets import Picture


def _do_nothing() -> None:
    """Nothing has to be loaded."""


@dataclass(eq=False)
class NewPictures:
    """The new pictures of one device with one bundle.

    `load` is called once when files come, so that the encoder is loaded while they are written.
    """

    watch: FolderWatch
    answering: Answering
    answered: AnsweredPictures
    load: Callable[[], object] = _do_nothing
    _has_loaded: bool = False  # for the files that have come

    def look(self, session: Session | None, now: float) -> None:
        """Answer the pictures that came since the last call; `now` is monotonic, in seconds.

        It may be called again while it waits for features. Raises DiskError if a file in state_dir
        cannot be written, and the errors of `Answering.look`.
        """
        changes = self.watch.changes(now)
        self.answered.note(changes.old)
        self.answered.forget(changes.removed)
        if self.answered.is_first_start and self.watch.has_read_old():
            self.answered.end_first_start()
        self.answering.add(changes.new)
        if not self.watch.has_unknown_files:
            self._has_loaded = False
        elif not self._has_loaded:
            self._has_loaded = True
            self.load()
        self.answering.look(session, now)
        self.answered.note(self.answering.take_settled())
        self.answered.save(now)

    def end(self, now: float) -> None:
        """Answer the open events, and note what was answered."""
        self.answering.end(now)
        self.answered.note(self.answering.take_settled())
        self.answered.save(math.inf)


@dataclass(frozen=True, eq=False)
class EncodedFeatures:
    """Features by picture hash, from the encoder process through the cache of the device."""

    encoder: EncoderProcess
    cache: Path
    feature_key: str
    watch: FolderWatch

    def __call__(self, pictures: Sequence[Picture]) -> Mapping[str, F32] | None:
        """Return raw features float32 (D,); None while the encoder process pauses, or is busy.

        Pictures that cannot be decoded are logged and left out. So are those whose folder is away,
        without a line. Raises the errors of `EncoderProcess.encode`, and DataError if the cache has
        lost a feature meanwhile.
        """
        if self.encoder.worker.is_busy or self.encoder.worker.is_paused():
            return None
        try:
            skipped = self.encoder.encode(pictures).skipped
        except PausedError:
            return None
        if skipped:
            self.watch.is_away()  # looks at the folders now
        for one in pictures:
            if one.hash in skipped and not self.watch.is_absent(one.path):
                log.event("picture_skipped", picture=one.path, reason=skipped[one.hash])
        hashes = [one.hash for one in pictures]
        found = with_cache(self.cache, lambda cache: cache.get(hashes, self.feature_key))
        if not found.keys() | skipped.keys() >= set(hashes):
            raise DataError(f"{self.cache} was made anew after the pictures were encoded")
        return found
