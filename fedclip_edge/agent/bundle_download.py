"""Download of a run's bundle to a device that has another one, or none.

First comes the description, signed by the export key, then each file that the device does not have
already. The device goes on with what it has until everything is here and has passed its checks.

Laws:
- Nothing is fetched that the export key has not signed, or that is larger than its kind allows.
- A bundle that is refused is not fetched again by this process; the log says why, once.
- Files arrive on disk. A device that is restarted fetches only the chunks that it lacks.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedclip_edge import log
from fedclip_edge.agent.bundle_store import BundleStore
from fedclip_edge.agent.bundle_trial import Trial
from fedclip_edge.agent.download import Download
from fedclip_edge.agent.lost_parts import LostParts
from fedclip_edge.agent.part_file import PartFile
from fedclip_edge.errors import BundleError, PeerError
from fedclip_edge.pki.bundle_description import MAX_BYTES, Description, read_description
from fedclip_edge.protocol.message_parts import Blob
from fedclip_edge.protocol.messages import Want
from fedclip_edge.vision.bundle import read_bundle
from fedclip_edge.vision.manifest import ENCODER, MANIFEST, Manifest, read_manifest

_PROGRESS_S = 30.0
_DISK_AGAIN_S = 60.0
_SPARE_BYTES = 64 * 2**20  # left free on the disk


def _new_download() -> Download:
    return Download(_lost=LostParts("bundle"))


@dataclass(eq=False)
class BundleDownload:
    """The download of one device. `now` is monotonic, in seconds."""

    store: BundleStore
    export_key: str
    try_out: Callable[[Path], Trial]
    is_ready: bool = False  # another bundle is in use from now on
    _offered: Blob | None = None
    _description: Description | None = None
    _missing: dict[str, Blob] = field(default_factory=dict)  # files that are not here, by name
    _sources: dict[str, Path] = field(default_factory=dict)  # files that are here
    _part: PartFile | None = None  # of the first one in `_missing`
    _staged: Path | None = None
    _trial: Trial | None = None
    _refused: set[str] = field(default_factory=set)  # hashes of descriptions
    _again_at: float = 0.0  # after an error of the disk
    _told_at: float = 0.0
    _download: Download = field(default_factory=_new_download)

    def is_busy(self, offered: Blob | None) -> bool:
        """True while this bundle is being fetched or tried."""
        return offered is not None and offered.sha256 not in self._refused and not self.is_ready

    def receive_chunk(self, chunk: bytes, now: float) -> None:
        """Add one chunk; raises PeerError for a wrong one."""
        try:
            self._download.receive_chunk(chunk, now)
        except OSError as error:
            self._disk_failed(error, now)

    def poll(self, offered: Blob, now: float) -> Want | None:
        """Take the next step towards the bundle that the coordinator offers; the want to send now.

        Sets `is_ready` once the bundle is in use.
        """
        if not self.is_busy(offered) or now < self._again_at:
            return None
        try:
            if offered != self._offered:
                self._begin(offered, now)
            if self._description is None:
                return self._fetch_description(offered, now)
            if self._missing:
                return self._fetch_file(now)
            self._finish(self._description)
        except BundleError as error:
            self._refuse(offered, str(error))
        except OSError as error:
            self._disk_failed(error, now)
        return None

    def close(self) -> None:
        """Close the files; what has arrived stays on disk."""
        if self._part is not None:
            self._part.close()
            self._part = None

    def _begin(self, offered: Blob, now: float) -> None:
        self._forget()
        if offered.kind != "bundle" or offered.size_bytes > MAX_BYTES["bundle"]:
            raise BundleError(
                f"the coordinator offers a bundle's description of kind {offered.kind} with "
                f"{offered.size_bytes} bytes, limit {MAX_BYTES['bundle']}"
            )
        self._offered = offered
        self._download.expect(offered, now)
        self._download.hurry(now)

    def _fetch_description(self, offered: Blob, now: float) -> Want | None:
        self._download.expect(offered, now)
        if not self._download.has(offered):
            return self._download.poll_want(now)
        try:
            payload = self._download.assemble()
        except PeerError as error:
            raise BundleError(str(error)) from None
        described = read_description(payload, self.export_key)
        serial, newest = described.signature.serial, self.store.newest
        if serial <= newest:
            raise BundleError(
                f"the coordinator's bundle has the serial number {serial}, and this device has had "
                f"{newest}; if it is to have the older bundle again, sign that one again with "
                "`fedclip-edge bundle sign`"
            )
        self._plan(described, offered.chunk_bytes)
        return self._fetch_file(now) if self._missing else None

    def _plan(self, described: Description, chunk_bytes: int) -> None:
        """Decide which files are fetched."""
        have = self._own_files()
        blobs = described.blobs(chunk_bytes)
        self._sources = {n: have[b.sha256] for n, b in blobs.items() if b.sha256 in have}
        self._missing = {n: b for n, b in blobs.items() if n not in self._sources}
        size_bytes = sum(blob.size_bytes for blob in self._missing.values())
        self.store.parts.mkdir(parents=True, exist_ok=True)
        wanted = {f"{b.sha256}-{b.chunk_bytes}" for b in self._missing.values()}
        for entry in self.store.parts.iterdir():
            if entry.stem not in wanted:
                entry.unlink()  # of a bundle that is not offered any more
        there = sum(entry.stat().st_blocks * 512 for entry in self.store.parts.iterdir())
        if shutil.disk_usage(self.store.parts).free < size_bytes - there + _SPARE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.store.parts))
        self._description = described
        log.event(
            "bundle_fetching",
            serial=described.signature.serial,
            files=", ".join(self._missing) or None,
            size_bytes=size_bytes,
        )

    def _own_files(self) -> dict[str, Path]:
        """The files of the bundle in use, by their SHA-256."""
        folder = self.store.current
        if folder is None:
            return {}
        try:
            manifest: Manifest = read_manifest((folder / MANIFEST).read_bytes(), str(folder))
        except (BundleError, OSError):
            return {}
        return {str(digest): folder / name for name, digest in manifest.files.items()}

    def _fetch_file(self, now: float) -> Want | None:
        name, blob = next(iter(self._missing.items()))
        if self._part is None:
            self._part = PartFile(self.store.parts, blob)
            self._download.expect(blob, now, self._part)
            self._download.hurry(now)
        if not self._download.has(blob):
            self._tell(now)
            return self._download.poll_want(now)
        self._download.end()
        part, self._part = self._part, None
        try:
            part.check()
        except PeerError as error:
            log.event("bundle_file_damaged", file=name, reason=str(error))
            return None  # all of it is fetched again
        part.close()
        self._sources[name] = part.path
        del self._missing[name]
        return None

    def _finish(self, described: Description) -> None:
        """Put the bundle together, try it unless its encoder is in use already, and use it."""
        if self._trial is not None:
            found = self._trial.poll()
            if found is None:
                return
            self._trial = None
            if found:
                raise BundleError(found)
            self._switch(described)
            return
        self._staged = self.store.stage(described, self._sources)
        read_bundle(self._staged)  # class texts and golden vectors must fit the encoder
        in_use = self.store.current
        if in_use is not None and self._sources[ENCODER] == in_use / ENCODER:
            self._switch(described)
        else:
            log.event("bundle_tried", serial=described.signature.serial)
            self._trial = self.try_out(self._staged)

    def _switch(self, described: Description) -> None:
        assert self._staged is not None
        folder = self.store.switch(self._staged, described)
        self.is_ready = True
        log.event("bundle_switched", serial=described.signature.serial, bundle=folder)

    def _refuse(self, offered: Blob, reason: str) -> None:
        self._refused.add(offered.sha256)
        self._forget()
        if self._staged is not None:
            shutil.rmtree(self._staged, ignore_errors=True)
        shutil.rmtree(self.store.parts, ignore_errors=True)
        log.event("bundle_refused", reason=reason)

    def _disk_failed(self, error: OSError, now: float) -> None:
        log.event("bundle_not_stored", reason=error.strerror or str(error), again_s=_DISK_AGAIN_S)
        self._again_at = now + _DISK_AGAIN_S
        self._forget()

    def _forget(self) -> None:
        """Begin anew; what has arrived stays on disk."""
        self.close()
        if self._trial is not None:
            self._trial.end()
            self._trial = None
        self._download.end()
        self._offered = self._description = None
        self._missing, self._sources = {}, {}

    def _tell(self, now: float) -> None:
        assert self._part is not None
        if now - self._told_at >= _PROGRESS_S:
            self._told_at = now
            blob = self._part.blob
            done = min(len(self._part) * blob.chunk_bytes, blob.size_bytes)
            log.event(
                "bundle_progress", file=blob.kind, done_bytes=done, total_bytes=blob.size_bytes
            )
