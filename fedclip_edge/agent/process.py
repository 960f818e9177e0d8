"""One device as a process: features first, then it trains and evaluates as rounds ask.

What leaves the device is what `session.py` says: control messages, contributions, accuracies.
Pictures, features and predictions stay.
"""

from __future__ import annotations

import functools
import importlib.util
import secrets
import time
from pathlib import Path

from fedclip_edge import log
from fedclip_edge.agent.features import prepare
from fedclip_edge.agent.publisher import will
from fedclip_edge.agent.session import Session
from fedclip_edge.agent.state_db import open_state_db
from fedclip_edge.agent.trainer import LocalTrainer
from fedclip_edge.config import AgentConfig
from fedclip_edge.errors import ConfigError
from fedclip_edge.pki.expiry import Expiry
from fedclip_edge.protocol import signing
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.storage.lock import lock_file
from fedclip_edge.transport import base, mqtt
from fedclip_edge.vision.bundle import read_bundle
from fedclip_edge.vision.bundle_warnings import bundle_warnings
from fedclip_edge.vision.embedding import Progress

_FIRST_CONNECTION_S = 10.0  # later ones are tried for ever
_TICK_S = 0.2
_EVENTS_AT_ONCE = 256


def run(config: AgentConfig, *, once: bool, progress: Progress | None = None) -> None:
    """The device's loop; with `once` it ends after one run.

    Raises LinkError where no broker answers at first; once it has, the link may come and go. Torch
    is loaded when the first round asks for it: a box that waits needs a third of the memory.
    """
    _check_torch()
    bundle = read_bundle(config.bundle)
    for caution in bundle_warnings(bundle.manifest):
        log.event("bundle_caution", bundle=config.bundle, caution=caution)
    _make_state_dir(config.state_dir)
    lock = lock_file(config.state_dir / "lock", f"state_dir {config.state_dir}")
    parked = open_state_db(config.state_dir / "parked.sqlite")
    data = prepare(config, bundle, progress)
    me = signing.load_identity(config.broker.key, config.state_dir / "device.key")
    boot = secrets.token_hex(8)
    link = mqtt.PahoTransport(
        config.broker,
        base.device_client(config.fleet, config.id, boot),
        Topics(config.fleet).for_device(config.id),
        will(config, me, boot),
    )
    session = Session(
        config=config,
        incarnation=boot,
        encoder_id=bundle.manifest.encoder_id,
        classes_digest=bundle.classes.digest,
        learner=LocalTrainer(
            config, bundle.classes, bundle.manifest.dim, data, link.traffic, _load_torch
        ),
        identity=me,
        transport=link,
        state_db=parked,
    )
    link.connect(_FIRST_CONNECTION_S)
    log.event("connected", broker=f"{config.broker.host}:{config.broker.port}", id=config.id)
    try:
        renew = f"`fedclip-edge renew {config.id}` writes a new one; put it there and restart"
        loop(session, once=once, expiry=Expiry(config.broker.certificate, renew))
    finally:
        session.say_goodbye()
        link.close()
        parked.close()
        lock.close()


def _check_torch() -> None:
    """What a box without torch should hear at its start, and not when a round begins."""
    if importlib.util.find_spec("torch") is None:
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
    except OSError as error:
        raise ConfigError(
            f"state_dir {folder} cannot be made: {error.strerror}; name a folder that can be "
            "written under 'state_dir'"
        ) from error


def loop(session: Session, *, once: bool, expiry: Expiry | None = None) -> None:
    """Takes the events that are there before each piece of work: news may make work needless.

    But no more than some: where messages never end, work goes on all the same.
    """
    worked = False
    while True:
        event = session.transport.next_event(0 if worked else _TICK_S)
        taken = 0
        while event is not None:
            session.handle_event(event, time.monotonic())
            taken += 1
            event = session.transport.next_event(0) if taken < _EVENTS_AT_ONCE else None
        worked = session.act(time.monotonic())
        if expiry is not None:
            expiry.look(time.monotonic())
        if session.finished:
            log.event("run_done", refused_messages=session.refused_messages)
            if once:
                return
            session.finished = False
