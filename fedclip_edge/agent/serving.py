"""The agent with one bundle: it has the pictures encoded, connects, and takes part in runs.

Encoding and training happen in child processes (`encoder_process.py`, `trainer_process.py`). While
one of them works, this process goes on with its other duties.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedclip_edge import log
from fedclip_edge.agent.answered_pictures import ANSWERED, AnsweredPictures
from fedclip_edge.agent.answering import Outlets, start_answering
from fedclip_edge.agent.backlog import Backlog
from fedclip_edge.agent.broker_choice import BrokerChoice
from fedclip_edge.agent.bundle_download import BundleDownload
from fedclip_edge.agent.bundle_store import BundleStore
from fedclip_edge.agent.bundle_trial import Trial, start_trial
from fedclip_edge.agent.cache_quota import CacheQuota
from fedclip_edge.agent.duties import Duties
from fedclip_edge.agent.encoder_process import EncoderProcess
from fedclip_edge.agent.encoding_link import EncodingLink
from fedclip_edge.agent.event_names import EventNames
from fedclip_edge.agent.features import CACHE, DevicePictures, prepare_pictures
from fedclip_edge.agent.folder_watch import FolderWatch
from fedclip_edge.agent.loop import loop
from fedclip_edge.agent.monitor import Monitor
from fedclip_edge.agent.new_pictures import EncodedFeatures, NewPictures
from fedclip_edge.agent.no_bundle import NoBundle
from fedclip_edge.agent.now_file import NowFile
from fedclip_edge.agent.pause import Pause
from fedclip_edge.agent.publisher import retained, will
from fedclip_edge.agent.rescan import Rescan, watched
from fedclip_edge.agent.session import Session
from fedclip_edge.agent.session_start import start_session
from fedclip_edge.agent.settings import Settings
from fedclip_edge.agent.state_db import StateDb
from fedclip_edge.agent.state_lock import StateLock
from fedclip_edge.agent.trainer import LocalTrainer
from fedclip_edge.agent.trainer_process import TrainerProcess
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.errors import ConfigError, LinkError
from fedclip_edge.pki.expiry import Expiry
from fedclip_edge.processes.children import Children
from fedclip_edge.processes.systemd import SYSTEMD
from fedclip_edge.processes.worker import PausedError
from fedclip_edge.protocol.signing import Identity
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport.base import Connected, Disconnected, Traffic, device_client
from fedclip_edge.transport.mqtt import PahoTransport
from fedclip_edge.vision.bundle import Bundle, key_of
from fedclip_edge.vision.embedding import Progress
from fedclip_edge.vision.provider_choice import choose_provider

if TYPE_CHECKING:
    from fedclip_edge.web.on_demand import OnDemand


@dataclass(frozen=True, eq=False)
class Box:
    """A device's parts that stay the same when it gets another bundle."""

    settings: Settings
    identity: Identity
    lock: StateLock
    state_db: StateDb
    store: BundleStore
    children: Children
    monitor: Monitor | None
    choice: BrokerChoice
    outlets: Outlets
    pause: Pause
    page: OnDemand | None
    now_file: NowFile | None

    @property
    def config(self) -> AgentConfig:
        """The settings that count now."""
        return self.settings.config


def serve(
    box: Box, bundle: Bundle | None, chosen_at: int, once: bool, progress: Progress | None
) -> bool:
    """Run the device with this bundle; False if it is to go on with another one, or other settings.

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

    renew = f"run `fedclip-edge renew {config.id}`, copy its file here and restart the agent"
    expiry = Expiry(config.broker.certificate, renew)
    duties = Duties(expiry, box.monitor, box.settings, box.pause, box.lock, box.page, box.now_file)
    early = duties.early = new_link()
    parts = contextlib.ExitStack()
    try:
        SYSTEMD.ready()  # encoding may take hours
        trainer = rescan = backlog = None
        if bundle is not None:
            watchers = [one.tell for one in (box.monitor, box.now_file) if one is not None]
            listeners = [early.tell, progress, *watchers]
            answered = AnsweredPictures(config.state_dir / ANSWERED)
            parts.callback(answered.close)
            answered.open()
            watch = parts.enter_context(watched(config, bundle, answered))
            chosen = _with_provider(box, bundle)
            trainer, rescan, backlog = _prepare(
                box, chosen, bundle, watch, answered, duties, _each(listeners)
            )
        attempts, has_connected = 0, False  # attempts in a row that failed
        waits_for = ""
        while True:
            SYSTEMD.status("connects to its broker")
            try:
                topics = Topics(config.fleet).for_device(config.id)
                link = early.connect(topics, meanwhile=duties.look)
            except (LinkError, ConfigError) as error:
                attempts += 1
                box.choice.note_failure(time.monotonic())
                is_given_up = not has_connected and attempts == 2
                if (is_given_up or not box.choice.switch(str(error))) and (
                    box.page is None or once or isinstance(error, ConfigError)
                ):
                    raise
                if str(error) != waits_for and box.page is not None:
                    waits_for = str(error)  # the page can be used meanwhile
                    log.event("connection_awaited", reason=waits_for)
                SYSTEMD.turn()
                early = duties.early = new_link()
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
            duties.session = session
            session.pause(box.pause.reason, time.monotonic())
            box.settings.confirm()
            ending = loop(
                session,
                once=once,
                rescan=rescan,
                backlog=backlog,
                begins_again=functools.partial(_begins_again, box, session, chosen_at),
                duties=duties.look,
                choice=box.choice,
            )
            if ending != "broker":
                return ending == "run"
            early.close()
            box.choice.switch("the broker moved, or cannot be reached here")
            early = duties.early = new_link()
    finally:
        duties.end()
        parts.close()
        early.close()


def _prepare(
    box: Box,
    config: AgentConfig,
    bundle: Bundle,
    watch: FolderWatch,
    answered: AnsweredPictures,
    duties: Duties,
    progress: Progress,
) -> tuple[LocalTrainer, Rescan, Backlog]:
    """Have the device's pictures encoded; return the learner, the rescans and the backlog.

    `config` has the provider that was chosen.
    """
    cache, limits = config.state_dir / CACHE, box.settings.limits
    encoder = EncoderProcess(box.children, bundle, config.encoder, cache, limits)
    encoder.between = duties.look
    duties.watch(encoder.worker)
    features = EncodedFeatures(encoder, cache, key_of(bundle, config.encoder), watch)
    events = EventNames(config.data, bundle.classes.names)
    duties.new_pictures = NewPictures(
        watch,
        start_answering(config, bundle, box.outlets, features, events, watch.is_absent),
        answered,
        encoder.load,
    )
    data = _prepared(config, bundle, encoder, progress, watch, duties)
    work = TrainerProcess(box.children, config, bundle, data.sides, limits)
    duties.watch(work.worker, does_tasks=True)
    trainer = LocalTrainer(config, bundle.classes, bundle.manifest.dim, data, _no_traffic, work)
    duties.quota = CacheQuota(cache, features.feature_key, limits, trainer.needed)
    rescan = Rescan(config, bundle, encoder.encode, trainer, watch, time.monotonic(), duties.look)
    return trainer, rescan, Backlog(config, bundle, trainer, encoder)


def _prepared(
    config: AgentConfig,
    bundle: Bundle,
    encoder: EncoderProcess,
    progress: Progress,
    watch: FolderWatch,
    duties: Duties,
) -> DevicePictures:
    """Have the device's pictures encoded, also over pauses."""
    while True:
        duties.wait()
        try:
            return prepare_pictures(
                config, bundle, encoder.encode, progress, watch.index, meanwhile=duties.look
            )
        except PausedError:
            continue  # what was encoded is in the cache


def _begins_again(box: Box, session: Session, chosen_at: int) -> bool:
    """True if another bundle was fetched or chosen by `bundle rollback`, or settings changed."""
    has_other_bundle = session.has_other_bundle or box.store.changed_at() != chosen_at
    return has_other_bundle or box.settings.is_new


def _with_provider(box: Box, bundle: Bundle) -> AgentConfig:
    """The settings with the provider that runs this encoder, in place of "auto"."""

    def meanwhile() -> None:
        SYSTEMD.status("tries the providers of its encoder")
        SYSTEMD.turn()
        if box.page is not None:
            box.page.look(time.monotonic())

    config = box.config
    chosen = choose_provider(bundle, config.encoder, config.state_dir, box.children, meanwhile)
    if box.monitor is not None:
        box.monitor.name_provider(chosen.label)
    if box.now_file is not None:
        box.now_file.name_provider(chosen.label)
    return replace(config, encoder=chosen)


def _no_traffic() -> Traffic | None:
    """There is no link yet."""
    return None


def _bundle_download(box: Box) -> BundleDownload | None:
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
