"""The process of `fedclip-edge agent`: a device with its pictures, files, broker and clock.

It computes the features first; then it trains and evaluates as the rounds require, and reads its
folder again from time to time (`rescan.py`). With another bundle, it does the same again. Only
messages of the link and the session leave the device: control messages, contributions, accuracies.
Pictures, features and predictions stay on the device.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fedclip_edge import log
from fedclip_edge.agent.broker_choice import BrokerChoice
from fedclip_edge.agent.bundle_download import BundleDownload
from fedclip_edge.agent.bundle_store import BundleStore, fetched_folder
from fedclip_edge.agent.bundle_trial import Trial, start_trial
from fedclip_edge.agent.encoding_link import EncodingLink
from fedclip_edge.agent.features import prepare_features
from fedclip_edge.agent.monitor import Monitor, monitored
from fedclip_edge.agent.no_bundle import NoBundle
from fedclip_edge.agent.publisher import retained, will
from fedclip_edge.agent.rescan import Rescan
from fedclip_edge.agent.session import Session, start_session
from fedclip_edge.agent.state_db import StateDb, open_state_db
from fedclip_edge.agent.trainer import LocalTrainer, allowed_methods
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.errors import BundleError, ConfigError, DiskError, LinkError, RefusedError
from fedclip_edge.learning import methods
from fedclip_edge.pki.expiry import Expiry
from fedclip_edge.pki.own_certificate import check_own_certificate
from fedclip_edge.processes.children import Children
from fedclip_edge.processes.systemd import SYSTEMD
from fedclip_edge.protocol.signing import Identity, load_identity
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.storage.lock import lock_file
from fedclip_edge.transport.base import Connected, Disconnected, Traffic, device_client
from fedclip_edge.transport.mqtt import PahoTransport
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.bundle_warnings import bundle_warnings
from fedclip_edge.vision.embedding import Progress
from fedclip_edge.vision.picture_index import PictureIndex
from fedclip_edge.vision.provider_choice import choose_provider

_TICK_S = 0.2
_EVENTS_AT_ONCE = 256
Ending = Literal["run", "bundle", "broker"]  # what ended the loop


def run(config: AgentConfig, *, once: bool, progress: Progress | None = None) -> None:
    """Run the device until it is stopped, or with `once` until one run is over.

    Torch is loaded when the device first trains by gradients; until then the process uses a third
    of the memory. A device that only evaluates, or that allows only methods in closed form, never
    needs it.

    Raises ConfigError if a file or a setting is wrong; BundleError if the bundle cannot be used;
    DataError if a role has no pictures; LinkError if no broker answers the first connection, but
    not if the link breaks later; RefusedError if the broker or the coordinator refuses this device
    permanently; DiskError if a file in state_dir cannot be written; ModuleNotFoundError if torch
    or prometheus-client is needed and not installed.
    """
    _check_torch(config)  # before the pictures are encoded, which may take hours
    check_own_certificate(config.broker.certificate, config.id, config.fleet)
    store = BundleStore(fetched_folder(config.state_dir), config.bundle)
    chosen_at = store.changed_at()  # before the bundle is read: a rollback may come in between
    bundle = _open_bundle(store) if config.bundle is not None else None
    _make_state_dir(config.state_dir)
    with (
        lock_file(config.state_dir / "lock", f"state_dir {config.state_dir}"),
        contextlib.closing(open_state_db(config.state_dir / "parked.sqlite")) as state_db,
        Children() as children,
        monitored(config) as monitor,
    ):
        identity = load_identity(config.broker.key, config.state_dir / "device.key")
        choice = BrokerChoice(config.broker, state_db)
        box = _Box(config, identity, state_db, store, children, monitor, choice)
        bundle = bundle or _open_bundle(store)
        while not _serve(box, bundle, chosen_at, once, progress):
            chosen_at = store.changed_at()
            bundle = _open_bundle(store)


@dataclass(frozen=True, eq=False)
class _Box:
    """A device's parts that stay the same when it gets another bundle."""

    config: AgentConfig
    identity: Identity
    state_db: StateDb
    store: BundleStore
    children: Children
    monitor: Monitor | None
    choice: BrokerChoice


def _open_bundle(store: BundleStore) -> Bundle | None:
    """The bundle in use; None if the device has none, or a fetched one that is damaged.

    Raises BundleError if the bundle that agent.toml names is missing or damaged.
    """
    try:
        bundle = store.open()
    except BundleError as error:
        if store.given is not None and store.current == store.given:
            raise
        log.event("bundle_file_damaged", file=store.folder, reason=str(error))
        bundle = store.open()
    if bundle is not None:
        log.event("bundle_in_use", bundle=bundle.folder, classes=len(bundle.classes.names))
        for warning in bundle_warnings(bundle.manifest):
            log.event("bundle_caution", bundle=bundle.folder, caution=warning)
    return bundle


def _serve(
    box: _Box, bundle: Bundle | None, chosen_at: int, once: bool, progress: Progress | None
) -> bool:
    """Run the device with this bundle; False if it is to go on with another one.

    `chosen_at` is the time of the last change of the bundle in use, in nanoseconds. Without a
    bundle, the device takes part in no run and only fetches one.
    """
    config, incarnation = box.config, secrets.token_hex(8)

    def new_link() -> EncodingLink:
        return EncodingLink(
            lambda topics: PahoTransport(
                box.choice.current,
                device_client(config.fleet, config.id, incarnation),
                topics,
                will(config, box.identity, incarnation),
            ),
            functools.partial(retained, config, box.identity),
            incarnation,
        )

    early = new_link()
    try:
        SYSTEMD.ready()  # encoding may take hours
        trainer = rescan = None
        if bundle is not None:
            config = _with_provider(box, bundle)
            index = PictureIndex()
            listeners = [early.tell, progress, None if box.monitor is None else box.monitor.tell]
            data = prepare_features(config, bundle, _each(listeners), index)
            trainer = LocalTrainer(
                config, bundle.classes, bundle.manifest.dim, data, _no_traffic, _load_torch
            )
            rescan = Rescan(config, bundle, trainer, index, time.monotonic())
        renew = f"run `fedclip-edge renew {config.id}`, copy its file here and restart the agent"
        expiry = Expiry(config.broker.certificate, renew)
        attempts, has_connected = 0, False  # attempts in a row that failed
        while True:
            try:
                link = early.connect(Topics(config.fleet).for_device(config.id))
            except (LinkError, ConfigError) as error:
                attempts += 1
                box.choice.note_failure(time.monotonic())
                if (not has_connected and attempts == 2) or not box.choice.switch(str(error)):
                    raise
                SYSTEMD.turn()
                early = new_link()
                continue
            attempts, has_connected = 0, True
            if trainer is not None:
                trainer.traffic = link.traffic
            session = start_session(
                config=config,
                incarnation=incarnation,
                encoder_id="" if bundle is None else bundle.manifest.encoder_id,
                classes_digest="" if bundle is None else bundle.classes.digest,
                class_names=() if bundle is None else bundle.classes.names,
                learner=trainer or NoBundle(config),
                identity=box.identity,
                transport=link,
                state_db=box.state_db,
                bundles=_bundle_download(box),
            )
            if not isinstance(early.last_event, Disconnected):
                broker = f"{box.choice.current.host}:{box.choice.current.port}"
                log.event("connected", broker=broker, id=config.id)
            if isinstance(early.last_event, Connected):
                session.handle_event(early.last_event, time.monotonic())
            ending = loop(
                session,
                once=once,
                expiry=expiry,
                rescan=rescan,
                has_other_bundle=functools.partial(
                    _has_other_bundle, session, box.store, chosen_at
                ),
                monitor=box.monitor,
                choice=box.choice,
            )
            if ending != "broker":
                return ending == "run"
            early.close()
            box.choice.switch("the broker moved, or cannot be reached here")
            early = new_link()
    finally:
        early.close()


def _has_other_bundle(session: Session, store: BundleStore, chosen_at: int) -> bool:
    """True if another bundle was fetched, or chosen by `bundle rollback`."""
    return session.has_other_bundle or store.changed_at() != chosen_at


def _with_provider(box: _Box, bundle: Bundle) -> AgentConfig:
    """The settings with the provider that runs this encoder, in place of "auto"."""

    def meanwhile() -> None:
        SYSTEMD.status("tries the providers of its encoder")
        SYSTEMD.turn()

    config = box.config
    chosen = choose_provider(bundle, config.encoder, config.state_dir, box.children, meanwhile)
    if box.monitor is not None:
        box.monitor.name_provider(chosen.label)
    return replace(config, encoder=chosen)


def _no_traffic() -> Traffic | None:
    """There is no link yet."""
    return None


def _bundle_download(box: _Box) -> BundleDownload | None:
    """The download of bundles; None if no export key is known."""
    config = box.config
    if not config.export_key:
        return None

    def try_out(folder: Path) -> Trial:
        return start_trial(box.children, folder, config.encoder)

    return BundleDownload(box.store, config.export_key, try_out)


def _each(listeners: Sequence[Progress | None]) -> Progress:
    def tell(done: int, total: int) -> None:
        for listener in listeners:
            if listener is not None:
                listener(done, total)

    return tell


def _status(session: Session) -> str:
    """The device's part in the run, in one line for systemd."""
    manifest = session.trust.manifest
    if not session.handshake.is_connected:
        return "no link to the broker; connects again"
    if session.standby.reason:
        return f"takes no part in the run: {session.standby.reason}"
    if manifest is None or not session.handshake.is_answered:
        return "waits for the coordinator"
    if manifest.phase == "done":
        return f"{manifest.run}: over"
    return f"{manifest.run}: round {manifest.exchange.number} ({manifest.phase})"


def _check_torch(config: AgentConfig) -> None:
    """Raise ModuleNotFoundError if a run may ask this device for torch and it is not installed.

    Raises ConfigError for a name in agent.toml that is no method.
    """
    is_needed = any(methods.get(name).traits.is_averaged for name in allowed_methods(config))
    if is_needed and "train" in config.roles and importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")


@functools.cache
def _load_torch() -> None:
    began = time.monotonic()
    from fedclip_edge.learning import training

    training.use_one_thread()
    log.event("torch_loaded", seconds=round(time.monotonic() - began, 2))


def _make_state_dir(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(
            f"state_dir {folder} cannot be created: {error.strerror}; set 'state_dir' to a folder"
        ) from error
    except OSError as error:
        raise DiskError(
            f"state_dir {folder} cannot be created: {error.strerror}; free or repair the disk, or "
            "set 'state_dir' to a folder that this user can write to"
        ) from error


def loop(
    session: Session,
    *,
    once: bool,
    expiry: Expiry | None = None,
    rescan: Rescan | None = None,
    has_other_bundle: Callable[[], bool] = lambda: False,
    monitor: Monitor | None = None,
    choice: BrokerChoice | None = None,
) -> Ending:
    """Handle pending events, do one piece of work, and repeat; with `once`, return after one run.

    Returns the reason: that run is over, `has_other_bundle` is true, or the device should
    use the other address of `choice`.

    Without `once`, a device that the coordinator refuses in its run waits for another run. With
    `once` that raises RefusedError.

    Events come first because they may make work unnecessary. At most _EVENTS_AT_ONCE are handled
    before each piece of work, so that an endless stream of messages cannot block the work.
    """
    worked = False
    while True:
        event = session.transport.next_event(0 if worked else _TICK_S)
        handled = 0
        while event is not None:
            session.handle_event(event, time.monotonic())
            handled += 1
            event = session.transport.next_event(0) if handled < _EVENTS_AT_ONCE else None
        if rescan is not None:
            rescan.look(session, time.monotonic())
        worked = session.act(time.monotonic())
        if has_other_bundle():
            session.say_goodbye()
            return "bundle"
        if once and session.standby.reason and not session.is_fetching_bundle:
            raise RefusedError(
                f"{session.config.id} cannot take part in the run: {session.standby.reason}"
            )
        if expiry is not None:
            expiry.look(time.monotonic())
        if monitor is not None:
            monitor.look(session, time.monotonic())
        if SYSTEMD.listens:
            SYSTEMD.status(_status(session))
            SYSTEMD.turn()
        if session.finished:
            log.event("run_done", refused_messages=session.refused_messages)
            if once:
                return "run"
            session.finished = False
        if choice is not None and choice.look(session, time.monotonic()):
            return "broker"
