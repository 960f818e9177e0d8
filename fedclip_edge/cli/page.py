"""`fedclip-edge page`: the web page of a fleet, or of a box."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("config", type=click.Path(path_type=Path), default="fleet.toml")
@click.option(
    "--socket",
    "handle",
    type=click.IntRange(min=0),
    metavar="N",
    help="File descriptor of a socket that listens already; `serve` and `agent` give it. The page "
    "then ends after a minute without a request.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Write each log line as a JSON object, for programs."
)
def page(config: Path, handle: int | None, as_json: bool) -> None:
    """Serve the web page of a fleet or of a box, at the address under [page].

    `serve` and `agent` start it by themselves, when a browser asks for it, if their CONFIG has the
    table [page]. It needs the rights of their user. By hand it also works while they do not run: it
    shows what is known from their files. The file with the token that opens the page is in the log.

    CONFIG is the configuration file of the coordinator or of a device, by default fleet.toml. A
    file with the setting `id` is one of a device.
    """
    from fedclip_edge.processes.blas import limit_blas_threads

    limit_blas_threads()  # before numpy is imported
    import socket

    from fedclip_edge import log
    from fedclip_edge.storage.toml_file import read_toml

    log.use_json(as_json)
    given = None if handle is None else socket.socket(fileno=handle)
    if "id" in read_toml(config):
        from fedclip_edge.agent.page import process as box
        from fedclip_edge.config.agent import load_agent

        box.serve(load_agent(config), config, given)
    else:
        from fedclip_edge.config.fleet import load_fleet
        from fedclip_edge.coordinator.page import process as fleet

        fleet.serve(load_fleet(config), given)
