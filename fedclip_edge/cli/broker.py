"""`fedclip-edge broker`: an MQTT broker on this machine, or the files of a fleet's broker."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def broker() -> None:
    """An MQTT broker: for trying things out on one machine, or for a fleet."""


@broker.command()
@click.option(
    "--port",
    default=1883,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="0 takes a free one.",
)
def start(port: int) -> None:
    """Run a broker on loopback until Ctrl-C.

    mosquitto, or amqtt where it is not installed.
    """
    import tempfile

    from fedclip_edge.errors import BrokerError
    from fedclip_edge.processes.children import Children
    from fedclip_edge.transport import local_broker

    with tempfile.TemporaryDirectory(prefix="fedclip-edge-broker-") as folder, Children() as kids:
        running = local_broker.start(kids, Path(folder), port)
        click.echo(f"{running.name} listens on 127.0.0.1:{running.address.port}; Ctrl-C ends it")
        code = running.process.wait()
        raise BrokerError(f"{running.name} ended by itself with code {code}; start it again")


@broker.command()
@click.argument("folder", type=click.Path(path_type=Path), default="site")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    help="A name or address of the broker's; may be repeated. Devices are given the first. "
    "[default: this machine's name]",
)
@click.option("--port", default=8883, show_default=True, type=click.IntRange(1, 65535), help="TLS.")
@click.option("--fleet", default="lab", show_default=True, help="The fleet that devices will join.")
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    help="Where FOLDER/broker will lie on the broker's host. [default: where it is made]",
)
@click.option(
    "--reload",
    default="",
    help="Command that has the broker read its files again, for `revoke`. "
    "[default: signal the mosquitto that runs here with these files]",
)
def init(
    folder: Path, hosts: tuple[str, ...], port: int, fleet: str, home: Path | None, reload: str
) -> None:
    """Make FOLDER: a private authority, and all that a broker and a coordinator need."""
    import socket

    from fedclip_edge.pki import enrolment

    made = enrolment.create_site(
        folder,
        hosts or (socket.gethostname().lower(),),
        fleet=fleet,
        port=port,
        broker_home=home,
        reload=reload,
    )
    site = "" if folder == Path("site") else f" --site {folder}"
    click.echo(
        f"""made {made.path}; whoever has ca.key in it can make devices: keep it to yourself

the broker      mosquitto -c {made.broker}/mosquitto.conf
a device        fedclip-edge enroll cam-01{site}
fleet.toml      fleet = "{fleet}"
                registry = "{made.registry}"
                [broker]
                host = "{hosts[0] if hosts else "localhost"}"
                port = {port}
                ca = "{made.coordinator}/ca.crt"
                certificate = "{made.coordinator}/coordinator.crt"
                key = "{made.coordinator}/coordinator.key\""""
    )
