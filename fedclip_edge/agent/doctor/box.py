"""Checks of the box: packages, disk, memory, clock, temperature and certificate."""

from __future__ import annotations

import datetime as dt
import errno
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from cryptography import x509

from fedclip_edge import __version__
from fedclip_edge.agent.doctor.finding import Finding, ok, skipped, todo
from fedclip_edge.agent.pause import is_on_battery, temperature_c
from fedclip_edge.agent.process import needs_torch
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.pki.expiry import WARN_DAYS
from fedclip_edge.pki.own_certificate import check_own_certificate

_LEAST_DISK_MB = 500  # a fetched bundle, its successor and the features of many pictures
_LEAST_MEMORY_MB = 400  # the encoder of ViT-B-32 in int8, and the agent
# When this program was written: a clock that shows less is wrong.
_WRITTEN = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
_SET_CLOCK = "set it, for example with `timedatectl set-ntp true`; without network, by hand"


def packages(config: AgentConfig) -> Iterator[Finding]:
    """Check that the libraries are there that this configuration needs."""
    wanted = ["onnxruntime", "pillow"]
    if needs_torch(config):
        wanted.append("torch")
    if config.encoder.runs_on == "openvino":
        wanted.append("openvino")
    if config.metrics_file is not None:
        wanted.append("prometheus-client")
    found = {name: _version_of(name) for name in wanted}
    missing = [name for name, version in found.items() if not version]
    versions = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    said = f"fedclip-edge {__version__}, Python {platform.python_version()}"
    if missing:
        extra = "openvino" if missing == ["openvino"] else "agent"
        yield todo(
            "packages",
            f"{said}; missing: {', '.join(missing)}",
            f"run `pip install 'fedclip-edge[{extra}]'` in the agent's environment",
        )
        return
    without = "" if "torch" in wanted else "; torch is not needed"
    yield ok("packages", f"{said}, {versions}{without}")


def _version_of(name: str) -> str:
    """The version of an installed package; empty if it is not installed."""
    names = (name, f"{name}-gpu") if name == "onnxruntime" else (name,)
    for one in names:
        try:
            return importlib.metadata.version(one)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def disk(config: AgentConfig) -> Iterator[Finding]:
    """Check that state_dir can be written to, and that there is space."""
    folder = config.state_dir
    exists = folder.is_dir()
    there = folder if exists else next(up for up in folder.absolute().parents if up.is_dir())
    free_mb = shutil.disk_usage(there).free // 10**6
    said = f"{free_mb:,} MB free in {folder}"
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield todo(
            "disk", f"{there} cannot be written to: {error.strerror or error}", _way_out(error)
        )
        return
    if free_mb < _LEAST_DISK_MB:
        yield todo(
            "disk",
            said,
            "free space, or set max_cache_mb under [limits] to limit the features",
        )
        return
    yield ok("disk", said if exists else f"{said}, which the agent will create")


def _way_out(error: OSError) -> str:
    """The next step if the disk cannot be written to."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free space; max_cache_mb under [limits] limits the features"
    if error.errno in (errno.EROFS, errno.EIO):
        return "read the kernel's log (dmesg), repair or replace the disk, and mount it for writing"
    return (
        f"run doctor as the agent's user, and let that user write there (now: uid {os.geteuid()})"
    )


def memory(meminfo: Path = Path("/proc/meminfo")) -> Iterator[Finding]:
    """Check that the encoder finds memory."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
        found = {line.partition(":")[0]: int(line.split()[1]) // 1000 for line in lines}
        free_mb, total_mb = found["MemAvailable"], found["MemTotal"]
    except (OSError, ValueError, IndexError, KeyError):
        yield skipped("memory", "this system does not say how much is free")
        return
    said = f"{free_mb:,} MB of {total_mb:,} MB free"
    if free_mb < _LEAST_MEMORY_MB:
        yield todo("memory", said, "stop other programs, or use a bundle in int8, which needs less")
    else:
        yield ok("memory", said)


def clock(config: AgentConfig, now: dt.datetime | None = None) -> Iterator[Finding]:
    """Compare the clock with the date of this program, and with the certificates."""
    now = now or dt.datetime.now(dt.timezone.utc)
    said = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if now < _WRITTEN:
        yield todo("clock", f"{said}, long ago: this box lost its time", _SET_CLOCK)
        return
    for file in (config.broker.certificate, config.broker.ca):
        begins = _begin_of(file)
        if begins is not None and now < begins:
            early = f"{said}, before {file} was issued ({begins:%Y-%m-%d %H:%M} UTC)"
            yield todo("clock", early, _SET_CLOCK)
            return
    yield ok("clock", said)


def conditions(config: AgentConfig, sensors: Path) -> Iterable[Finding]:
    """Compare temperature and power supply with the limits."""
    limit, found = config.limits.max_temperature_c, temperature_c(sensors)
    on_battery = is_on_battery(sensors)
    parts = [] if found is None else [f"{found:.0f} degrees"]
    parts += ["on battery"] if on_battery else []
    said = ", ".join(parts)
    if limit is not None and found is not None and found > limit:
        return [
            todo(
                "limits",
                f"{said}; max_temperature_c is {limit:g}, so the agent pauses",
                "cool the box, or raise max_temperature_c under [limits]",
            )
        ]
    if on_battery and config.limits.on_battery == "pause":
        what = 'connect the box, or set on_battery = "run" under [limits]'
        return [todo("limits", f"{said}, so the agent pauses", what)]
    if not said:
        return [skipped("limits", "this box has no sensor of its temperature")]
    return [ok("limits", said)]


def certificate(config: AgentConfig, now: dt.datetime | None = None) -> Iterator[Finding]:
    """Check whose certificate it is, and when it ends."""
    file = config.broker.certificate
    if file is None:
        yield skipped("certificate", "none: [broker] names no certificate")
        return
    try:
        found = x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no certificate in PEM"
        what = "correct certificate under [broker], or copy the files of the enrolment again"
        yield todo("certificate", f"{file} cannot be read: {reason}", what)
        return
    check_own_certificate(file, config.id, config.fleet)
    now = now or dt.datetime.now(dt.timezone.utc)
    days = (found.not_valid_after_utc - now) // dt.timedelta(days=1)
    renew = f"run `fedclip-edge renew {config.id}` at the operator's, and copy its file here"
    ends = f"{found.not_valid_after_utc:%Y-%m-%d}"
    if days < 0:
        yield todo("certificate", f"it expired on {ends}", renew)
    elif days < WARN_DAYS:
        yield todo("certificate", f"of {config.id}, it ends on {ends}, in {days} days", renew)
    else:
        yield ok("certificate", f"of {config.id}, until {ends}")


def _begin_of(file: Path | None) -> dt.datetime | None:
    if file is None:
        return None
    try:
        found = x509.load_pem_x509_certificates(file.read_bytes())
    except (OSError, ValueError):
        return None
    return min(one.not_valid_before_utc for one in found)
