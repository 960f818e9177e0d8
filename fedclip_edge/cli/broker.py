"""`fedclip-edge broker`: an MQTT broker on this machine, or the files for a fleet's broker."""

from __future__ import annotations

from pathlib import Path

import click

from fedclip_edge.cli.group import Group


@click.group(cls=Group)
def broker() -> None:
    """Start a test broker, or create a fleet broker's files."""


@broker.command()
@click.option(
    "--port",
    default=1883,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="TCP port; 0 chooses a free one.",
)
def start(port: int) -> None:
    """Run an MQTT broker for tests on this machine until Ctrl-C.

    It listens on 127.0.0.1 only and accepts every client. It is mosquitto if that is installed,
    otherwise amqtt, a broker in Python.
    """
    import tempfile

    from fedclip_edge.errors import BrokerError
    from fedclip_edge.processes.children import Children
    from fedclip_edge.transport import local_broker

    with tempfile.TemporaryDirectory(prefix="fedclip-edge-broker-") as folder, Children() as kids:
        running = local_broker.start(kids, Path(folder), port)
        click.echo(f"{running.name} listens on 127.0.0.1:{running.address.port}; stop it: Ctrl-C")
        code = running.process.wait()
        raise BrokerError(
            f"the broker {running.name} exited unexpectedly with code {code}; start it again"
        )


@broker.command()
@click.argument("folder", type=click.Path(path_type=Path), default="site")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    help="Host name or IP address of the broker; may be repeated. The broker's certificate holds "
    "all of them, and devices connect to the first. [default: this machine's name]",
)
@click.option(
    "--port",
    default=8883,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="TCP port on which the broker accepts TLS connections.",
)
@click.option(
    "--fleet",
    default="lab",
    show_default=True,
    help="Name of the fleet: 1 to 64 characters of a-z, 0-9 and '-', without '-' at either end.",
)
@click.option(
    "--devices",
    default=100,
    show_default=True,
    type=click.IntRange(1, 100_000),
    help="Largest number of devices in the fleet. The broker's limits on memory, queues and "
    "connections are made for it.",
)
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    help="Path that FOLDER/broker will have on the broker's host; mosquitto.conf refers to it. "
    "[default: FOLDER/broker]",
)
@click.option(
    "--reload",
    default="",
    help="Command with which `revoke` makes the broker read its files again. "
    "[default: send SIGHUP to the mosquitto that runs on this machine with these files]",
)
def init(
    folder: Path,
    hosts: tuple[str, ...],
    port: int,
    fleet: str,
    devices: int,
    home: Path | None,
    reload: str,
) -> None:
    """Create a fleet's certificate authority and broker files.

    The files of the coordinator are created too.

    FOLDER is `site` by default and must not exist yet. `enroll`, `renew` and `revoke` work on it.
    Keep FOLDER/ca.key secret: with it, anyone can issue certificates for devices. The boxes fetch
    only bundles that FOLDER/export/export.key has signed; keep it away from the coordinator's host.
    """
    import shlex
    import socket

    from fedclip_edge.pki import site

    made = site.create_site(
        folder,
        hosts or (socket.gethostname().lower(),),
        fleet=fleet,
        port=port,
        devices=devices,
        broker_home=home,
        reload=reload,
    )
    option = "" if folder == Path("site") else f" --site {shlex.quote(str(folder))}"
    click.echo(
        f"""created {made.path}; keep ca.key in it secret: with it, anyone can enroll devices

{_how_to_run(made.broker, home)}
add a device    fedclip-edge enroll cam-01{option}
sign a bundle   fedclip-edge bundle sign bundle --key {made.export_key}
for fleet.toml  fleet = "{fleet}"
                registry = "{made.registry}"
                [broker]
                host = "{hosts[0] if hosts else "localhost"}"
                port = {port}
                ca = "{made.coordinator}/ca.crt"
                certificate = "{made.coordinator}/coordinator.crt"
                key = "{made.coordinator}/coordinator.key\""""
    )


@broker.command()
@click.argument("folder", type=click.Path(path_type=Path), default="site")
def rotate(folder: Path) -> None:
    """Give the coordinator a new key.

    The earlier key signs that the new one follows it, so devices accept the new one without a
    visit. The certificate of the earlier key is revoked. Do this on a day of your choice, or when
    somebody who had the key leaves.

    FOLDER is the one that `broker init` created, by default `site`.
    """
    from fedclip_edge.cli import revocation_check
    from fedclip_edge.pki import rotation
    from fedclip_edge.pki.site import Folder

    site = Folder(folder.absolute())
    made = rotation.rotate_coordinator(site)
    what = "the certificates of the earlier key"
    said = revocation_check.broker_line(site, made.probe, made.done, what)
    click.echo(
        f"{made.done}: {made.key[:16]}...\n"
        f"broker       {said}\n"
        f"coordinator  if `serve` uses a copy of {site.coordinator}, replace the copy; then restart\n"
        "             `serve`: until then it works with the earlier key, and cannot connect again"
    )


@broker.command()
@click.argument("folder", type=click.Path(path_type=Path), default="site")
@click.option(
    "--finish",
    is_flag=True,
    help="End the time in which both authorities are valid. The earlier one is deleted.",
)
@click.option(
    "--cut-off",
    is_flag=True,
    help="With --finish: also if devices have no new certificate; the broker then refuses them.",
)
def replace_authority(folder: Path, finish: bool, cut_off: bool) -> None:
    """Replace the certificate authority, in two steps.

    The first step makes a new authority. From then on the broker accepts the certificates of both,
    and each box gets its new files at any time: `renew` makes its certificate. The step with
    --finish ends that time, when every box has its files.

    FOLDER is the one that `broker init` created, by default `site`.
    """
    from fedclip_edge.pki import replacement
    from fedclip_edge.pki.site import Folder

    if cut_off and not finish:
        raise click.UsageError("--cut-off needs --finish.")
    site = Folder(folder.absolute())
    if finish:
        ended = replacement.finish(site, cut_off=cut_off)
        click.echo(
            f"""the earlier authority of {ended.registry.fleet} is deleted
1  copy {site.broker} to the broker's host, and restart the broker: it then refuses the earlier
   certificates"""
        )
        if ended.cut_off:
            click.echo(f"refused then: {', '.join(ended.cut_off)}")
        return
    made = replacement.begin(site)
    click.echo(
        f"""{made.registry.fleet} has a new authority; the broker accepts both until --finish
1  copy {site.broker} to the broker's host, and restart the broker: SIGHUP is not enough
2  if `serve` uses a copy of {site.coordinator}, replace the copy; restart `serve`
3  run `fedclip-edge renew ID` for each device (there are {len(made.registry.to_renew)}); copy the
   two files that it names to the box, and restart the agent
4  when all boxes work with them: fedclip-edge broker replace-authority {folder} --finish"""
    )


@broker.command()
@click.argument("folder", type=click.Path(path_type=Path), default="site")
@click.option("--host", required=True, help="New host name or IP address of the broker.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="New TCP port of the broker. [default: the port that it has]",
)
def move(folder: Path, host: str, port: int | None) -> None:
    """Give the broker a new address.

    The broker's certificate gets the new name too, and `serve` tells the devices the new address,
    in a message that it signs. They go there when `serve` leaves the broker's old address.

    FOLDER is the one that `broker init` created, by default `site`.
    """
    from fedclip_edge.pki import relocation
    from fedclip_edge.pki.site import Folder

    site = Folder(folder.absolute())
    made = relocation.move_broker(site, host, port)
    click.echo(
        f"""the broker of {made.fleet} moves to {made.host}:{made.port}
1  copy {site.broker} to the new host, and start the broker there; leave the old one running
2  if `serve` uses a copy of {site.registry}, replace the copy; `serve` then tells the devices
3  stop `serve`, write the new host and port under [broker] in fleet.toml, and start it
4  stop the old broker when every device has joined at the new address"""
    )


def _how_to_run(files: Path, home: Path | None) -> str:
    """The command for the broker, and those that let the user `mosquitto` read its files."""
    import os
    import shlex

    from fedclip_edge.pki import mosquitto

    place = shlex.quote(str(files if home is None else home))
    settings = shlex.quote(f"{files if home is None else home}/mosquitto.conf")
    read = (f"chgrp -R mosquitto {place}", f"chmod -R g+rX {place}")
    run = f"run the broker  mosquitto -c {settings}"
    if home is not None:
        steps = (f"cp -r broker {place}", *read)
        return "\n".join(
            (
                f"on its host     copy {files} there, then run as root:",
                *(f"                {step}" for step in steps),
                run,
            )
        )
    if os.geteuid() != 0:
        return f"{run}\nas root, first  {' && '.join(read)}"
    closed = mosquitto.closed_to_daemon(files)
    if closed is None:
        return run
    return (
        f"{run}\n"
        f"                as root this fails: mosquitto changes to the user mosquitto, which has no "
        f"access to\n                {closed}. Start it as another user, or create the fleet in "
        "another folder."
    )
