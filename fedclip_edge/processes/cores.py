"""The number of processor cores that this process may use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = _CGROUPS, own_cgroup: Path = _OWN_CGROUP) -> int:
    """Return the number of cores that this process may use, at least 1.

    A container or a service can be limited to some cores (affinity), or to a share of the time of
    all (a cgroup's quota, which counts in whole cores here). `cgroups` is the mount point of the
    cgroups, `own_cgroup` the file that says which one this process is in.
    """
    if hasattr(os, "sched_getaffinity"):  # Linux
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quotas = (int(quota) for quota in _quotas(cgroups, own_cgroup))
    return max(1, min((cores, *quotas)))


def _quotas(cgroups: Path, own_cgroup: Path) -> Iterator[float]:
    """Yield the limits, in cores, of this process's cgroup and of those above it."""
    for folder in _folders(cgroups, own_cgroup):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            yield int(quota) / int(period)  # "max" is no number, and no limit
        with contextlib.suppress(OSError, ValueError):  # version 1, as on a Jetson with JetPack 5
            limit = int((folder / "cpu.cfs_quota_us").read_text())
            period_us = int((folder / "cpu.cfs_period_us").read_text())
            if limit > 0:
                yield limit / period_us


def _folders(cgroups: Path, own_cgroup: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroup, from its own up to the mount point.

    In a container, the mount point itself usually has the container's limits.
    """
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = cgroups / "cpu" if controllers else cgroups
        own = top / path.lstrip("/")
        if ".." not in own.parts:  # a cgroup outside of the container's view
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top))
        else:
            yield top
