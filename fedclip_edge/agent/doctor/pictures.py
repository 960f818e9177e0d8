"""Checks of what the device works with: its bundle, its encoder, its pictures and its features.

Law: nothing in state_dir is changed, so the agent may be at work.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from fedclip_edge.agent.bundle_store import BundleStore, fetched_folder
from fedclip_edge.agent.doctor.finding import Finding, of_error, ok, skipped, todo
from fedclip_edge.agent.features import CACHE, labels_for
from fedclip_edge.agent.limits import within
from fedclip_edge.agent.rescan import INDEX
from fedclip_edge.config.agent import AgentConfig, EncoderConfig
from fedclip_edge.errors import BundleError, DataError, DiskError, FedclipError
from fedclip_edge.processes.children import Children, own_command
from fedclip_edge.vision.bundle import Bundle, key_of
from fedclip_edge.vision.cache_file import UnusableCacheError
from fedclip_edge.vision.cache_state import CacheState, examine
from fedclip_edge.vision.datasets import Dataset
from fedclip_edge.vision.device_pictures import read_device
from fedclip_edge.vision.picture_files import LeftOut, Skipped, unreadable
from fedclip_edge.vision.picture_index import PictureIndex, read_index
from fedclip_edge.vision.pictures import decode
from fedclip_edge.vision.provider_choice import kept_provider

ENCODER_S = 240.0  # TensorRT may build an engine
_NAMED = 4  # classes or folders in one line
_DECODE_S = 20.0  # the longest time for pictures that have no features yet
_AT_WORK = "the agent fetches it from the coordinator"


class Pictures:
    """The checks of one device, which share what they have read."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config

    @property
    def bundle(self) -> Bundle | None:
        """The bundle in use; None if there is none yet. Raises BundleError."""
        if isinstance(self._opened, BundleError):
            raise self._opened
        return self._opened

    @cached_property
    def _opened(self) -> Bundle | BundleError | None:
        """The bundle, or why it cannot be used; it takes seconds to find out."""
        config = self._config
        try:
            return BundleStore(fetched_folder(config.state_dir), config.bundle).read()
        except BundleError as error:
            return error

    def _without_bundle(self) -> str:
        """The reason why checks that need the bundle are skipped; empty if they are not."""
        if isinstance(self._opened, BundleError):
            return "after bundle"
        return "" if self._opened else "there is no bundle yet"

    @cached_property
    def _index(self) -> PictureIndex:
        """The hashes of the files that the agent has read."""
        return read_index(self._config.state_dir / INDEX)

    @cached_property
    def _dataset(self) -> Dataset | None:
        """The device's pictures, of which unknown ones are read; None without a bundle."""
        bundle, inbox = self.bundle, self._config.inbox
        if bundle is None:
            return None
        labels = labels_for(self._config, bundle.classes.names)
        return read_device(labels, None if inbox is None else inbox.folder, self._index.hash_of)

    def _encoder(self, bundle: Bundle) -> EncoderConfig:
        """The settings of the encoder, with the provider that the agent has chosen."""
        return kept_provider(bundle, self._config.encoder, self._config.state_dir)

    def check_bundle(self) -> Iterator[Finding]:
        """Check that the bundle is there and whole."""
        bundle = self.bundle
        if bundle is None:
            yield ok("bundle", f"none yet; {_AT_WORK}")
            return
        count, manifest = len(bundle.classes.names), bundle.manifest
        yield ok("bundle", f"{manifest.model}, {manifest.precision}, {count} classes")

    def check_encoder(self) -> Iterator[Finding]:
        """Encode the golden pictures in a child process, as `bundle verify` does."""
        if why := self._without_bundle():
            yield skipped("encoder", why)
            return
        bundle = self.bundle
        assert bundle is not None
        config = within(self._encoder(bundle), self._config.limits)
        precision = "bf16" if config.precision == "bf16" else "fp32"
        words = [str(bundle.folder), "--provider", config.runs_on, "--precision", precision]
        if config.threads:
            words += ["--threads", str(config.threads)]
        if config.engine_dir is not None:
            words += ["--engine-dir", str(config.engine_dir)]
        command = own_command("bundle", "verify", *words, "--json")
        with Children() as children:
            child = children.start(command, None, pipe=True, errors_too=True)
            try:
                said, _ = child.communicate(timeout=ENCODER_S)
            except subprocess.TimeoutExpired:
                child.kill()
                yield todo(
                    "encoder",
                    f"{config.label} did not answer within {ENCODER_S:g} s",
                    'set provider = "cpu" under [encoder], and run doctor again',
                )
                return
        yield _of_encoder(said, child.returncode, config.label)

    def check_pictures(self) -> Iterator[Finding]:
        """Count the pictures by class, and those without a label or a class."""
        if why := self._without_bundle():
            yield skipped("pictures", f"{why}: the classes are not known")
            return
        folder, dataset = self._config.data.folder, self._dataset
        assert dataset is not None
        counts = Counter(dataset.classes[one.label] for one in dataset.pictures)
        parts = [f"{len(dataset.pictures)} labelled pictures in {folder}"]
        parts += [", ".join(f"{name} {counts[name]}" for name in dataset.classes[:20])]
        if dataset.unlabelled:
            parts.append(f"{len(dataset.unlabelled)} without a label")
        said = ": ".join(parts[:2]) + "".join(f"; {part}" for part in parts[2:])
        if not dataset.pictures and "train" in self._config.roles:
            what = "put pictures into one folder for each class, or label those without a label"
            yield todo("pictures", said, what)
        else:
            yield ok("pictures", said)
        yield _of_left_out(dataset.left_out + LeftOut(skipped=tuple(self._unreadable(dataset))))

    def _unreadable(self, dataset: Dataset) -> Iterator[Skipped]:
        """Decode some pictures that have no features, and yield those that cannot be decoded."""
        bundle, ends = self.bundle, time.monotonic() + _DECODE_S
        assert bundle is not None
        try:
            known = self._features.pictures
        except FedclipError:
            known = frozenset()
        for picture in (*dataset.pictures, *dataset.unlabelled):
            if time.monotonic() > ends:
                return
            if picture.hash in known:
                continue
            try:
                decode(picture.path.read_bytes(), bundle.manifest.preprocessing)
            except DataError as error:
                yield Skipped(picture.path, str(error))
            except OSError as error:
                yield Skipped(picture.path, unreadable(error))

    @cached_property
    def _features(self) -> CacheState:
        """The features of the bundle; none without a cache. Raises DataError and DiskError."""
        bundle, file = self.bundle, self._config.state_dir / CACHE
        if bundle is None or not file.exists():
            return CacheState(frozenset(), 0, 0)
        return examine(file, key_of(bundle, self._encoder(bundle)))

    def check_cache(self) -> Iterator[Finding]:
        """Count the features, the damaged ones, and the pictures that have none."""
        file = self._config.state_dir / CACHE
        if why := self._without_bundle():
            yield skipped("cache", why)
            return
        if not file.exists():
            yield skipped("cache", "there are no features yet; the agent computes them")
            return
        try:
            state = self._features
        except UnusableCacheError as error:
            said = str(error).partition(";")[0]
            yield todo("cache", said, f"restart the agent, which makes {file} anew")
            return
        except DataError as error:
            yield todo("cache", str(error), f"stop the agent, delete {file}, start it again")
            return
        except DiskError as error:
            yield of_error("cache", error)
            return
        said = f"{len(state.pictures)} features of this encoder, {state.size_bytes / 1e6:.1f} MB"
        try:
            dataset = self._dataset
        except FedclipError:
            dataset = None
        if dataset is not None:
            missing = {one.hash for one in dataset.pictures} - state.pictures
            count = len({one.hash for one in dataset.pictures})
            said += f"; {len(missing)} of {count} labelled pictures are not encoded yet"
        if state.damaged:
            said += f"; {state.damaged} blocks are damaged, the agent computes them again"
        yield ok("cache", said)


def _of_encoder(said: str, code: int, provider: str) -> Finding:
    """The finding about the output and the exit code of `bundle verify --json`."""
    lines = said.strip().splitlines()
    if code:
        reason = lines[-1].removeprefix("fedclip-edge: ") if lines else f"it ended with code {code}"
        reason, _, what = reason.partition("; ")
        return todo("encoder", reason, what or "read docs/how-to/troubleshooting.md")
    found = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    threads = found["threads"]
    cpu = f" with {threads} thread{'s' * (threads != 1)}" if provider == "cpu" else ""
    speed = f"{found['images_per_s']:.1f} pictures/s"
    return ok("encoder", f"{provider}{cpu}: the golden features agree; {speed}")


def _of_left_out(left_out: LeftOut) -> Finding:
    """The finding about pictures that are not used, with examples."""
    some = [*left_out.skipped, *left_out.unused]
    if not some:
        return ok("labels", "every picture and folder is used")
    shown = "; ".join(f"{Path(one.path).name}: {one.reason}" for one in some[:_NAMED])
    more = f"; and {len(some) - _NAMED} more" if len(some) > _NAMED else ""
    return todo(
        "labels",
        f"{len(some)} not used: {shown}{more}",
        "rename the folders after classes of the bundle, repair or delete the files",
    )
