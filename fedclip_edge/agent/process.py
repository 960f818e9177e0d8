"""The process of `fedclip-edge agent`: a device with its pictures, files, broker and clock.

It computes the features first; then it trains and evaluates as the rounds require, and reads its
folder again from time to time (`rescan.py`). Only messages of
the link and the session leave the device: control messages, contributions, accuracies. Pictures,
features and predictions stay on the device.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import secrets
import time
from pathlib import Path

from fedclip_edge import log
from fedclip_edge.agent.broker_choice import BrokerChoice
from fedclip_edge.agent.encoding_link import EncodingLink
from fedclip_edge.agent.features import prepare_features
from fedclip_edge.agent.publisher import retained, will
from fedclip_edge.agent.rescan import Rescan
from fedclip_edge.agent.session import Session, start_session
from fedclip_edge.agent.state_db import open_state_db
from fedclip_edge.agent.trainer import LocalTrainer, allowed_methods
from fedclip_edge.config import AgentConfig
from fedclip_edge.errors import ConfigError, DiskError, LinkError, RefusedError
from fedclip_edge.learning import methods
from fedclip_edge.pki.expiry import Expiry
from fedclip_edge.pki.own_certificate import check_own_certificate
from fedclip_edge.processes.systemd import SYSTEMD
from fedclip_edge.protocol.signing import load_identity
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.storage.lock import lock_file
from fedclip_edge.transport.base import Connected, Disconnected, Traffic, device_client
from fedclip_edge.transport.mqtt import PahoTransport
from fedclip_edge.vision.bundle import read_bundle
from fedclip_edge.vision.bundle_warnings import bundle_warnings
from fedclip_edge.vision.embedding import Progress
from fedclip_edge.vision.picture_index import PictureIndex

_TICK_S = 0.2
_EVENTS_AT_ONCE = 256


def run(config: AgentConfig, *, once: bool, progress: Progress | None = None) -> None:
    """Run the device until it is stopped, or with `once` until one run is over.

    Torch is loaded when the device first trains by gradients; until then the process uses a third
    of the memory. A device that only evaluates, or that allows only methods in closed form, never
    needs it.

    Raises ConfigError if a file or a setting is wrong; BundleError if the bundle cannot be used;
    DataError if a role has no pictures; LinkError if no broker answers the first connection, but
    not if the link breaks later; RefusedError if the broker or the coordinator refuses this device
    permanently; DiskError if a file in state_dir cannot be written; ModuleNotFoundError if torch
    is needed and not installed.
    """
    _check_torch(config)  # before the pictures are encoded, which may take hours
    check_own_certificate(config.broker.certificate, config.id, config.fleet)
    bundle = read_bundle(config.bundle)
    for warning in bundle_warnings(bundle.manifest):
        log.event("bundle_caution", bundle=config.bundle, caution=warning)
    _make_state_dir(config.state_dir)
    with (
        lock_file(config.state_dir / "lock", f"state_dir {config.state_dir}"),
        contextlib.closing(open_state_db(config.state_dir / "parked.sqlite")) as state_db,
    ):
        identity = load_identity(config.broker.key, config.state_dir / "device.key")
        incarnation = secrets.token_hex(8)
        choice = BrokerChoice(config.broker, state_db)

        def new_link() -> EncodingLink:
            return EncodingLink(
                lambda topics: PahoTransport(
                    choice.current,
                    device_client(config.fleet, config.id, incarnation),
                    topics,
                    will(config, identity, incarnation),
                ),
                functools.partial(retained, config, identity),
                incarnation,
            )

        early = new_link()
        try:
            SYSTEMD.ready()  # encoding may take hours
            index = PictureIndex()
            data = prepare_features(config, bundle, _both(early.tell, progress), index)
            trainer = LocalTrainer(
                config, bundle.classes, bundle.manifest.dim, data, _no_traffic, _load_torch
            )
            renew = (
                f"run `fedclip-edge renew {config.id}`, copy its file here and restart the agent"
            )
            expiry = Expiry(config.broker.certificate, renew)
            rescan = Rescan(config, bundle, trainer, index, time.monotonic())
            attempts = 0  # in a row that failed
            while True:
                try:
                    link = early.connect(Topics(config.fleet).for_device(config.id))
                except (LinkError, ConfigError) as error:
                    attempts += 1
                    choice.note_failure(time.monotonic())
                    is_first = trainer.traffic is _no_traffic
                    if (is_first and attempts == 2) or not choice.switch(str(error)):
                        raise
                    SYSTEMD.turn()
                    early = new_link()
                    continue
                attempts, trainer.traffic = 0, link.traffic
                session = start_session(
                    config=config,
                    incarnation=incarnation,
                    encoder_id=bundle.manifest.encoder_id,
                    classes_digest=bundle.classes.digest,
                    class_names=bundle.classes.names,
                    learner=trainer,
                    identity=identity,
                    transport=link,
                    state_db=state_db,
                )
                if not isinstance(early.last_event, Disconnected):
                    broker = f"{choice.current.host}:{choice.current.port}"
                    log.event("connected", broker=broker, id=config.id)
                if isinstance(early.last_event, Connected):
                    session.handle_event(early.last_event, time.monotonic())
                if not loop(session, once=once, expiry=expiry, rescan=rescan, choice=choice):
                    break
                early.close()
                choice.switch("the broker moved, or cannot be reached here")
                early = new_link()
        finally:
            early.close()


def _no_traffic() -> Traffic | None:
    """There is no link yet."""
    return None


def _both(one: Progress, other: Progress | None) -> Progress:
    def tell(done: int, total: int) -> None:
        one(done, total)
        if other is not None:
            other(done, total)

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
    choice: BrokerChoice | None = None,
) -> bool:
    """Handle pending events, do one piece of work, and repeat; with `once`, return after one run.

    Returns True before that if the device should use the other address of `choice`.

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
        if once and session.standby.reason:
            raise RefusedError(
                f"{session.config.id} cannot take part in the run: {session.standby.reason}"
            )
        if expiry is not None:
            expiry.look(time.monotonic())
        if SYSTEMD.listens:
            SYSTEMD.status(_status(session))
            SYSTEMD.turn()
        if session.finished:
            log.event("run_done", refused_messages=session.refused_messages)
            if once:
                return False
            session.finished = False
        if choice is not None and choice.look(session, time.monotonic()):
            return True
