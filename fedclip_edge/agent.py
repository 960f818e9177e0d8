"""One device as a process: features first, then it trains and evaluates as rounds ask.

What leaves the device is what `session.py` says: control messages, contributions, accuracies.
Pictures, features and predictions stay.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import secrets
import time
from pathlib import Path

from fedclip_edge import log
from fedclip_edge.config import AgentConfig
from fedclip_edge.errors import ConfigError
from fedclip_edge.local_learner import LocalLearner
from fedclip_edge.messaging import identity, mqtt, transport
from fedclip_edge.messaging.expiry import Expiry
from fedclip_edge.messaging.topics import Topics
from fedclip_edge.parked import open_parked
from fedclip_edge.preparing import prepare
from fedclip_edge.processes import claim
from fedclip_edge.session import Session
from fedclip_edge.speaking import will
from fedclip_edge.vision.bundle import read_bundle
from fedclip_edge.vision.cautions import cautions
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
    for caution in cautions(bundle.manifest):
        log.event("bundle_caution", bundle=config.bundle, caution=caution)
    _make_state_dir(config.state_dir)
    with (
        claim(config.state_dir / "lock", f"state_dir {config.state_dir}"),
        contextlib.closing(open_parked(config.state_dir / "parked.sqlite")) as parked,
    ):
        data = prepare(config, bundle, progress)
        me = identity.of(config.broker.key, config.state_dir / "device.key")
        boot = secrets.token_hex(8)
        link = mqtt.PahoTransport(
            config.broker,
            transport.device_client(config.fleet, config.id, boot),
            Topics(config.fleet).for_device(config.id),
            will(config, me, boot),
        )
        session = Session(
            config=config,
            boot=boot,
            encoder_id=bundle.manifest.encoder_id,
            classes_digest=bundle.classes.digest,
            learner=LocalLearner(
                config, bundle.classes, bundle.manifest.dim, data, link.traffic, _load_torch
            ),
            identity=me,
            transport=link,
            parked=parked,
        )
        link.connect(_FIRST_CONNECTION_S)
        try:
            where = f"{config.broker.host}:{config.broker.port}"
            log.event("connected", broker=where, id=config.id)
            renew = f"`fedclip-edge renew {config.id}` writes a new one; put it there and restart"
            loop(session, once=once, expiry=Expiry(config.broker.certificate, renew))
        finally:
            session.say_goodbye()
            link.close()


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
            session.take(event, time.monotonic())
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
