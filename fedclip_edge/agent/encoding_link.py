"""The link of a device that encodes its pictures, which may take hours.

Through it, the device's retained state tells the coordinator how far the device is.

Laws:
- Encoding goes on without a broker; an attempt to connect in between is short.
- Until all features are ready, the device subscribes to nothing and says no hello.
- A device that the broker refuses permanently ends, for example because it was revoked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedclip_edge import log
from fedclip_edge.agent.publisher import one_line
from fedclip_edge.errors import LinkError
from fedclip_edge.protocol.message_parts import Encoding
from fedclip_edge.protocol.messages import DeviceState
from fedclip_edge.transport.base import Disconnected, Event, Will
from fedclip_edge.transport.mqtt import PahoTransport

TELL_S = 30.0
_TRY_S = 2.0  # the longest wait for a connection while there are pictures to encode
_TRY_AGAIN_S = 300.0
_FIRST_CONNECTION_S = 10.0  # later connections are retried without limit


@dataclass(eq=False)
class EncodingLink:
    """The link of one device process, made by `make_link` when it is first needed.

    `make_link` gets the topics to subscribe to. `pack` signs a state of the device, to be retained.
    """

    make_link: Callable[[Iterable[str]], PahoTransport]
    pack: Callable[[DeviceState], Will]
    incarnation: str
    # The link's last event that was taken out; None if all of them still wait in it.
    last_event: Event | None = None
    _link: PahoTransport | None = None
    _next_at: float = -math.inf
    _progress: Encoding = Encoding(0, 0)  # noqa: RUF009 - it is frozen
    _paused: str = ""  # the reason that was told

    def tell(self, done: int, total: int) -> None:
        """Tell the coordinator, if that is due, that `done` of `total` pictures are encoded.

        Raises RefusedError and ConfigError as `PahoTransport.connect` does, and RefusedError also
        later, once the broker refuses the device.
        """
        self._take_events()
        self._progress = Encoding(done, total)
        if time.monotonic() < self._next_at or done >= total or not self._reach():
            return
        self._next_at = time.monotonic() + TELL_S
        self._publish(DeviceState(self.incarnation, online=True, encoding=self._progress))

    def pause(self, reason: str) -> None:
        """Tell the coordinator why the device pauses; with an empty reason, that it goes on.

        Raises the errors of `tell`.
        """
        self._take_events()
        if reason == self._paused or (reason and not self._reach()):
            return
        self._paused = reason
        if reason:
            text = one_line(reason)
            state = DeviceState(self.incarnation, True, self._progress, "paused", text)
            self._publish(state)
        else:
            self._next_at = min(self._next_at, time.monotonic())  # with the next picture

    def connect(
        self, topics: Iterable[str], meanwhile: Callable[[], None] | None = None
    ) -> PahoTransport:
        """The connected link, with subscriptions to `topics`.

        `meanwhile` is called between attempts. Raises as `PahoTransport.connect`.
        """
        if self._link is None:
            self._next_at = math.inf  # `meanwhile` may look for a pause
            self._link = self._connected(topics, _FIRST_CONNECTION_S, meanwhile)
        else:
            self._take_events()
            # Not before: nobody would take the messages out while the device encodes.
            self._link.set_topics(topics)
        return self._link

    def close(self) -> None:
        """Tell the coordinator that the device goes offline, and close the link if there is one."""
        if self._link is not None:
            self._publish(DeviceState(self.incarnation, online=False))
            self._link.close()

    def _take_events(self) -> None:
        """Take the events of the link, so that the log has them in time."""
        while self._link is not None and (event := self._link.next_event(0)) is not None:
            self.last_event = event
            if isinstance(event, Disconnected) and event.reason:
                log.event("link_lost", reason=event.reason)

    def _reach(self) -> bool:
        """Connect if that is due, for a short time; True if there is a link."""
        if self._link is None and time.monotonic() >= self._next_at:
            try:
                self._link = self._connected((), _TRY_S)
            except LinkError as error:
                log.event("encoding_offline", reason=str(error), again_s=_TRY_AGAIN_S)
                self._next_at = time.monotonic() + _TRY_AGAIN_S
        return self._link is not None

    def _connected(
        self, topics: Iterable[str], timeout_s: float, meanwhile: Callable[[], None] | None = None
    ) -> PahoTransport:
        link = self.make_link(topics)
        link.connect(timeout_s, meanwhile)
        return link

    def _publish(self, state: DeviceState) -> None:
        assert self._link is not None
        message = self.pack(state)
        self._link.publish(message.topic, message.payload, retain=True)
