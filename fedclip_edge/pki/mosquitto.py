"""Configuration files for mosquitto with client certificates, and a way to reload them.

`broker/mosquitto.conf` is the output of `settings()`, and `broker/fleet.acl` of `access_list()`.
"""

from __future__ import annotations

import contextlib
import grp
import os
import shlex
import signal
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path

from fedclip_edge.errors import BrokerError
from fedclip_edge.protocol import version1
from fedclip_edge.protocol.topics import Topics

PORT = 8883  # assigned by IANA to MQTT over TLS
# The folder on a broker's host that broker/README.md names.
HOME = Path("/etc/mosquitto/fedclip-edge")
DEVICES = 100
_USER = "mosquitto"  # mosquitto changes to this user, and to its group, if root starts it
_RELOAD_S = 30.0
# For one client: the chunks of several large updates. What is lost of a larger model is sent again.
_QUEUED_BYTES = 64 * 2**20

_SETTINGS = """\
# The broker of the fleet {fleet}. It accepts only clients with a certificate of its authority.
# Printed by fedclip_edge.pki.mosquitto.settings().
listener {port}
allow_anonymous false
cafile {folder}/ca.crt
certfile {folder}/broker.crt
keyfile {folder}/broker.key
crlfile {folder}/crl.pem
require_certificate true
# The certificate's name is the user name, which is the device's id.
use_identity_as_username true
# TLS 1.3 encrypts a refusal, so a device can trust it: no one on the network can forge it.
tls_version tlsv1.3
acl_file {folder}/fleet.acl

# The largest messages are chunks of 120 KiB, so every packet fits into 200 kB.
max_packet_size 200000

# Limits for a fleet of {devices} devices. Messages that wait for one client; above them mosquitto
# drops messages that it has already acknowledged, which are then sent again.
max_queued_messages {queued}
max_queued_bytes {queued_bytes}
# Connections: two for each device, because a lost one stays open for a while.
max_connections {connections}
# All memory. Above it mosquitto ends the connections of clients that send.
memory_limit {memory_bytes}

# Sessions are clean, and clients ask again for lost data, so mosquitto need not store anything.
persistence false

# A round consists of many small messages; waiting to fill a packet delays each by 40 ms.
set_tcp_nodelay true
"""


def settings(fleet: str, folder: Path = HOME, port: int = PORT, devices: int = DEVICES) -> str:
    """The text of mosquitto.conf for a broker whose files are in `folder`.

    The limits are made for a fleet of `devices` devices.
    """
    return _SETTINGS.format(
        fleet=fleet,
        folder=folder,
        port=port,
        devices=devices,
        # All devices say hello at once after the broker was away, in two messages each.
        queued=1000 + 5 * devices,
        queued_bytes=_QUEUED_BYTES,
        connections=2 * devices + 20,
        # What is queued is stored once for all receivers. A device's two retained messages and its
        # connections take less than 1 MB.
        memory_bytes=4 * _QUEUED_BYTES + devices * 2**20,
    )


def let_daemon_read(folder: Path) -> None:
    """Let the group `mosquitto` read the broker's files in `folder`.

    A mosquitto that root has started reads them as the user `mosquitto`, at its start and at each
    SIGHUP. Without effect if this process is not root, if the machine has no such group, or where
    the file system has no groups.
    """
    if os.geteuid() != 0:
        return
    try:
        group = grp.getgrnam(_USER).gr_gid
    except KeyError:
        return
    enter = [(folder.parent, 0o010), (folder, 0o050)]
    for path, mode in enter + [(file, 0o040) for file in folder.iterdir()]:
        with contextlib.suppress(OSError):
            os.chown(path, -1, group)
            path.chmod(stat.S_IMODE(path.stat().st_mode) | mode)


def closed_to_daemon(folder: Path) -> Path | None:
    """The outermost folder or file that the user `mosquitto` cannot enter or read, or None.

    `folder` is that of the broker's files. None also if this process is not root and cannot tell,
    or if the machine has no such user.
    """
    if os.geteuid() != 0:
        return None
    ways = [*reversed(folder.parents), folder]
    tests = [("-x", way) for way in ways] + [("-r", file) for file in sorted(folder.iterdir())]
    for test, path in tests:
        try:
            done = subprocess.run(
                ["test", test, str(path)], user=_USER, group=_USER, extra_groups=(), check=False
            )
        except (OSError, LookupError):  # LookupError: no such user
            return None
        if done.returncode:
            return path
    return None


def reload(command: str, settings_file: Path) -> None:
    """Make the broker read its access list and its revocation list again.

    Runs `command`. If it is empty, sends SIGHUP to every mosquitto on this machine that was started
    with `settings_file`. Raises BrokerError if the command fails or takes longer than 30 s, if a
    process cannot be signalled, or if no such process exists.
    """
    if command:
        try:
            done = subprocess.run(
                shlex.split(command), capture_output=True, text=True, timeout=_RELOAD_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BrokerError(
                f"the command {command!r} did not reload the broker: {error}"
            ) from error
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split())
            raise BrokerError(
                f"the command {command!r} did not reload the broker: "
                f"{said or f'it ended with code {done.returncode}'}"
            )
        return
    found = _running_with(settings_file)
    for process in found:
        try:
            os.kill(process, signal.SIGHUP)
        except OSError as error:
            raise BrokerError(
                f"SIGHUP could not be sent to mosquitto ({error.strerror}): sudo kill -HUP {process}"
            ) from error
    if not found:
        raise BrokerError(
            f"no mosquitto on this machine was started with {settings_file} (one that starts later "
            "reads the new lists)"
        )


def _running_with(settings_file: Path) -> list[int]:
    """The ids of the processes that were started as `mosquitto ... -c settings_file`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # the process ended
            continue
        where = Path("/")
        with contextlib.suppress(OSError):  # of another user: only an absolute path is recognized
            where = (entry / "cwd").readlink()
        if Path(words[0]).name == "mosquitto" and any(
            where / word == settings_file for word in words[1:]
        ):
            found.append(int(entry.name))
    return found


def access_list(fleet: str, revoked: Iterable[str] = ()) -> str:
    """The text of a mosquitto ACL file, which limits each device to its own topics in this fleet.

    `%u` is the user name, which is the device id; `pattern` lines apply to every user. The ids in
    `revoked` are denied every topic. This is needed because mosquitto does not end the connection
    of a device whose certificate was revoked. On SIGHUP it does read the access list again, where
    "deny" overrides every other line.
    """
    ours, old = Topics(fleet), version1.topics(fleet)
    lines = [
        f"# The topics of the fleet {fleet} that each user may read and write.",
        "# Printed by fedclip_edge.pki.mosquitto.access_list().",
        *(f"pattern read {topic}" for topic in ours.for_device("%u", "+")),
        *(f"pattern write {topic}" for topic in (ours.state("%u"), ours.up("%u"))),
        "",
        "user coordinator",
        *(f"topic read {topic}" for topic in (ours.state("+"), ours.up("+"))),
        *(f"topic readwrite {topic}" for topic in (ours.coordinator_state, ours.manifest)),
        *(f"topic write {topic}" for topic in (ours.model, ours.blob("+"), ours.down("+"))),
        "",
        "# Devices and coordinators of the earlier protocol, so that they are refused in words.",
        f"topic read {old.up('+')}",
        f"topic write {old.down('+')}",
        *(f"pattern read {topic}" for topic in version1.for_device(fleet, "%u")[1:]),
        *(f"pattern write {topic}" for topic in (old.state("%u"), old.up("%u"))),
        *(line for device in revoked for line in ("", f"user {device}", "topic deny #")),
    ]
    return "\n".join(lines) + "\n"
