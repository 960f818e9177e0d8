"""A check that the broker refuses revoked certificates, and the lines that report it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from fedclip_edge.config import BrokerAddress
from fedclip_edge.errors import BrokerError, ConfigError, LinkError, RefusedError
from fedclip_edge.pki import registry
from fedclip_edge.pki.revocation import Probe, not_yet
from fedclip_edge.pki.site import Folder
from fedclip_edge.transport import tls

# mosquitto reads its files within its next turn; a command may restart the broker.
_READS_S = 3.0
_ANSWERS_S = 0.7  # time after which a broker that sends no alert has accepted a certificate


def report(folder: Folder, probe: Probe, what: str, done: str) -> str:
    """The lines about the broker and the coordinator after a revocation.

    `what` names the revoked certificates, and `done` is what is done already, for the
    error. Raises BrokerError if the broker still accepts revoked certificates.
    """
    known = registry.read(folder.registry)
    where = f"{known.host}:{known.port}"
    accepts, why = _ask(folder, known.host, known.port, probe)
    if accepts:
        raise BrokerError(
            not_yet(
                done,
                f"{where} still accepts certificates of the new revocation list",
                folder.broker,
            )
            + ". A broker that does not read these lists, such as RabbitMQ, needs the device's user "
            "deleted"
        )
    if why:
        broker = (
            f"not checked: {why.partition(';')[0]}.\n"
            f"             If the broker was told to read its files, it refuses {what}"
        )
    else:
        broker = f"{where} refuses {what} from now on (checked)"
    return (
        f"broker       {broker}\n"
        "connections  one that is open now is not ended by mosquitto, but can neither send nor "
        "receive\n"
        "             after mosquitto has read fleet.acl; `serve` ends it\n"
        f"coordinator  `serve` reads {folder.registry} within a second\n"
        "             and logs device_refused; if it runs elsewhere, copy the file to it"
    )


def _ask(folder: Folder, host: str, port: int, probe: Probe) -> tuple[bool, str]:
    """True if the broker accepts the probe; otherwise, the reason why that is not known, or ""."""
    with tempfile.TemporaryDirectory(prefix="fedclip-edge-probe-") as place:
        certificate, key = Path(place) / "probe.crt", Path(place) / "probe.key"
        certificate.write_bytes(probe.certificate)
        key.write_bytes(probe.key)
        address = BrokerAddress(
            host, port, ca=folder.path / "ca.crt", certificate=certificate, key=key
        )
        deadline = time.monotonic() + _READS_S
        while True:
            try:
                tls.examine(address, _ANSWERS_S)
                accepts, why = True, ""
            except RefusedError as error:
                if tls.REVOKED in str(error):
                    return False, ""
                accepts, why = False, str(error)
            except (LinkError, ConfigError) as error:
                accepts, why = False, str(error)
            if time.monotonic() >= deadline:
                return accepts, why
            time.sleep(0.1)
