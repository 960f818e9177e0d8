"""One box: the settings that the operator chooses for it, and the archive that is put on it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass

from fedclip_edge.pki.registry import Registry
from fedclip_edge.records import COORDINATOR, check_domain, check_id

_PICTURES = "/srv/pictures"

_AGENT = """\
# One device. Relative paths are relative to this file.

id = {id}
fleet = {fleet}
{domain}\
{bundle}state_dir = "/var/lib/fedclip-edge"
# The public key of the only coordinator that this device accepts.
coordinator_key = {coordinator}
{export}
[data]
# One folder per class, named as in the bundle.
folder = {pictures}

[broker]
host = {host}
port = {port}
ca = "ca.crt"
certificate = "device.crt"
key = "device.key"
"""


_COPIED = """\
bundle = "bundle"                  # a copy of the coordinator's bundle
"""
_FETCHED = """\
# bundle = "bundle"                # a copy of the coordinator's bundle, so that less is fetched
"""
_EXPORT = """\
# The public key that signs the bundles which this device fetches from its coordinator.
export_key = {key}
"""


@dataclass(frozen=True)
class Box:
    """One box as the operator describes it. Raises ValueError for a value that it cannot have."""

    id: str
    domain: str = ""  # where its pictures come from, for reports
    pictures: str = ""  # folder of its pictures on the box; empty for the default

    def __post_init__(self) -> None:
        check_id(self.id, "id")
        if self.id == COORDINATOR:
            raise ValueError(f"the id {COORDINATOR!r} is reserved; choose another id")
        check_domain(self.domain)
        if not self.pictures.isprintable():
            raise ValueError("pictures: expected the path of a folder, in printable characters")


def agent_toml(registry: Registry, box: Box) -> str:
    """The text of the box's agent.toml."""
    words = {
        "id": box.id,
        "fleet": registry.fleet,
        "coordinator": registry.coordinator,
        "host": registry.host,
        "pictures": box.pictures or _PICTURES,
    }
    domain = f"domain = {_quoted(box.domain)}\n" if box.domain else ""
    quoted = {name: _quoted(word) for name, word in words.items()}
    export = _EXPORT.format(key=_quoted(registry.export_key)) if registry.export_key else ""
    return _AGENT.format(
        port=registry.port,
        domain=domain,
        bundle=_FETCHED if export else _COPIED,
        export=export,
        **quoted,
    )


def archive(files: Mapping[str, bytes]) -> bytes:
    """A tar file in which private keys are readable only by their owner."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o600 if name.endswith(".key") else 0o644
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _quoted(word: str) -> str:
    """A TOML string. A JSON string is one too, if it does not use JSON's pairs of surrogates."""
    return json.dumps(word, ensure_ascii=False)
