"""The process of `fedclip-edge serve`: a server with its broker, clock, socket and trainer.

Law: two coordinators never serve one fleet. Before it sends anything, a new coordinator listens for
the retained state of another one. It takes over only if the other one is offline or the operator
asks for it (`take_over`), and always with a higher epoch.
"""

from __future__ import annotations

import contextlib
import gc
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fedclip_edge import log
from fedclip_edge.config.fleet import FleetConfig, load_fleet
from fedclip_edge.coordinator import commands, control, coordinator, publisher
from fedclip_edge.coordinator.journal import Journal, open_journal
from fedclip_edge.coordinator.journal_tables import Run
from fedclip_edge.coordinator.monitor import Monitor, monitored
from fedclip_edge.coordinator.run_choice import choose_run
from fedclip_edge.coordinator.server import Basis, Claim, Server, coordinate, read_basis
from fedclip_edge.coordinator.trainer import Trainer, start_trainer, trainer_id
from fedclip_edge.errors import ConfigError, FedclipError, JournalError, PeerError, RunError
from fedclip_edge.learning import methods
from fedclip_edge.learning.schedule import sends_moments
from fedclip_edge.pki import registry
from fedclip_edge.pki.expiry import DeviceExpiry, Expiry
from fedclip_edge.pki.own_certificate import check_own_certificate
from fedclip_edge.processes.children import Children
from fedclip_edge.processes.systemd import SYSTEMD
from fedclip_edge.protocol import signing, wire
from fedclip_edge.protocol.messages import CoordinatorState
from fedclip_edge.protocol.refusals import Refusals
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.records import COORDINATOR
from fedclip_edge.transport import base, mqtt
from fedclip_edge.transport.disconnect import disconnect_client
from fedclip_edge.vision.bundle import read_bundle

_LISTEN_S = 0.5
_FIRST_CONNECTION_S = 10.0
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
) -> None:
    """Run the coordinator until it is stopped, or with `once` until one run is over.

    `reload` reads the settings for each further run; without it they stay. `take_over` replaces a
    coordinator that is online. With `from_round`, the run first goes back to the model of this
    closed round. With `new_run`, the journal's unfinished run is abandoned.

    Raises ConfigError if a file or a setting is wrong, or if another coordinator is online;
    BundleError if the bundle cannot be used; LinkError if no broker answers the first connection;
    RefusedError if the broker refuses this client; JournalError if the journal or the model file
    cannot be read or written, or if the journal is damaged; RunError if another coordinator took
    over, if the contributions of all devices are refused, or if the trainer ends before the first
    round; ModuleNotFoundError if metrics are wanted and prometheus-client is not installed.
    """
    check_own_certificate(config.broker.certificate, COORDINATOR, config.fleet)
    enrolled = _read_registry(config)
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
        served = None if new_run else journal.last_run()
        if served is not None and once and journal.course(served.id).is_over:
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
        _check_own_key(config, enrolled, me)
        claim = _claim(config, chosen.run, journal, me, take_over=take_over)
        closing.callback(claim.link.close)
        if journal.needs_rewriting:  # now no other coordinator works with it
            _rewrite(journal)
        run = chosen.begin()
        if from_round is not None:
            journal.rewind(run.id, from_round)
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
            _loop(server, operator, trainer, monitor, once=once)
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
    *,
    once: bool,
) -> None:
    ticked_at = time.monotonic()
    broker = server.config.broker
    expiries = [Expiry(path, _NEW_AUTHORITY) for path in (broker.certificate, broker.ca)]
    device_expiry = DeviceExpiry()
    changed_at = _changed_at(server.config)
    transport = server.coordinator.publisher.transport
    event = None
    while not (once and server.coordinator.finished):
        event = transport.next_event(_TICK_S) if event is None else event
        now = time.monotonic()
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
            if changed_at != (changed_at := _changed_at(server.config)):
                _admit(server.coordinator, now)
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


def _read_registry(config: FleetConfig) -> registry.Registry | None:
    """The registry that the configuration names, if any.

    Raises ConfigError if it cannot be read, or belongs to another fleet.
    """
    if config.registry is None:
        return None
    enrolled = registry.read(config.registry)
    if enrolled.fleet != config.fleet:
        raise ConfigError(
            f"{config.registry} is the registry of the fleet {enrolled.fleet!r}, not of "
            f"{config.fleet!r}; correct 'fleet' or 'registry' in fleet.toml"
        )
    return enrolled


def _check_own_key(
    config: FleetConfig, enrolled: registry.Registry | None, me: signing.Identity
) -> None:
    """Raise ConfigError if the registry names another key for the coordinator.

    Devices would refuse every message, and say only that a signature is wrong.
    """
    if enrolled is not None and config.broker.key is not None and enrolled.coordinator != me.key:
        raise ConfigError(
            f"{config.broker.key} is not the key that {config.registry} names for the coordinator; "
            "copy coordinator.key, coordinator.crt and devices.json together from the operator's "
            "folder, or run `fedclip-edge broker rotate` there again if it was interrupted"
        )


def _changed_at(config: FleetConfig) -> int:
    """Modification time of the registry in nanoseconds; 0 if it cannot be read."""
    try:
        return 0 if config.registry is None else config.registry.stat().st_mtime_ns
    except OSError:
        return 0


def _admit(serving: coordinator.Coordinator, now: float) -> None:
    """Read the registry again, and disconnect the devices that it no longer admits."""
    config = serving.config
    try:
        enrolled = _read_registry(config)
        assert enrolled is not None
        out = serving.apply_registry(enrolled, now)
    except ConfigError as error:
        log.event("registry_not_read", reason=str(error))  # the registry read before is still used
        return
    for device, incarnation in out.items():
        client = base.device_client(config.fleet, device, incarnation)
        threading.Thread(target=_disconnect_client, args=(config, client), daemon=True).start()


def _disconnect_client(config: FleetConfig, client: str) -> None:
    try:
        disconnect_client(config.broker, client)
    except FedclipError as error:
        log.event("client_not_disconnected", client=client, reason=str(error))


def _claim(
    config: FleetConfig, run: Run, journal: Journal, me: signing.Identity, *, take_over: bool
) -> Claim:
    heard = 0
    while True:
        # A claim stops any other process that writes to this journal. So the epoch is claimed only
        # after listening for another coordinator.
        epoch = max(journal.epoch, heard) + 1
        incarnation = secrets.token_hex(8)
        gone = CoordinatorState(incarnation, epoch, run.id, online=False, key=me.key)
        topics = Topics(config.fleet)
        link = mqtt.PahoTransport(
            config.broker,
            base.coordinator_client(),
            topics.for_coordinator(),
            publisher.will(config.fleet, gone, me),
            topics.owner,
        )
        link.connect(_FIRST_CONNECTION_S)
        other = _listen(config, link, me)
        if other is not None and other.online and not take_over:
            link.close()
            raise ConfigError(
                f"another coordinator is online for fleet {config.fleet} (epoch {other.epoch}); "
                "stop it, or add --take-over if you know that it is dead"
            )
        heard = heard if other is None else max(heard, other.epoch)
        if heard < epoch and journal.next_epoch(above=heard) == epoch:
            return Claim(link, incarnation, epoch)
        link.close()


def _listen(
    config: FleetConfig, link: mqtt.PahoTransport, me: signing.Identity
) -> CoordinatorState | None:
    """Listen for _LISTEN_S seconds; return another coordinator's newest state, or None.

    Coordinators of an enrolled fleet share one key; states signed with another key are refused.
    """
    topic = Topics(config.fleet).coordinator_state
    deadline, newest, refusals = time.monotonic() + _LISTEN_S, None, Refusals()
    while (left_s := deadline - time.monotonic()) > 0:
        event = link.next_event(left_s)
        if not isinstance(event, base.Received) or event.topic != topic:
            continue
        try:
            signed = wire.unpack_control(event.topic, event.payload)
            if isinstance(signed.message, CoordinatorState) and signed.sender == COORDINATOR:
                signed.check(signed.message.key if config.registry is None else me.key)
                newest = signed.message
        except PeerError as error:
            if refusals.add("", topic, str(error), time.monotonic()) is not None:
                log.event("message_refused", topic=topic, reason=str(error))
    return newest
