"""`fedclip-edge agent`: the program of one device."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fedclip_edge.cli.progress import Rate


@click.command()
@click.argument("config", type=click.Path(path_type=Path), default="agent.toml")
@click.option(
    "--once", is_flag=True, help="Exit after one run. Without it, the agent waits for the next run."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Write each log line as a JSON object, for programs."
)
@click.option(
    "--access-list",
    is_flag=True,
    help="Print the lines of a mosquitto access list that the broker of [answers.broker] needs for "
    "this device, and exit.",
)
def agent(config: Path, once: bool, as_json: bool, access_list: bool) -> None:
    """Run a device's agent, which trains on its pictures.

    It also evaluates each model on the device's test pictures. No picture leaves the device.
    SIGTERM and Ctrl-C stop the agent with exit code 0, or with --once, 143 and 130. SIGHUP makes it
    read CONFIG again.

    CONFIG is the device's configuration file, by default agent.toml. It names the fleet, the
    broker, the bundle and the folder of pictures.
    """
    if access_list:
        _print_access_list(config)
        return
    from fedclip_edge.processes.blas import limit_blas_threads

    limit_blas_threads()  # before numpy is imported
    from fedclip_edge import log
    from fedclip_edge.processes.reloading import RELOAD
    from fedclip_edge.processes.stopping import stopping_on_signals
    from fedclip_edge.processes.systemd import SYSTEMD
    from fedclip_edge.processes.threads import exit_on_thread_failure

    log.use_json(as_json)
    SYSTEMD.connect()
    RELOAD.listen()
    exit_on_thread_failure()
    with stopping_on_signals(is_service=not once):
        from fedclip_edge.agent import process as device
        from fedclip_edge.cli.progress import progress_bar
        from fedclip_edge.config.agent import load_agent

        loaded = load_agent(config)
        page = None
        if (settings := loaded.page) is not None:
            from fedclip_edge.web.on_demand import open_page

            page = functools.partial(
                open_page, settings, config, loaded.page_token, owner="the agent", as_json=as_json
            )
        with progress_bar("encoding pictures", _encoding) as progress:
            device.run(loaded, once=once, progress=progress, file=config, page=page)


def _print_access_list(config: Path) -> None:
    from fedclip_edge.agent import home_assistant
    from fedclip_edge.config.agent import load_agent
    from fedclip_edge.errors import ConfigError

    loaded = load_agent(config)
    broker = loaded.answers.broker
    if broker is None:
        raise ConfigError(
            f"{config} has no table [answers.broker], so the device publishes no answers; add it"
        )
    click.echo(home_assistant.access_list(broker, loaded.id), nl=False)


def _encoding(done: int, total: int, rate: Rate) -> None:
    from fedclip_edge import log

    per_s, left_s = round(rate.per_s, 1), round(rate.left_s)
    log.event("encoding_pictures", done=done, total=total, per_s=per_s, left_s=left_s)
