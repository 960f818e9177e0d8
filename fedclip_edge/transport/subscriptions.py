"""The topics that a link subscribes to, and the broker's answers that have not come yet."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence

from fedclip_edge.transport.paho_client import Client

_TOPICS_AT_ONCE = 100  # in one SUBSCRIBE packet: even with the longest names it fits into 64 kB


class Subscriptions:
    """The subscriptions of one client. Its owner and paho's callbacks use it at the same time."""

    def __init__(self, client: Client, topics: Iterable[str]) -> None:
        self._client = client
        self._topics = tuple(topics)
        self._asked: dict[int, tuple[str, ...]] = {}  # subscriptions without an answer yet
        self._asking = threading.Lock()

    def ask(self) -> None:
        """Subscribe to every topic; the broker then sends the retained messages again."""
        self._subscribe(self._topics)

    def ask_anew(self) -> bool:
        """Subscribe to every topic on a new link; False if there is none."""
        self._asked.clear()
        self._subscribe(self._topics)
        return bool(self._topics)

    def change(self, topics: Iterable[str], *, tell: bool) -> None:
        """Replace the topics; with `tell`, the broker is told the difference."""
        before, self._topics = self._topics, tuple(topics)
        if tell:
            self._subscribe([topic for topic in self._topics if topic not in set(before)])
            gone = [topic for topic in before if topic not in set(self._topics)]
            for batch in _batches(gone):
                self._client.unsubscribe(list(batch))

    def answered(self, number: int, refusals: Sequence[str]) -> tuple[dict[str, str], bool]:
        """Note the broker's answer to the packet with this number.

        `refusals` are the reasons in the order of its topics, empty for a topic that was accepted.
        Returns the reasons by refused topic, and whether no other answer is due.
        """
        with self._asking:
            answered = zip(self._asked.pop(number, ()), refusals, strict=False)
            is_last = not self._asked
        return {topic: reason for topic, reason in answered if reason}, is_last

    def _subscribe(self, topics: Sequence[str]) -> None:
        for batch in _batches(topics):
            # The answer may come before `subscribe` returns; it waits for this lock.
            with self._asking:
                _, number = self._client.subscribe([(topic, 1) for topic in batch])
                if number is not None:
                    self._asked[number] = batch


def _batches(topics: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for begin in range(0, len(topics), _TOPICS_AT_ONCE):
        yield tuple(topics[begin : begin + _TOPICS_AT_ONCE])
