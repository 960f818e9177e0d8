"""The review of a device for its page: pictures to label, doubtful labels, and classes.

It is made from cached features (agent/review.py), in a thread, when somebody asks for it.

Laws:
- A review is made once for the same labels, features and model, unless it fails, and one at a
  time.
- Until a new one is there, the one before is shown.
- No picture is encoded: pictures without a feature are left out and counted.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedclip_edge.agent.features import CACHE
from fedclip_edge.agent.label_store import LABELS, confirmed_in
from fedclip_edge.agent.model_in_use import FLEET, OWN, model_choice
from fedclip_edge.agent.page.catalogue import Catalogue, Entry, Pictures, State, file_states
from fedclip_edge.agent.review import Review, Reviewed, make_review
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.errors import FedclipError
from fedclip_edge.processes import heap
from fedclip_edge.records import F32, normalized_name
from fedclip_edge.vision.bundle import Bundle, key_of
from fedclip_edge.vision.cache_state import cached_features
from fedclip_edge.vision.datasets import Picture
from fedclip_edge.vision.labels import UNLABELLED
from fedclip_edge.vision.picture_files import labels_of
from fedclip_edge.vision.provider_choice import kept_provider

MOST = 200  # pictures in each list


@dataclass(frozen=True)
class Lists:
    """The last review, and its state."""

    review: Review | None = None  # None before the first one
    without_feature: int = 0  # distinct pictures that it leaves out
    version: int = 0  # counts the reviews
    is_making: bool = False  # a newer one is being computed
    trouble: str = ""  # why there is no newer one


class ReviewMaker:
    """Makes the review of one device."""

    def __init__(self, config: AgentConfig, catalogue: Catalogue) -> None:
        self._config = config
        self._catalogue = catalogue
        self._lock = threading.Lock()
        self._made_from: tuple[object, ...] | None = None
        self._lists = Lists()
        self._thread: threading.Thread | None = None

    @property
    def now(self) -> Lists:
        """The last review; none is begun."""
        return self._lists

    def lists(self) -> Lists:
        """Return the last review, and begin a new one if something has changed since."""
        with self._lock:
            made_from = (self._catalogue.bundle, *self._states())
            if made_from != self._made_from and not self._lists.is_making:
                self._made_from = made_from
                self._lists = replace(self._lists, is_making=True)
                # The process waits for it: one that is torn down inside numpy would abort.
                self._thread = threading.Thread(target=self._make, name="review")
                self._thread.start()
            return self._lists

    def wait(self, timeout_s: float) -> None:
        """Wait until the review that is being made is finished."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _states(self) -> State:
        folder = self._config.state_dir
        manifest = [] if self._config.data.labels is None else [self._config.data.labels]
        return file_states(*(folder / name for name in (LABELS, CACHE, FLEET, OWN)), *manifest)

    def _make(self) -> None:
        try:
            pictures, bundle = self._catalogue.refresh(), self._catalogue.bundle
            if bundle is None:
                made = Lists(trouble=pictures.trouble)
            else:
                made = review_of(self._config, bundle, pictures)
        except FedclipError as error:
            made = replace(self._lists, is_making=False, trouble=f"{error}.")
            self._made_from = None  # it is tried again when somebody asks
        except BaseException:
            self._lists = replace(self._lists, is_making=False, trouble=_FAILED)
            raise
        self._lists = replace(made, version=self._lists.version + 1)
        heap.trim()


def review_of(config: AgentConfig, bundle: Bundle, pictures: Pictures) -> Lists:
    """Review the pictures that have features.

    Raises DataError if the cache is damaged, DiskError if it cannot be read, and ConfigError for a
    model of an unknown method.
    """
    numbers = labels_of(bundle.classes.names)
    entries = [entry for entry in pictures.entries if entry.has_feature]
    entries.sort(key=lambda entry: (not entry.label, str(entry.path)))
    rows = {entry.hash: row for row, entry in enumerate(entries)}
    encoder = kept_provider(bundle, config.encoder, config.state_dir)
    dim, file = bundle.manifest.dim, config.state_dir / CACHE
    missing: list[str] = []
    vectors = np.zeros((0, dim), np.float32)
    if rows:  # without, the file may be missing
        vectors, missing = cached_features(file, key_of(bundle, encoder), rows, dim)
    gone = set(missing)
    if gone:
        entries = [entry for entry in entries if entry.hash not in gone]
        vectors = vectors[[rows[entry.hash] for entry in entries]]
    count = sum(bool(entry.label) for entry in entries)
    labelled, unlabelled = (
        _reviewed(entries[part], numbers, vectors[part])
        for part in (slice(count), slice(count, None))
    )
    review = make_review(
        labelled,
        unlabelled,
        bundle.classes,
        model_choice(config, bundle).current,
        most=MOST,
        least=config.min_per_class,
        confirmed=confirmed_in(config.state_dir),
    )
    return Lists(review, len(pictures.entries) - len(entries))


def _reviewed(entries: Sequence[Entry], numbers: Mapping[str, int], vectors: F32) -> Reviewed:
    """Put entries together with their features `vectors` (N, D)."""
    pictures = tuple(
        Picture(
            entry.path,
            numbers[normalized_name(entry.label)] if entry.label else UNLABELLED,
            entry.hash,
        )
        for entry in entries
    )
    return Reviewed(pictures, vectors)


_FAILED = "The review failed; the log of the page has the reason."
