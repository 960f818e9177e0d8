"""`fedclip-edge enroll`, `renew` and `revoke`: the keys and certificates of devices."""

from __future__ import annotations

from pathlib import Path

import click

_SITE = click.option(
    "--site",
    type=click.Path(path_type=Path),
    default="site",
    show_default=True,
    help="The folder that `broker init` made.",
)
_DAYS = click.option(
    "--days",
    default=730,
    show_default=True,
    type=click.IntRange(1, 7300),
    help="How long the certificate is good for.",
)


@click.command()
@click.argument("id", default="")
@click.option(
    "--csr",
    type=click.Path(path_type=Path),
    help="A signing request made on the box, whose key then never leaves it.",
)
@click.option("--out", type=click.Path(path_type=Path), help="The archive. [default: ID.tar]")
@_DAYS
@_SITE
def enroll(id: str, csr: Path | None, out: Path | None, days: int, site: Path) -> None:
    """Give the device ID a key, a certificate and an agent.toml, in one archive.

    \b
    To keep the key on the box, make it and a request there, and bring the request:
      openssl genpkey -algorithm ed25519 -out device.key
      openssl req -new -key device.key -subj /CN=cam-01 -out cam-01.csr
    """  # noqa: D301 - click's mark for lines that are not wrapped
    from fedclip_edge.errors import ConfigError
    from fedclip_edge.pki import enrolment

    if not id and csr is None:
        raise click.UsageError("Missing argument 'ID', or --csr with a request that names it.")
    request = None
    if csr is not None:
        try:
            request = csr.read_bytes()
        except OSError as error:
            raise ConfigError(f"{csr} cannot be read: {error.strerror}; name the request") from None
    path = enrolment.enroll(
        enrolment.Folder(site.absolute()), id, request=request, out=out, days=days
    )
    rest = "beside its device.key" if csr is not None else "; its private key is in it"
    click.echo(f"{path}: unpack it on the box, in /etc/fedclip-edge {rest}".replace(" ;", ";"))


@click.command()
@click.argument("id")
@click.option("--out", type=click.Path(path_type=Path), help="The file. [default: ID.crt]")
@_DAYS
@_SITE
def renew(id: str, out: Path | None, days: int, site: Path) -> None:
    """Write a new certificate for the key that the device ID has."""
    from fedclip_edge.pki import enrolment

    path = enrolment.renew(enrolment.Folder(site.absolute()), id, out=out, days=days)
    click.echo(f"{path}: put it on the box as device.crt, and restart the agent")


@click.command()
@click.argument("id")
@_SITE
def revoke(id: str, site: Path) -> None:
    """Refuse the device ID from now on, at the coordinator and at the broker, for good."""
    from fedclip_edge.pki import enrolment

    enrolment.revoke(enrolment.Folder(site.absolute()), id)
    click.echo(f"{id} is revoked")
