"""A check that the broker refuses revoked certificates, and the lines that report it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import BrokerError, ConfigError, LinkError, RefusedError
from fedclip_edge.pki import registry
from fedclip_edge.pki.revocation import Probe, not_yet
from fedclip_edge.pki.site import Folder
from fedclip_edge.transport import tls

# mosquitto reads its files within its next turn; a command may restart the broker.
_READS_S = 3.0
_ANSWERS_S = 0.7  # time after which a broker that sends no alert has accepted a certificate

_REVOKED = (
    "mosquitto ends none; an open one can neither send nor receive after mosquitto has read\n"
    "             fleet.acl, and a running `serve` ends it"
)
_KEY_REPLACED = (
    "mosquitto ends none; a running `serve` ends one of the earlier key, and refuses its messages"
)


def report(folder: Folder, probe: Probe, done: str, *, key_replaced: bool = False) -> str:
    """The lines about broker and coordinator after a revocation.

    Either a device was revoked or, with `key_replaced`, only its earlier key. `done` is what is
    done already, for the error. Raises BrokerError if the broker still accepts revoked
    certificates.
    """
    what = "the earlier certificates" if key_replaced else "its certificates"
    whom = "the earlier key" if key_replaced else "it"
    connections = _KEY_REPLACED if key_replaced else _REVOKED
    return (
        f"broker       {broker_line(folder, probe, done, what)}\n"
        f"connections  {connections}\n"
        f"coordinator  a running `serve` that uses {folder.registry}\n"
        f"             refuses {whom} within a second, and logs device_refused if it is in use;\n"
        "             if `serve` uses a copy of the file, replace the copy"
    )


def broker_line(folder: Folder, probe: Probe, done: str, what: str) -> str:
    """The line that says if the broker refuses `what`; raises BrokerError as `report` does."""
    known = registry.read(folder.registry)
    where = f"{known.host}:{known.port}"
    accepts, why = _ask(folder, known.host, known.port, probe)
    if accepts:
        raise BrokerError(
            not_yet(
                done,
                f"{where} still accepts certificates of the new revocation list (its log says if "
                "it could not read the list)",
                folder.broker,
            )
            + ". A broker that does not read these lists, such as RabbitMQ, needs the device's user "
            "deleted"
        )
    if why:
        return (
            f"not checked: {why.partition(';')[0]}.\n"
            f"             If the broker was told to read its files, it refuses {what}"
        )
    return f"{where} refuses {what} from now on (checked)"


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
