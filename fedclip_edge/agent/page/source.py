"""Sources of the box's page: the files of the device, which its agent writes.

Laws:
- The page changes no file, except for the labels (`label_store.py`).
- It works while the agent does not run, and before the device has a bundle.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from fedclip_edge.agent.bundle_store import BundleStore, fetched_folder
from fedclip_edge.agent.now_file import Now, read_now
from fedclip_edge.agent.page.picture_map import PictureMap
from fedclip_edge.agent.rescan import INDEX
from fedclip_edge.agent.state_lock import LOCK
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.storage.lock import is_locked
from fedclip_edge.vision.bundle import Bundle


@dataclass(eq=False)
class Source:
    """The files of one device; `file` is its agent.toml. All methods read files, so they block."""

    config: AgentConfig
    file: Path
    pictures: PictureMap = field(init=False)
    _bundle: tuple[tuple[Path, int], Bundle] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.pictures = PictureMap(self.config.state_dir / INDEX)

    def state(self) -> tuple[Now | None, bool]:
        """Return what the agent wrote last, and True if it runs."""
        return read_now(self.config.state_dir), is_locked(self.config.state_dir / LOCK)

    def bundle(self) -> Bundle | None:
        """Return the bundle in use, whose encoder is not read; None if there is none yet.

        Raises BundleError if it is damaged.
        """
        store = BundleStore(fetched_folder(self.config.state_dir), self.config.bundle)
        with self._lock:
            folder = store.current
            if folder is None:
                return None
            key = folder, store.changed_at()
            if self._bundle is None or self._bundle[0] != key:
                found = store.read(reads_encoder=False)
                assert found is not None
                self._bundle = key, found
            return self._bundle[1]
