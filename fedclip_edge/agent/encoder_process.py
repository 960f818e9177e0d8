"""The encoder process of a device: a child of the agent that puts features into its cache.

Laws:
- It runs only while there are pictures to encode, or files that may be new pictures, and IDLE_S
  after that. So an agent that waits has no encoder in its memory.
- Many pictures are several requests, of about SLICE_S each, so that a new picture need not wait for
  all of them.
- A picture on which the process dies again and again is skipped, like one that cannot be decoded;
  the others are encoded.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fedclip_edge.agent.encoding import Encoded
from fedclip_edge.agent.limits import of_child, within
from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.config.limits import Limits
from fedclip_edge.errors import FedclipError, WorkerError
from fedclip_edge.processes.children import Children
from fedclip_edge.processes.worker import PausedError, Worker
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.datasets import Picture
from fedclip_edge.vision.embedding import Progress

SLICE_S = 2.0
_FIRST_SLICE = 16  # pictures
_LONGEST_SLICE = 4096
_HANGS_S = 3600.0  # for one slice; TensorRT builds an engine for minutes first
_FATAL = 3  # so many pictures in a row on which the process dies: it is not the pictures


class EncoderProcess:
    """The encoder process of one bundle; `encode` starts it when it is needed."""

    def __init__(
        self,
        children: Children,
        bundle: Bundle,
        config: EncoderConfig,
        cache: Path,
        limits: Callable[[], Limits] = Limits,
    ) -> None:
        self.worker = Worker(
            children,
            "encoder",
            "fedclip_edge.agent.encoding:Encoding",
            lambda: (bundle, within(config, limits()), cache),
            limits=lambda: of_child(limits()),
        )
        # Called between two slices, when the process is free for another request.
        self.between: Callable[[], None] = lambda: None
        self._fatal = 0  # pictures in a row on which the process died

    def load(self) -> None:
        """Start the process, if it does not run, and load the encoder before a picture needs it.

        An error is not raised: it comes again with the first picture.
        """
        if self.worker.is_busy or self.worker.is_running or self.worker.is_paused():
            return
        with contextlib.suppress(FedclipError):
            self.worker.ask("load", deadline_s=_HANGS_S)

    def encode(self, pictures: Sequence[Picture], progress: Progress | None = None) -> Encoded:
        """Put the features of `pictures` into the cache, if they are not in it.

        `progress` is called with the numbers of pictures that are done, and of all. Raises the
        errors of `Encoding.encode`. Raises WorkerError if the process dies on each picture, and
        PausedError after a long pause; what is encoded until then is in the cache.
        """
        encoded, skipped, size, done = 0, dict[str, str](), _FIRST_SLICE, 0
        while done < len(pictures):
            slice_ = pictures[done : done + size]
            began = time.monotonic()
            found = self._slice(slice_, _from(done, len(pictures), progress))
            encoded += found.encoded
            skipped.update(found.skipped)
            done += len(slice_)
            if progress is not None:
                progress(done, len(pictures))
            took_s = max(time.monotonic() - began, 1e-3)
            size = min(max(_FIRST_SLICE, int(len(slice_) * SLICE_S / took_s)), _LONGEST_SLICE)
            if done < len(pictures):
                self.between()
        return Encoded(encoded, skipped)

    def _slice(self, pictures: Sequence[Picture], progress: Progress | None) -> Encoded:
        try:
            found: Encoded = self.worker.ask(
                "encode", pictures, progress=progress, deadline_s=_HANGS_S
            )
        except PausedError:
            raise  # it is not the pictures
        except WorkerError as error:
            if len(pictures) > 1:  # find the one that it died on
                half = len(pictures) // 2
                first, second = (
                    self._slice(some, None) for some in (pictures[:half], pictures[half:])
                )
                return Encoded(first.encoded + second.encoded, {**first.skipped, **second.skipped})
            self._fatal += 1
            if self._fatal >= _FATAL:
                self._fatal = 0
                raise
            return Encoded(0, {pictures[0].hash: str(error).partition(";")[0]})
        self._fatal = 0
        return found


def _from(done: int, total: int, progress: Progress | None) -> Progress | None:
    """The progress within a slice, as that of all pictures."""
    if progress is None:
        return None
    return lambda now, _: progress(done + now, total)
