"""The features of unlabelled pictures that nothing else asks for, computed while there is time.

Such pictures were there at the first start, so they have no answer, and they take no part in runs.
With their features in the cache, `fedclip-edge review` finds them encoded.

Laws:
- The labelled pictures come first: their features are there before the agent connects.
- At most _AT_ONCE pictures are encoded in one call, and none while the encoder process has another
  request. The caller has nothing else to do.
- A picture that cannot be decoded is tried once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fedclip_edge import log
from fedclip_edge.agent.encoder_process import EncoderProcess
from fedclip_edge.agent.features import DevicePictures, missing_features
from fedclip_edge.agent.trainer import LocalTrainer
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.errors import FedclipError
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.datasets import Picture

_AT_ONCE = 8  # a new picture waits for no more than these
_SAID_S = 30.0  # between two lines of progress
_AGAIN_S = 60.0  # after an error, such as a full disk


@dataclass(eq=False)
class Backlog:
    """The unlabelled pictures of one device that have no features yet."""

    config: AgentConfig
    bundle: Bundle
    trainer: LocalTrainer
    encoder: EncoderProcess
    _data: DevicePictures | None = None  # the pictures that `_waiting` was made from
    _waiting: list[Picture] = field(default_factory=list)
    _skipped: set[str] = field(default_factory=set)  # hashes
    _done: int = 0
    _said_at: float = -math.inf
    _again_at: float = -math.inf
    _error: str = ""  # that the log has already

    def look(self, now: float) -> bool:
        """Encode a few pictures; False if there is nothing to do now. `now` is monotonic."""
        if self.encoder.worker.is_busy or now < self._again_at:
            return False
        try:
            self._take_stock(now)
            if not self._waiting:
                return False
            skipped = self.encoder.encode(self._waiting[:_AT_ONCE]).skipped
        except FedclipError as error:
            self._again_at = now + _AGAIN_S
            if str(error) != self._error:
                self._error = str(error)
                log.event("unlabelled_not_encoded", reason=self._error)
            return False
        for one in self._waiting[:_AT_ONCE]:
            if one.hash in skipped:
                self._skipped.add(one.hash)
                log.event("picture_skipped", picture=one.path, reason=skipped[one.hash])
        self._done += len(self._waiting[:_AT_ONCE])
        del self._waiting[:_AT_ONCE]
        self._error = ""
        if not self._waiting or now - self._said_at >= _SAID_S:
            self._say(now)
        return True

    def _take_stock(self, now: float) -> None:
        """Find the pictures without features, if the device's pictures have changed."""
        if self._data is self.trainer.data:
            return
        pictures = {one.hash: one for one in self.trainer.data.unlabelled}
        for one in self._skipped & pictures.keys():
            del pictures[one]
        self._waiting, _ = missing_features(self.config, self.bundle, pictures)
        self._data, self._done, self._said_at = self.trainer.data, 0, now

    def _say(self, now: float) -> None:
        self._said_at = now
        total = self._done + len(self._waiting)
        log.event("unlabelled_encoded", done=self._done, total=total)
