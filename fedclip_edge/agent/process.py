"""The process of `fedclip-edge agent`: a device with its files, its lock and its bundle in use.

With one bundle it serves (`serving.py`): it has its pictures encoded, then trains and evaluates as
the rounds require. With another bundle, it does the same again. Only messages of the link and the
session leave the device: control messages, contributions, accuracies. Pictures, features and
predictions stay on the device.

Law: this process never loads torch or onnxruntime, and Pillow only for `group_by = "seconds"`,
which reads the time in EXIF. Its children do, and end when idle.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fedclip_edge import log
from fedclip_edge.agent.answering import open_outlets
from fedclip_edge.agent.broker_choice import BrokerChoice
from fedclip_edge.agent.bundle_store import BundleStore, fetched_folder
from fedclip_edge.agent.monitor import monitored
from fedclip_edge.agent.now_file import NowFile
from fedclip_edge.agent.pause import SENSORS, Pause
from fedclip_edge.agent.serving import Box, serve
from fedclip_edge.agent.settings import Settings
from fedclip_edge.agent.state_files import open_state
from fedclip_edge.agent.state_lock import lock_state_dir
from fedclip_edge.agent.trainer import allowed_methods
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.errors import BundleError, ConfigError, DataError, DiskError
from fedclip_edge.learning import methods
from fedclip_edge.pki.own_certificate import check_own_certificate
from fedclip_edge.processes import heap
from fedclip_edge.processes.children import Children
from fedclip_edge.protocol.signing import load_identity
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.bundle_warnings import bundle_warnings
from fedclip_edge.vision.embedding import Progress

if TYPE_CHECKING:
    from fedclip_edge.web.on_demand import OnDemand


def run(
    config: AgentConfig,
    *,
    once: bool,
    progress: Progress | None = None,
    file: Path | None = None,
    sensors: Path = SENSORS,
    page: Callable[[Children], OnDemand | None] | None = None,
) -> None:
    """Run the device until it is stopped, or with `once` until one run is over.

    After SIGHUP, the settings are read again from `file`. `sensors` is the folder of Linux's
    thermal zones and power supplies. `page` opens the box's page, if it is wanted.

    Torch is loaded when the device first trains by gradients, in a child process. A device that
    only evaluates, or that allows only methods in closed form, never needs it.

    Raises ConfigError if a file or a setting is wrong; BundleError if the bundle cannot be used;
    DataError if the picture folder cannot be used; LinkError if no broker answers the first
    connection, but not if the link breaks later; RefusedError if the broker or the coordinator
    refuses this device permanently; DiskError if a file in state_dir cannot be written, or that
    folder vanishes; WorkerError if the encoder's process dies; ModuleNotFoundError if torch or
    prometheus-client is needed and not installed.
    """
    heap.free_large_at_once()
    check_torch(config)  # before the pictures are encoded, which may take hours
    check_own_certificate(config.broker.certificate, config.id, config.fleet)
    store = BundleStore(fetched_folder(config.state_dir), config.bundle)
    chosen_at = store.changed_at()  # before the bundle is read: a rollback may come in between
    bundle = _open_bundle(store) if config.bundle is not None else None
    _make_state_dir(config.state_dir)
    with (
        contextlib.closing(lock_state_dir(config.state_dir)) as lock,
        contextlib.closing(open_state(config.state_dir)) as state_db,
        contextlib.ExitStack() as closing,
        Children() as children,
        monitored(config) as monitor,
        contextlib.closing(open_outlets(config)) as outlets,
    ):
        identity = load_identity(config.broker.key, config.state_dir / "device.key")
        choice = BrokerChoice(config.broker, state_db)
        settings = Settings(config, file, check_torch)
        pause = Pause(settings.limits, sensors)
        shown = None if page is None else page(children)
        if shown is not None:
            closing.callback(shown.close)
        now_file = None if page is None else NowFile(config.state_dir, config.encoder.label)
        box = Box(
            settings,
            identity,
            lock,
            state_db,
            store,
            children,
            monitor,
            choice,
            outlets,
            pause,
            shown,
            now_file,
        )
        bundle = bundle or _open_bundle(store)
        while not _serve(box, bundle, chosen_at, once, progress):
            chosen_at = store.changed_at()
            bundle = _open_bundle(store)


def _serve(
    box: Box, bundle: Bundle | None, chosen_at: int, once: bool, progress: Progress | None
) -> bool:
    """Do as `serve`; if it fails with settings that are new, take them back and return False."""
    box.settings.begin()
    try:
        return serve(box, bundle, chosen_at, once, progress)
    except (ConfigError, DataError, DiskError) as error:
        if not box.settings.take_back(str(error)):
            raise
        return False


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


def needs_torch(config: AgentConfig) -> bool:
    """True if a run may ask this device for torch; ConfigError for a name that is no method."""
    is_needed = any(methods.get(name).traits.is_averaged for name in allowed_methods(config))
    return is_needed and "train" in config.roles


def check_torch(config: AgentConfig) -> None:
    """Raise ModuleNotFoundError if a run may ask this device for torch and it is not installed.

    Raises ConfigError for a name in agent.toml that is no method.
    """
    if needs_torch(config) and importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")


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
