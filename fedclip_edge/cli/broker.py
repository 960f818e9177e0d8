"""`fedclip-edge broker`: an MQTT broker for one machine."""

from __future__ import annotations

import click


@click.group()
def broker() -> None:
    """An MQTT broker for trying things out on one machine."""


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
    from pathlib import Path

    from fedclip_edge.errors import BrokerError
    from fedclip_edge.messaging import loopback
    from fedclip_edge.processes import Children

    with tempfile.TemporaryDirectory(prefix="fedclip-edge-broker-") as folder, Children() as kids:
        running = loopback.start(kids, Path(folder), port)
        click.echo(f"{running.name} listens on 127.0.0.1:{running.address.port}; Ctrl-C ends it")
        code = running.process.wait()
        raise BrokerError(f"{running.name} ended by itself with code {code}; start it again")
