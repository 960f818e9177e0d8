"""A bounded queue in which many senders share one reader, and none can crowd out the others.

Laws:
- The queue never holds more than `total`, in items and in bytes, and of one sender never more than
  `share`.
- A sender may hold at most as much as the queue still has free (a dynamic threshold: Choudhury and
  Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). So a sender that holds nothing finds room
  even while others flood the queue.
- Senders take turns. The items of one sender come out in the order in which they went in.
- What exceeds a sender's share drops that sender's own oldest items: the newest ones say more.

It is not safe for threads; its owner locks it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Room:
    """A limit in items and in bytes."""

    items: int
    size_bytes: int


@dataclass(eq=False)
class _Waiting(Generic[T]):
    """The items of one sender, each with its size in bytes."""

    items: deque[tuple[T, int]] = field(default_factory=deque)
    size_bytes: int = 0


class FairQueue(Generic[T]):
    """Items by sender; `total` limits all of them together, `share` those of one sender."""

    def __init__(self, total: Room, share: Room) -> None:
        self._total = total
        self._share = share
        self._by_sender: dict[str, _Waiting[T]] = {}
        self._turns: deque[str] = deque()  # the keys of _by_sender, the next one at the front
        self._items = 0
        self.size_bytes = 0  # of all items

    def __len__(self) -> int:
        return self._items

    def put(self, sender: str, item: T, size_bytes: int) -> list[T]:
        """Queue an item; returns the items of this sender that were dropped for it.

        The item itself is among them, as the last one, if it does not fit even without the others.
        """
        mine, dropped = self._by_sender.get(sender), list[T]()
        while not self._has_room(mine, size_bytes):
            if mine is None or not mine.items:
                return [*dropped, item]
            dropped.append(self._pop(mine)[0])
        if mine is None:
            mine = self._by_sender[sender] = _Waiting()
            self._turns.append(sender)
        mine.items.append((item, size_bytes))
        mine.size_bytes += size_bytes
        self.size_bytes += size_bytes
        self._items += 1
        return dropped

    def take(self) -> tuple[str, T] | None:
        """The next item and its sender, or None if the queue is empty."""
        while self._turns:
            sender = self._turns.popleft()
            mine = self._by_sender[sender]
            item = self._pop(mine) if mine.items else None
            if mine.items:
                self._turns.append(sender)
            else:
                del self._by_sender[sender]
            if item is not None:
                return sender, item[0]
        return None

    def clear(self) -> None:
        """Drop everything."""
        self._by_sender.clear()
        self._turns.clear()
        self._items = self.size_bytes = 0

    def _has_room(self, mine: _Waiting[T] | None, size_bytes: int) -> bool:
        items, held = (len(mine.items), mine.size_bytes) if mine else (0, 0)
        total, share = self._total, self._share
        free_bytes = total.size_bytes - self.size_bytes
        return items < min(share.items, total.items - self._items) and held + size_bytes <= min(
            share.size_bytes, free_bytes
        )

    def _pop(self, mine: _Waiting[T]) -> tuple[T, int]:
        item = mine.items.popleft()
        mine.size_bytes -= item[1]
        self.size_bytes -= item[1]
        self._items -= 1
        return item
