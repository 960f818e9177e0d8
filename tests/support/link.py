"""A TCP link between clients and a broker that counts bytes and can be cut, slow or unreliable.

Each client has a door, a loopback port of its own, so traffic is counted and disturbed per client.
One thread with its own event loop carries all traffic.

With `looks`, the link splits the stream into MQTT packets. It shows every PUBLISH to `watch`, in
its own thread, before it passes the packet on, so that a fault can be injected between two
messages. It also repeats or alters chunks according to a door's `Noise`. For clients with TLS it
ends the encryption on both sides, with the keys of broker and client.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import mqtt_frames
from noise import Dice, Noise
from socket_faults import HOST, Encryption, accepted, bound, reset, tighten

from fedclip_edge.protocol.chunks import is_chunk

_READ_BYTES = 2**16
_SLOW_STEP_S = 0.02


@dataclass
class Counted:
    """Traffic through one door; counted after decryption if the link decodes TLS."""

    up_bytes: int = 0  # from the client to the broker
    down_bytes: int = 0
    connections: int = 0


@dataclass(frozen=True)
class Slow:
    """A limit in bytes per second each way, and a reset of all connections every `reset_s`."""

    bytes_per_s: float
    reset_s: float = math.inf


@dataclass(frozen=True)
class Seen:
    """A PUBLISH that passes the link."""

    client: str
    upward: bool
    topic: str
    payload: bytes


@dataclass(eq=False)
class _Door:
    client: str
    held: socket.socket  # keeps the port, and refuses connections while the door is shut
    encryption: Encryption | None
    counted: Counted = field(default_factory=Counted)
    listening: socket.socket | None = None
    slow: Slow | None = None
    next_reset: asyncio.TimerHandle | None = None
    noise: dict[bool, Dice] = field(default_factory=dict)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def port(self) -> int:
        return int(self.held.getsockname()[1])


class Link:
    """A context manager. All methods except `close` may also be called from `watch`."""

    def __init__(
        self, broker_port: int, *, looks: bool = False, watch: Callable[[Seen], None] | None = None
    ) -> None:
        self.watch = watch
        self.broker_port = broker_port
        self._looks = looks
        self._doors: dict[str, _Door] = {}
        self._carrying: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        self._thread.start()

    def door(self, client: str, encryption: Encryption | None = None) -> int:
        """Open a door for `client`; return the port that it uses as the broker's."""
        opened = self._doors[client] = _Door(client, bound(0), encryption)
        self._do(functools.partial(self._listen, opened))
        return opened.port

    def port(self, client: str) -> int:
        return self._doors[client].port

    def counted(self, client: str) -> Counted:
        return self._doors[client].counted

    def cut(self, *clients: str) -> None:
        """Reset the connections of these clients (default: all) and refuse new ones."""
        for door in self._of(clients):
            self._do(functools.partial(self._shut, door))

    def mend(self, *clients: str) -> None:
        """End a cut."""
        for door in self._of(clients):
            self._do(functools.partial(self._listen, door))

    def slow(self, client: str, slow: Slow | None) -> None:
        """Slow the client down from now on; None ends it."""
        self._do(functools.partial(self._set_slow, self._doors[client], slow))

    def noise(self, client: str, noise: Noise | None) -> None:
        """Disturb the client's chunks from now on; None ends it. The link must decode packets."""
        assert self._looks
        dice = {} if noise is None else {up: Dice(noise, f"{client}/{up}") for up in (True, False)}
        self._do(functools.partial(setattr, self._doors[client], "noise", dice))

    def close(self) -> None:
        self._do(self._end)
        asyncio.run_coroutine_threadsafe(self._settle(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, what: Callable[[], object]) -> None:
        """Run `what` in the thread of the link and wait for it."""
        if threading.current_thread() is self._thread:
            what()
        else:

            async def do() -> None:
                what()

            asyncio.run_coroutine_threadsafe(do(), self._loop).result()

    def _of(self, clients: tuple[str, ...]) -> list[_Door]:
        return [self._doors[client] for client in clients or self._doors]

    def _listen(self, door: _Door) -> None:
        if door.listening is None:
            door.listening = bound(door.port)
            door.listening.listen(1024)
            self._loop.add_reader(door.listening, self._accept, door, door.listening)

    def _shut(self, door: _Door) -> None:
        if door.listening is not None:
            self._loop.remove_reader(door.listening)
            door.listening.close()
            door.listening = None
        reset(door.writers)

    def _set_slow(self, door: _Door, slow: Slow | None) -> None:
        door.slow = slow
        if door.next_reset is not None:
            door.next_reset.cancel()
        for writer in door.writers:
            opened = writer.get_extra_info("socket")
            if opened is not None and not writer.transport.is_closing():  # None: closed already
                tighten(opened, tight=slow is not None)
        if slow is not None and slow.reset_s < math.inf:
            self._reset_again(door, slow.reset_s)

    def _reset_again(self, door: _Door, every_s: float) -> None:
        def again() -> None:
            reset(door.writers)
            self._reset_again(door, every_s)

        door.next_reset = self._loop.call_later(every_s, again)

    def _accept(self, door: _Door, listening: socket.socket) -> None:
        try:
            client, _ = listening.accept()
        except OSError:  # the client has already gone
            return
        if door.slow is not None:
            tighten(client)
        door.counted.connections += 1
        task = self._loop.create_task(self._carry(door, client))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _carry(self, door: _Door, client: socket.socket) -> None:
        """Carry one connection from its first byte to its end."""
        ends: list[asyncio.StreamWriter] = []
        try:
            reads, writer = await accepted(client, door.encryption)
            ends.append(writer)
            door.writers.add(writer)
            as_client = None if door.encryption is None else door.encryption.as_client
            broker, writer = await asyncio.open_connection(HOST, self.broker_port, ssl=as_client)
            ends.append(writer)
            door.writers.add(writer)
            if door.slow is not None:
                tighten(writer.get_extra_info("socket"))
            if door.listening is None:
                raise ConnectionResetError("the door was shut during the connection attempt")
            await self._pass_on(door, (reads, broker), ends)
        except OSError:  # reset by a side, no broker, or a failed handshake: reset both
            reset(ends)
        finally:
            for writer in ends:
                writer.close()
            for writer in ends:  # flushing may take long; `close` ends it
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
                door.writers.discard(writer)

    async def _pass_on(
        self,
        door: _Door,
        reads: tuple[asyncio.StreamReader, asyncio.StreamReader],
        ends: list[asyncio.StreamWriter],
    ) -> None:
        """Copy both directions until one side ends; raises OSError if it was reset."""
        version: list[int] = []  # the MQTT version, once the client has sent it
        up = self._loop.create_task(self._pump(door, reads[0], ends[1], version, upward=True))
        down = self._loop.create_task(self._pump(door, reads[1], ends[0], version, upward=False))
        try:
            done, _ = await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
            down.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
        for way in done:
            way.result()

    async def _pump(
        self,
        door: _Door,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        version: list[int],
        *,
        upward: bool,
    ) -> None:
        buffer, counted = bytearray(), door.counted
        while data := await source.read(_step_bytes(door.slow)):
            if door.slow is not None:
                await asyncio.sleep(len(data) / door.slow.bytes_per_s)
            counted.up_bytes += len(data) if upward else 0
            buffer += data
            for part in self._looked_at(door, buffer, version, upward=upward):
                counted.down_bytes += 0 if upward else len(part)
                if sink.is_closing():
                    raise ConnectionResetError("reset on the way")
                sink.write(part)
            await sink.drain()

    def _looked_at(
        self, door: _Door, buffer: bytearray, version: list[int], *, upward: bool
    ) -> Iterator[bytes]:
        """The contents of `buffer` to pass on: whole packets if the link decodes them."""
        if not self._looks:
            yield bytes(buffer)
            buffer.clear()
            return
        for packet in mqtt_frames.packets(buffer):
            kind = mqtt_frames.type_of(packet)
            if kind == mqtt_frames.CONNECT:
                version.append(mqtt_frames.version_of(packet))
            if kind != mqtt_frames.PUBLISH:
                yield packet
                continue
            publish = mqtt_frames.read_publish(packet, version[0])
            if self.watch is not None:
                self.watch(Seen(door.client, upward, publish.topic, publish.payload))
            dice = door.noise.get(upward)
            if dice is None or not is_chunk(publish.payload):
                yield packet
            else:
                yield from dice.fate(publish)

    def _end(self) -> None:
        for door in self._doors.values():
            self._set_slow(door, None)
            self._shut(door)
            door.held.close()

    async def _settle(self) -> None:
        await asyncio.gather(*self._carrying, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the next turn of the loop


def _step_bytes(slow: Slow | None) -> int:
    return _READ_BYTES if slow is None else max(1, int(slow.bytes_per_s * _SLOW_STEP_S))
