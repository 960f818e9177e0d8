"""The inputs of `simulate`: pictures or features, and the processes that train the devices."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedclip_edge.cli.progress import note, progress_bar

if TYPE_CHECKING:
    from fedclip_edge.simulating.pool import Pool
    from fedclip_edge.simulating.workers import Hosts


def read_pool(
    data: Path | None,
    bundle: Path | None,
    features: Path | None,
    cache: Path | None,
    encoder: Any,
    validation: float,
) -> Pool:
    """Read the pictures of --data, or the features of --features.

    Raises ConfigError unless exactly one of them is given, with a bundle if it needs one.
    """
    from fedclip_edge.errors import ConfigError
    from fedclip_edge.simulating import pictures
    from fedclip_edge.simulating.pool import read_features
    from fedclip_edge.vision.bundle import read_bundle
    from fedclip_edge.vision.bundle_warnings import bundle_warnings
    from fedclip_edge.vision.shared_cache import SharedCache, default_path

    if (data is None) == (features is None):
        raise ConfigError("give either --data FOLDER with --bundle FOLDER, or --features FILE.npz")
    opened = None if bundle is None else read_bundle(bundle)
    if features is not None:
        return read_features(features, validation, opened, note)
    assert data is not None
    if opened is None:
        raise ConfigError("--data needs --bundle FOLDER; make a bundle with `fedclip-edge export`")
    for caution in bundle_warnings(opened.manifest):
        note(caution)
    with (
        SharedCache(cache or default_path(), note) as known,
        progress_bar("encoding") as bar,
    ):
        pool, left_out = pictures.read_pictures(data, opened, encoder, known, bar)
    if known.found:
        click.echo(
            f"pictures not encoded again: {known.found}; their features are in {known.path}",
            err=True,
        )
    for line in left_out.lines():
        click.echo(line, err=True)
    return pool


def open_hosts(
    pool: Pool, workers: int | None, address: str | None
) -> AbstractContextManager[Hosts]:
    """Start `workers` processes, on the Ray cluster at `address` if there is one."""
    if address is not None:
        from fedclip_edge.simulating.ray_cluster import RayWorkers

        return RayWorkers(pool, address, workers)
    from fedclip_edge.processes.cores import usable_cores
    from fedclip_edge.simulating.workers import Workers

    return Workers(pool, workers or usable_cores())
