"""`fedclip-edge serve`: the coordinator of one fleet."""

from __future__ import annotations

import functools
from pathlib import Path

import click


@click.command()
@click.argument("config", type=click.Path(path_type=Path), default="fleet.toml")
@click.option(
    "--once",
    is_flag=True,
    help="Exit when one run is over. If the newest run in the journal is over, begin a new one.",
)
@click.option(
    "--take-over",
    is_flag=True,
    help="Start even if another coordinator of this fleet seems to be online. Use it only if that "
    "coordinator is known to be dead.",
)
@click.option(
    "--from-round",
    type=click.IntRange(min=0),
    metavar="N",
    help="Go back to the model of round N and train the later rounds again. A damaged journal names "
    "the round to go back to.",
)
@click.option(
    "--new-run",
    is_flag=True,
    help="Abandon the unfinished run in the journal and begin a new one. Models of the abandoned run "
    "stay in the journal. Do not write this into a service file: each restart would begin again.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Write each log line as a JSON object, for programs."
)
def serve(
    config: Path,
    once: bool,
    take_over: bool,
    from_round: int | None,
    new_run: bool,
    as_json: bool,
) -> None:
    """Run the coordinator of a fleet.

    It resumes the unfinished run in the journal; with a new journal, it starts the first run. When
    a run is over, it goes on to give its model to the devices. The next run starts with
    `fedclip-edge run start`, or as [schedule] says. SIGTERM and Ctrl-C stop it with exit code 0;
    start it again to continue.

    CONFIG is the fleet's configuration file, by default fleet.toml. It names the broker, the
    bundle and the training plan.
    """
    from fedclip_edge import log
    from fedclip_edge.processes.stopping import stopping_on_signals
    from fedclip_edge.processes.systemd import SYSTEMD
    from fedclip_edge.processes.threads import exit_on_thread_failure

    if new_run and from_round is not None:
        raise click.UsageError("--new-run and --from-round exclude each other; choose one")
    log.use_json(as_json)
    SYSTEMD.connect()
    exit_on_thread_failure()
    with stopping_on_signals(is_service=True):
        from fedclip_edge.coordinator import process

        loaded = process.load(config)
        page = None
        if (settings := loaded.page) is not None:
            from fedclip_edge.web.on_demand import open_page

            page = functools.partial(
                open_page, settings, config, loaded.page_token, owner="serve", as_json=as_json
            )
        process.serve(
            loaded,
            reload=lambda: process.load(config),
            once=once,
            take_over=take_over,
            from_round=from_round,
            new_run=new_run,
            page=page,
        )
