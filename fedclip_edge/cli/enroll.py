"""`fedclip-edge enroll`, `renew` and `revoke`: the keys and certificates of devices."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click

_SITE = click.option(
    "--site",
    type=click.Path(path_type=Path),
    default="site",
    show_default=True,
    help="Folder that `broker init` created; it holds the certificate authority.",
)
_DAYS = click.option(
    "--days",
    default=730,
    show_default=True,
    type=click.IntRange(1, 7300),
    help="Number of days that the certificate is valid.",
)


@click.command()
@click.argument("id", default="")
@click.option(
    "--csr",
    type=click.Path(path_type=Path),
    help="Certificate signing request (PEM file) made on the box. The private key then stays on "
    "the box. [default: a new key, which is put into the archive]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Archive to write; it must not exist yet. [default: ID.tar]",
)
@_DAYS
@_SITE
def enroll(id: str, csr: Path | None, out: Path | None, days: int, site: Path) -> None:
    """Enroll a device: write its key and certificate.

    They are written to an archive, with an agent.toml. Unpack it on the box, in /etc/fedclip-edge.

    ID is 1 to 64 characters of a-z, 0-9 and '-', without '-' at either end. With --csr it may be
    left out: the request names the device.

    To keep the private key on the box, create it there together with a request, and copy only the
    request to this machine:

    \b
      openssl genpkey -algorithm ed25519 -out device.key
      openssl req -new -key device.key -subj /CN=cam-01 \\
        -out cam-01.csr
    """  # noqa: D301 - click's mark for lines that are not wrapped
    from fedclip_edge.errors import ConfigError
    from fedclip_edge.pki import enrolment
    from fedclip_edge.storage.text_file import decode

    if not id and csr is None:
        raise click.UsageError("Missing argument 'ID'. Only with --csr can it be left out.")
    request = None
    if csr is not None:
        try:
            request = csr.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{csr} cannot be read: {error.strerror}; name the file of the signing request"
            ) from None
        with suppress(ConfigError):  # `enroll` refuses other bytes
            request = decode(request, str(csr)).encode()  # PowerShell writes UTF-16
    path = enrolment.enroll(
        enrolment.Folder(site.absolute()), id, request=request, out=out, days=days
    )
    rest = " next to its device.key" if csr is not None else "; it contains the private key"
    click.echo(f"{path}: unpack it on the box, in /etc/fedclip-edge{rest}")


@click.command()
@click.argument("id")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Certificate file to write; an existing file is overwritten. [default: ID.crt]",
)
@_DAYS
@_SITE
def renew(id: str, out: Path | None, days: int, site: Path) -> None:
    """Write a new certificate for a device.

    Renew it before the old one expires. The device ID keeps its key. Copy the certificate to the
    box as device.crt and restart the agent.
    """
    from fedclip_edge.pki import enrolment

    path = enrolment.renew(enrolment.Folder(site.absolute()), id, out=out, days=days)
    click.echo(f"{path}: copy it to the box as device.crt and restart the agent")


@click.command()
@click.argument("id")
@_SITE
def revoke(id: str, site: Path) -> None:
    """Exclude a device permanently.

    The coordinator and the broker refuse the device ID from now on. It cannot be enrolled again.
    """
    from fedclip_edge.pki import enrolment

    enrolment.revoke(enrolment.Folder(site.absolute()), id)
    click.echo(f"{id} is revoked")
