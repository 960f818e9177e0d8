"""The claim of a fleet: the link and the epoch of a new coordinator.

Law: two coordinators never serve one fleet. Before it sends anything, a new coordinator listens for
the retained state of another one. It takes over only if the other one is offline or the operator
asks for it (`take_over`), and always with a higher epoch.
"""

from __future__ import annotations

import secrets
import time

from fedclip_edge import log
from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator import publisher
from fedclip_edge.coordinator.journal import Journal
from fedclip_edge.coordinator.journal_tables import Run
from fedclip_edge.coordinator.server import Claim
from fedclip_edge.errors import ConfigError, PeerError
from fedclip_edge.protocol import signing, wire
from fedclip_edge.protocol.messages import CoordinatorState
from fedclip_edge.protocol.refusals import Refusals
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.records import COORDINATOR
from fedclip_edge.transport import base, mqtt

_LISTEN_S = 0.5
_FIRST_CONNECTION_S = 10.0


def claim_fleet(
    config: FleetConfig, run: Run, journal: Journal, me: signing.Identity, *, take_over: bool
) -> Claim:
    """Connect, and claim an epoch above every earlier one; `run` is named in the state message.

    Raises ConfigError if another coordinator is online, unless `take_over` is given; LinkError and
    RefusedError as `PahoTransport.connect` does; JournalError on a disk error.
    """
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
            signed = wire.unpack_coordinator(event.topic, event.payload)
            if isinstance(signed.message, CoordinatorState) and signed.sender == COORDINATOR:
                signed.check(signed.message.key if config.registry is None else me.key)
                newest = signed.message
        except PeerError as error:
            if refusals.add("", topic, str(error), time.monotonic()) is not None:
                log.event("message_refused", topic=topic, reason=str(error))
    return newest
