"""The process of `fedclip-edge serve`: a server with its broker, clock, socket and trainer."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedclip_edge import log
from fedclip_edge.config.fleet import FleetConfig, load_fleet
from fedclip_edge.coordinator import commands, control, coordinator, registry_watch
from fedclip_edge.coordinator.fleet_claim import claim_fleet
from fedclip_edge.coordinator.journal import Journal, open_journal
from fedclip_edge.coordinator.monitor import Monitor, monitored
from fedclip_edge.coordinator.run_choice import choose_run
from fedclip_edge.coordinator.server import Basis, Server, coordinate, read_basis
from fedclip_edge.coordinator.trainer import Trainer, start_trainer, trainer_id
from fedclip_edge.errors import ConfigError, JournalError, RunError
from fedclip_edge.learning import methods
from fedclip_edge.learning.run_steps import sends_moments
from fedclip_edge.pki.expiry import DeviceExpiry, Expiry
from fedclip_edge.pki.own_certificate import check_own_certificate
from fedclip_edge.processes.children import Children
from fedclip_edge.processes.systemd import SYSTEMD
from fedclip_edge.protocol import signing
from fedclip_edge.records import COORDINATOR
from fedclip_edge.vision.bundle import read_bundle

if TYPE_CHECKING:
    from fedclip_edge.web.on_demand import OnDemand

_TICK_S = 0.2
# The coordinator's certificate expires together with the authority that signed it (authority.py).
_NEW_AUTHORITY = (
    "create a new authority with `fedclip-edge broker init` and enroll every device again"
)


def load(path: Path) -> FleetConfig:
    """Read fleet.toml and fill in its plan's defaults.

    Raises ConfigError, naming the file and the table.
    """
    config = load_fleet(path)
    try:
        config = replace(config, plan=methods.with_defaults(config.plan))
    except ConfigError as error:
        raise ConfigError(f"{path} [plan]: {error}") from None
    if config.rules.absent == "last" and not sends_moments(config.plan):
        raise ConfigError(
            f'{path} [rules]: absent = "last" needs a method with a round of exact sums (auto, gda, '
            f"ridge, tofa); an update of {config.plan.method} fits only the model that it was "
            'trained from; write absent = "skip"'
        )
    return config


def serve(
    config: FleetConfig,
    *,
    reload: Callable[[], FleetConfig] | None = None,
    once: bool = False,
    take_over: bool = False,
    from_round: int | None = None,
    new_run: bool = False,
    page: Callable[[Children], OnDemand | None] | None = None,
) -> None:
    """Run the coordinator until it is stopped, or with `once` until one run is over.

    `reload` reads the settings for each further run; without it they stay. `take_over` replaces a
    coordinator that is online. With `from_round`, the run first goes back to the model of this
    closed round. With `new_run`, the journal's unfinished run is abandoned. `page` opens the
    fleet's page, if it is wanted.

    Raises ConfigError if a file or a setting is wrong, or if another coordinator is online;
    BundleError if the bundle cannot be used; LinkError if no broker answers the first connection;
    RefusedError if the broker refuses this client; JournalError if the journal or the model file
    cannot be read or written, or if the journal is damaged; RunError if another coordinator took
    over, if the contributions of all devices are refused, or if the trainer ends before the first
    round; ModuleNotFoundError if metrics are wanted and prometheus-client is not installed.
    """
    check_own_certificate(config.broker.certificate, COORDINATOR, config.fleet)
    enrolled = registry_watch.read_registry(config)
    read_bundle(config.bundle)  # before anything is made for a bundle that cannot be used
    device = trainer_id(config)
    invited = frozenset(() if device is None else (device,))
    journal = open_journal(config.journal, config.keep_models, config.keep_sums_mb)
    with (
        contextlib.closing(journal),
        Children() as children,
        contextlib.ExitStack() as closing,
    ):
        monitor = closing.enter_context(monitored(config))
        journal.check()
        served = None if new_run else journal.runs.last()
        if served is not None and once and journal.runs.course(served.id).is_over:
            served = None
        basis = read_basis(config, served)
        chosen = choose_run(
            config,
            basis.classes,
            basis.dim,
            basis.encoder_id,
            journal,
            new_run=new_run,
            once=once,
        )
        me = signing.load_identity(config.broker.key, config.journal.with_suffix(".key"))
        registry_watch.check_own_key(config, enrolled, me)
        claim = claim_fleet(config, chosen.run, journal, me, take_over=take_over)
        closing.callback(claim.link.close)
        if journal.needs_rewriting:  # now no other coordinator works with it
            _rewrite(journal)
        run = chosen.begin()
        if from_round is not None:
            journal.rounds.rewind(run.id, from_round)
        first = coordinate(
            config,
            run,
            journal,
            basis,
            claim,
            me,
            time.monotonic(),
            invited=invited,
            registry=enrolled,
        )

        def load_again() -> tuple[FleetConfig, Basis]:
            loaded = config if reload is None else reload()
            return loaded, read_basis(loaded, None)

        server = Server(config, journal, first, load_again, invited)
        trainer = None
        try:
            operator = control.listen(control.socket_path(config.journal))
            closing.callback(operator.close)
            server.open(time.monotonic())
            SYSTEMD.ready()
            # What exists now stays until the end, so the garbage collector need not look at it.
            gc.freeze()
            if device is not None:
                trainer = start_trainer(config, device, children, once=once)
            shown = None if page is None else page(children)
            if shown is not None:
                closing.callback(shown.close)
            _loop(server, operator, trainer, monitor, shown, once=once)
        finally:
            server.coordinator.say_goodbye()
        if trainer is not None and once:
            trainer.wait()


def _rewrite(journal: Journal) -> None:
    """Write the journal again after a device was forgotten, before anybody waits for it."""
    try:
        journal.rewrite()
    except JournalError as error:
        log.event("journal_not_rewritten", reason=str(error))
    else:
        log.event("journal_rewritten")


def _loop(
    server: Server,
    operator: control.ControlSocket,
    trainer: Trainer | None,
    monitor: Monitor | None,
    page: OnDemand | None,
    *,
    once: bool,
) -> None:
    ticked_at = time.monotonic()
    broker = server.config.broker
    expiries = [Expiry(path, _NEW_AUTHORITY) for path in (broker.certificate, broker.ca)]
    device_expiry = DeviceExpiry()
    changed_at = registry_watch.changed_at(server.config)
    transport = server.coordinator.publisher.transport
    event = None
    while not (once and server.coordinator.finished):
        event = transport.next_event(_TICK_S) if event is None else event
        now = time.monotonic()
        if page is not None:
            page.look(now)
        if event is not None:
            following = transport.next_event(0)
            server.coordinator.handle_event(event, now, more=following is not None)
            event = following
        while (asked := operator.next_request()) is not None:
            request, reply = asked
            reply(commands.answer(server, request, now))
        if now - ticked_at >= _TICK_S:
            ticked_at = now
            for expiry in expiries:
                expiry.look(now)
            device_expiry.look(now, server.coordinator.admission.registry)
            if changed_at != (changed_at := registry_watch.changed_at(server.config)):
                registry_watch.read_again(server.coordinator, now)
            server.coordinator.tick(now)
            if monitor is not None:
                monitor.look(server.coordinator, now)
            SYSTEMD.status(_status(server.coordinator))
        SYSTEMD.turn()
        server.end_run()
        if not once:
            server.start_if_due(now)
        if trainer is not None and _has_ended(trainer, server, once=once):
            trainer, server.invited = None, frozenset()


def _has_ended(trainer: Trainer, server: Server, *, once: bool) -> bool:
    """True, after a log line, if the trainer's process has ended.

    Raises RunError if it ended before the first round that it was to take part in.
    """
    if once and server.coordinator.finished:
        return False  # it ends with the run
    code = trainer.code()
    if code is None:
        return False
    if not server.coordinator.has_begun:
        raise RunError(
            f"the trainer's process ended with code {code} before the first round; its "
            "messages are in the output above"
        )
    log.event("trainer_ended", code=code)
    return True


def _status(serving: coordinator.Coordinator) -> str:
    """The run, its round and the devices, in one line for systemd."""
    rounds, online = serving.rounds, len(serving.devices.incarnations)
    where = f"round {rounds.round} of {rounds.rounds} ({rounds.phase})"
    return (
        f"{rounds.run}: {'over' if rounds.phase == 'done' else where}, "
        f"{online} device{'' if online == 1 else 's'} online"
    )
