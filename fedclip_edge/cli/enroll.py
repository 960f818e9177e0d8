"""`fedclip-edge enroll`, `renew` and `revoke`: the keys and certificates of devices."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fedclip_edge.pki.site import Folder

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
    "--domain",
    help="Name for the origin of the box's pictures, for reports; written into its agent.toml.",
)
@click.option(
    "--pictures",
    metavar="FOLDER",
    help="Folder of the pictures on the box; written into its agent.toml. [default: /srv/pictures]",
)
@click.option(
    "--from",
    "listed",
    type=click.Path(path_type=Path),
    metavar="CSV",
    help="Enroll every box in this CSV file that is not enrolled yet. Its first row names the "
    "columns: id, domain, pictures; the last two may be missing.",
)
@click.option(
    "--again",
    is_flag=True,
    help="Give an enrolled device a new key, because its archive is lost. Its earlier key is "
    "revoked; its id, domain and folder of pictures stay the same.",
)
@click.option(
    "--csr",
    type=click.Path(path_type=Path),
    help="Certificate signing request (PEM file) made on the box. The private key then stays on "
    "the box. [default: a new key, which is put into the archive]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Archive to write; it must not exist yet. With --from, the folder of the archives. "
    "[default: ID.tar, in the current folder]",
)
@_DAYS
@_SITE
def enroll(
    id: str,
    domain: str | None,
    pictures: str | None,
    listed: Path | None,
    again: bool,
    csr: Path | None,
    out: Path | None,
    days: int,
    site: Path,
) -> None:
    """Enroll a device: write its key and certificate.

    They are written to an archive, with an agent.toml. Unpack it on the box, in /etc/fedclip-edge.

    ID is 1 to 64 characters of a-z, 0-9 and '-', without '-' at either end. With --csr it may be
    left out: the request names the device. With --from it is left out.

    To keep the private key on the box, create it there together with a request, and copy only the
    request to this machine:

    \b
      openssl genpkey -algorithm ed25519 -out device.key
      openssl req -new -key device.key -subj /CN=cam-01 \\
        -out cam-01.csr
    """  # noqa: D301 - click's mark for lines that are not wrapped
    from fedclip_edge.pki import enrolment
    from fedclip_edge.pki.site import Folder

    folder = Folder(site.absolute())
    if listed is not None:
        single = {"ID": id, "--csr": csr, "--again": again, "--domain": domain}
        given = [name for name, value in {**single, "--pictures": pictures}.items() if value]
        if given:
            raise click.UsageError(f"--from cannot be used together with {given[0]}.")
        _enroll_listed(folder, listed, out, days)
        return
    if not id and csr is None:
        raise click.UsageError(
            "Missing argument 'ID'. Only with --csr or --from can it be left out."
        )
    request = None if csr is None else _read_request(csr)
    if not again:
        path = enrolment.enroll(
            folder,
            id,
            request=request,
            out=out,
            days=days,
            domain=domain or "",
            pictures=pictures or "",
        )
        click.echo(_unpack(path, csr))
        return
    from fedclip_edge.cli import revocation_check

    made = enrolment.enroll_again(
        folder, id, request=request, out=out, days=days, domain=domain, pictures=pictures
    )
    said = revocation_check.report(folder, made.probe, made.done, key_replaced=True)
    click.echo(_unpack(made.archive, csr))
    click.echo(f"{made.id} has a new key; its earlier certificates are revoked\n{said}")


def _read_request(csr: Path) -> bytes:
    from fedclip_edge.errors import ConfigError
    from fedclip_edge.storage.text_file import decode

    try:
        request = csr.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{csr} cannot be read: {error.strerror}; name the file of the signing request"
        ) from None
    with suppress(ConfigError):  # `enroll` refuses other bytes
        request = decode(request, str(csr)).encode()  # PowerShell writes UTF-16
    return request


def _unpack(path: Path, csr: Path | None) -> str:
    rest = " next to its device.key" if csr is not None else "; it contains the private key"
    return f"{path}: unpack it on the box, in /etc/fedclip-edge{rest}"


def _enroll_listed(folder: Folder, listed: Path, out: Path | None, days: int) -> None:
    from fedclip_edge.pki import box_list, enrolment

    done = enrolment.enroll_all(folder, box_list.read_boxes(listed), out=out, days=days)
    for path in done.archives:
        click.echo(_unpack(path, None))
    for name in done.differing:
        click.echo(
            f"{name}: domain or pictures differ from those it was enrolled with; nothing was changed "
            "(edit its agent.toml on the box)"
        )
    for name in done.revoked:
        click.echo(f"{name}: was revoked and is not enrolled again; give the box another id")
    click.echo(
        f"{len(done.archives)} enrolled, {len(done.known)} enrolled before, "
        f"{len(done.revoked)} revoked"
    )
    if done.archives:
        click.echo(f"if `serve` runs elsewhere, copy {folder.registry} to it")


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
    box as device.crt and restart the agent. While the authority is being replaced, copy its
    certificate too.
    """
    from fedclip_edge.pki import enrolment
    from fedclip_edge.pki.site import Folder

    folder = Folder(site.absolute())
    path = enrolment.renew(folder, id, out=out, days=days)
    also = f", also {folder.path / 'ca.crt'} as ca.crt," if folder.earlier.is_dir() else ""
    click.echo(f"{path}: copy it to the box as device.crt{also} and restart the agent")


@click.command()
@click.argument("id")
@_SITE
def revoke(id: str, site: Path) -> None:
    """Exclude a device permanently.

    The coordinator and the broker refuse the device ID from now on. It cannot be enrolled again.

    The command makes the broker read its files again, and connects to it with a revoked certificate
    to see that it does refuse such certificates.
    """
    from fedclip_edge.cli import revocation_check
    from fedclip_edge.pki import enrolment
    from fedclip_edge.pki.site import Folder

    folder = Folder(site.absolute())
    probe = enrolment.revoke(folder, id)
    done = f"{id} is revoked at the coordinator"
    said = revocation_check.report(folder, probe, done)
    click.echo(f"{id} is revoked\n{said}")
