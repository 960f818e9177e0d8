"""The start of a device's session: its parts, connected with each other."""

from __future__ import annotations

from fedclip_edge.agent.activity import Activities
from fedclip_edge.agent.bundle_download import BundleDownload
from fedclip_edge.agent.coordinator_messages import CoordinatorMessages
from fedclip_edge.agent.evaluation_queue import EvaluationQueue
from fedclip_edge.agent.fetching import Fetching
from fedclip_edge.agent.greeting import Greeting
from fedclip_edge.agent.handshake import Handshake
from fedclip_edge.agent.learner import Learner
from fedclip_edge.agent.model_download import ModelDownload
from fedclip_edge.agent.publisher import Publisher
from fedclip_edge.agent.round_work import RoundWork
from fedclip_edge.agent.run_part import RunPart
from fedclip_edge.agent.session import Session
from fedclip_edge.agent.standby import Standby
from fedclip_edge.agent.state_db import StateDb
from fedclip_edge.agent.trust import Trust
from fedclip_edge.agent.upload import Upload
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.protocol.hand_over import newest_key
from fedclip_edge.protocol.signing import Identity
from fedclip_edge.transport.base import Transport


def start_session(
    *,
    config: AgentConfig,
    incarnation: str,
    encoder_id: str,
    classes_digest: str,
    learner: Learner,
    identity: Identity,
    transport: Transport,
    state_db: StateDb,
    class_names: tuple[str, ...] = (),
    bundles: BundleDownload | None = None,
) -> Session:
    """Make the session of one process; `incarnation` is the random name of the process.

    The name distinguishes its messages from those of an earlier process of this device.
    `class_names` are those of its bundle. `bundles` fetches the bundle of a run that has another
    one. Raises the errors of `learner.capabilities`.
    """
    known_key = newest_key(config.coordinator_key, state_db.hand_overs())
    trust = Trust(incarnation, known_key, state_db)
    can = learner.capabilities()
    publisher = Publisher(config, incarnation, encoder_id, classes_digest, identity, transport, can)
    handshake = Handshake(config.fleet, trust)
    download = ModelDownload(learner)
    upload = Upload(state_db, config.min_per_class)
    queue = EvaluationQueue()
    fetching = Fetching(config, publisher, download, queue, bundles)
    greeting = Greeting(config, state_db, publisher, handshake, upload, queue)
    part = RunPart(publisher, trust, download, Standby(class_names))
    return Session(
        config=config,
        transport=transport,
        state_db=state_db,
        publisher=publisher,
        trust=trust,
        handshake=handshake,
        greeting=greeting,
        messages=CoordinatorMessages(
            config,
            learner,
            publisher,
            trust,
            handshake,
            greeting,
            download,
            upload,
            queue,
            fetching,
            part,
        ),
        download=download,
        upload=upload,
        evaluation_queue=queue,
        fetching=fetching,
        part=part,
        activities=Activities(publisher),
        work=RoundWork(config, learner, publisher, trust, handshake, download, upload, queue),
    )
