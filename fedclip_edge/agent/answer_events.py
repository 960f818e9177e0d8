"""One answer for each event: for the pictures of one group that come soon after each other.

The pictures of an event vote. Each votes for its label, or for "unknown". The label with the most
votes is the event's, if there are enough pictures and it has a large enough share of them; Frigate
uses the same rule for its classifications, with 3 pictures and 60 %.

Laws:
- An event gets one answer, once it is over: EVENT_S after its last picture, and LONGEST_S after its
  first one at the latest.
- The order of the pictures does not change the label.
- What is kept of an event does not grow with its pictures.

Sans-I/O: `now` is monotonic, in seconds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from fedclip_edge.agent.answers import DIGITS, Answer, described, utc
from fedclip_edge.config.answers import AnswersConfig

LONGEST_S = 600.0
_UNKNOWN = ""  # the vote for "none of the classes"; no class has an empty name


@dataclass(frozen=True)
class EventAnswer:
    """The common answer for the pictures of one event."""

    time: float  # of the answer, in seconds since 1970
    event: str
    label: str | None  # None if the pictures do not agree, or agree that it is unknown
    probability: float | None  # mean probability of the label, over the pictures that voted for it
    is_agreed: bool
    agree: int  # pictures that voted for the answer with the most votes
    pictures: int
    last: Answer  # of the event's last picture

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, which docs/how-to/predictions.md explains."""
        return {
            "time": utc(self.time),
            "device": self.last.device,
            "event": self.event,
            "label": self.label,
            "probability": None if self.probability is None else round(self.probability, DIGITS),
            "unknown": self.label is None,
            "agreed": self.is_agreed,
            "agree": self.agree,
            "pictures": self.pictures,
            "last_picture": str(self.last.path),
            **described(self.last.model),
        }


@dataclass(eq=False)
class _Event:
    """The votes of one event so far."""

    began: float
    last_at: float
    last: Answer
    votes: Counter[str] = field(default_factory=Counter)
    probabilities: Counter[str] = field(default_factory=Counter)  # sums, by label


@dataclass(eq=False)
class Events:
    """The open events of one device."""

    config: AnswersConfig
    _open: dict[str, _Event] = field(default_factory=dict)

    def add(self, answer: Answer, now: float) -> None:
        """Count a picture's answer; one that belongs to no event is left out."""
        if not answer.event:
            return
        event = self._open.setdefault(answer.event, _Event(now, now, answer))
        event.last_at, event.last = now, answer
        vote = _UNKNOWN if answer.is_unknown else answer.label
        event.votes[vote] += 1
        event.probabilities[vote] += answer.probability  # type: ignore[assignment]  # a float

    def ended(self, now: float, time: float, *, all_of_them: bool = False) -> list[EventAnswer]:
        """Return the answers for the events that are over, and forget these.

        `time` is in seconds since 1970. With `all_of_them` every event is over.
        """
        over = [
            name
            for name, event in self._open.items()
            if all_of_them
            or now - event.last_at >= self.config.event_s
            or now - event.began >= LONGEST_S
        ]
        return [self._answer(name, self._open.pop(name), time) for name in over]

    def _answer(self, name: str, event: _Event, time: float) -> EventAnswer:
        pictures = event.votes.total()
        # Among labels with equally many votes the most probable one, then the first by name.
        vote = min(event.votes, key=lambda v: (-event.votes[v], -event.probabilities[v], v))
        agree = event.votes[vote]
        enough = pictures >= self.config.event_pictures
        is_agreed = enough and agree >= self.config.event_share * pictures - 1e-9
        is_label = is_agreed and vote != _UNKNOWN
        return EventAnswer(
            time=time,
            event=name,
            label=vote if is_label else None,
            probability=event.probabilities[vote] / agree if is_label else None,
            is_agreed=is_agreed,
            agree=agree,
            pictures=pictures,
            last=event.last,
        )
