"""Features for the devices of a demo, from and for the cache that the user's commands share.

On a box the agent has a cache of its own. The devices of a demo are all on this machine, so they
get the features that are known before they start, and the new ones are shared afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator

from fedclip_edge.agent.features import CACHE
from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.demo.stage import Device, Stage
from fedclip_edge.vision.bundle import key_of, read_bundle
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.datasets import read_folder
from fedclip_edge.vision.shared_cache import SharedCache

_AT_ONCE = 1000  # pictures: this limits the memory


def give(stage: Stage, shared: SharedCache) -> None:
    """Copy the known features of each device's pictures into the device's cache.

    Raises DataError and DiskError for a device's cache that cannot be used.
    """
    for device, key, hashes in _batches(stage):
        if features := shared.get(hashes, key):
            device.state_dir.mkdir(parents=True, exist_ok=True)
            with FeatureCache(device.state_dir / CACHE) as own:
                own.put(features, key)


def take(stage: Stage, shared: SharedCache) -> None:
    """Copy the features in the devices' caches into the shared cache.

    Raises DataError and DiskError for a device's cache that cannot be used.
    """
    for device, key, hashes in _batches(stage):
        with FeatureCache(device.state_dir / CACHE) as own:
            shared.put(own.get(hashes, key), key)


def _batches(stage: Stage) -> Iterator[tuple[Device, str, list[str]]]:
    """Yield each device, the feature key and the hashes of some of the device's pictures."""
    bundle = read_bundle(stage.bundle)
    key = key_of(bundle, EncoderConfig())  # a demo's devices have the default settings
    for device in (*stage.devices, stage.held_out):
        pictures = read_folder(device.pictures, bundle.classes.names).pictures
        hashes = list(dict.fromkeys(picture.hash for picture in pictures))
        for first in range(0, len(hashes), _AT_ONCE):
            yield device, key, hashes[first : first + _AT_ONCE]
