"""Answers for a device's new pictures, from their features to the file and the broker.

Laws:
- Answers need neither the network nor a round: the device answers with the model that it has.
- If the features of some pictures cannot be computed, this is tried TRIES times in all. Then the
  pictures are left out until the next start, with a log line, and the device goes on. While the
  disk is full, they wait.
- A picture is settled when its answer is in the file, or when it cannot be decoded.
- Pictures whose folder is away wait, and the others do not.
- The last model of a run is in use as soon as it has arrived. The models of its rounds before are
  not: a run may start from zero-shot CLIP again.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedclip_edge import log
from fedclip_edge.agent.answer_events import EventAnswer, Events
from fedclip_edge.agent.answer_file import AnswerFile
from fedclip_edge.agent.answer_link import AnswerLink
from fedclip_edge.agent.answers import Answer, NewPicture, answer, line_of
from fedclip_edge.agent.home_assistant import answer_topic, event_topic
from fedclip_edge.agent.model_in_use import ModelChoice, model_choice
from fedclip_edge.agent.session import Session
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.errors import DiskError, FedclipError
from fedclip_edge.learning.run_steps import exchanges
from fedclip_edge.model_file import TrainedModel
from fedclip_edge.records import F32
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.datasets import Picture

FILE = "answers.jsonl"  # in state_dir, unless agent.toml names another file
TRIES = 3
_AGAIN_S = 5.0  # between two tries
_AT_ONCE = 16  # pictures; the answers of the first ones do not wait for more
Features = Callable[[Sequence[Picture]], Mapping[str, F32] | None]
EventOf = Callable[[Picture], str]
IsAbsent = Callable[[Path], bool]


def answers_path(config: AgentConfig) -> Path:
    """Path of the file of answers."""
    return config.answers.file or config.state_dir / FILE


@dataclass(eq=False)
class Outlets:
    """The places where answers go: a file, and a broker if agent.toml names one."""

    config: AgentConfig
    file: AnswerFile
    link: AnswerLink | None

    def put(self, found: Answer | EventAnswer, now: float) -> None:
        """Write and publish one answer; `now` is monotonic, in seconds."""
        line = line_of(found.to_json())
        self.file.add(line, now)
        broker = self.config.answers.broker
        if self.link is not None and broker is not None:
            topic = event_topic if isinstance(found, EventAnswer) else answer_topic
            self.link.put(topic(broker, self.config.id), line.rstrip(b"\n"))

    def close(self) -> None:
        """Publish what waits, and end the link."""
        if self.link is not None:
            self.link.close()


def open_outlets(config: AgentConfig) -> Outlets:
    """Open the outlets of one device, and start its link.

    Raises ConfigError if [answers.broker] names certificates that cannot be used.
    """
    rules = config.answers
    file = AnswerFile(answers_path(config), rules.file_bytes, rules.old_files)
    link = None if rules.broker is None else AnswerLink(rules.broker, config.id)
    if link is not None:
        link.start()
    return Outlets(config, file, link)


@dataclass(eq=False)
class Answering:
    """The answers of one device with one bundle.

    `features` computes raw features float32 (D,) by hash, and leaves out pictures that it cannot
    decode or read; it returns None if it is at work for others. `event_of` names the event of a
    picture; the name is empty if there is none. `is_absent` is true if the folder of a file is
    away.
    """

    config: AgentConfig
    choice: ModelChoice
    outlets: Outlets
    features: Features
    event_of: EventOf
    events: Events
    is_absent: IsAbsent
    _waiting: list[Picture] = field(default_factory=list)
    _settled: list[str] = field(default_factory=list)  # hashes; their lines may still wait
    _is_answering: bool = False  # `look` was called again while it waits for features
    _failures: int = 0  # in a row, for the first pictures that wait
    _again_at: float = -math.inf
    _delay: str = ""  # the disk error that is reported already
    _final: str = ""  # a run whose last model is announced
    _told: tuple[str, str] | None = None  # kind and version of the model that the log has

    def add(self, pictures: Sequence[Picture]) -> None:
        """Answer new pictures, from the next `look` on."""
        self._waiting += pictures

    def look(self, session: Session | None, now: float) -> None:
        """Use a new model, answer what waits, and write what is due.

        `now` is monotonic, in seconds. It may be called again while it waits for features. Raises
        ConfigError for a model of an unknown method.
        """
        if session is not None:
            self._adopt(session)
        self.choice.look()
        self._tell_model()
        if self._waiting and now >= self._again_at and not self._is_answering:
            self._is_answering = True
            try:
                self._answer_some(now)
            finally:
                self._is_answering = False
        for made in self.events.ended(now, time.time()):
            self.outlets.put(made, now)
        self.outlets.file.look(now)

    def _answer_some(self, now: float) -> None:
        """Answer the first pictures that wait, if their features can be had."""
        ready = (one for one in self._waiting if not self.is_absent(one.path))
        some = list(itertools.islice(ready, _AT_ONCE))
        if not some:
            return
        try:
            found = self.features(some)
        except DiskError as error:  # features cannot be stored: wait until there is space again
            self._again_at = now + _AGAIN_S
            if not self._delay:
                log.event("answers_delayed", count=len(self._waiting), reason=str(error))
            self._delay = str(error)
            return
        except FedclipError as error:
            self._failures += 1
            self._again_at = now + _AGAIN_S
            if self._failures == TRIES:
                self._failures = 0
                self._take_away(some)
                log.event("pictures_not_answered", count=len(some), reason=str(error))
            return
        if found is None:
            return
        self._failures, self._delay = 0, ""
        some = [one for one in some if one.hash in found or not self.is_absent(one.path)]
        self._take_away(some)
        known = [
            NewPicture(one.path, one.hash, found[one.hash], self.event_of(one))
            for one in some
            if one.hash in found
        ]
        self._settled += (one.hash for one in some if one.hash not in found)
        model, top = self.choice.current, self.config.answers.top
        for made in answer(known, model, self.config.id, top, time.time()):
            self.outlets.put(made, now)
            self._settled.append(made.hash)  # SIGTERM may end the work after each of them
            self.events.add(made, now)

    def _take_away(self, pictures: Sequence[Picture]) -> None:
        hashes = {one.hash for one in pictures}
        self._waiting = [one for one in self._waiting if one.hash not in hashes]

    def take_settled(self) -> list[str]:
        """The hashes that were settled since the last call; none while lines wait for the disk."""
        if self.outlets.file.waits:
            return []
        settled, self._settled = self._settled, []
        return settled

    def end(self, now: float) -> None:
        """Answer the open events."""
        for made in self.events.ended(now, time.time(), all_of_them=True):
            self.outlets.put(made, now)

    def _adopt(self, session: Session) -> None:
        manifest, held = session.trust.manifest, session.download.held
        if manifest is None or manifest.phase not in ("final", "done"):
            return
        if manifest.phase == "final":
            self._final = manifest.run
        if held is None or held.version != manifest.model.sha256:
            return
        # Two runs may end with the same bytes; an answer names the later one.
        if (manifest.run, held.version) == (self.choice.fleet_run, self.choice.fleet_version):
            return
        # An abandoned run is done too, with fewer closed exchanges than its plan has.
        if manifest.run != self._final and manifest.closed < exchanges(manifest.plan):
            return
        publisher = session.publisher
        if (manifest.encoder_id, manifest.classes_digest) != (
            publisher.encoder_id,
            publisher.classes_digest,
        ):
            return
        self.choice.adopt(
            TrainedModel(
                held.model,
                manifest.run,
                manifest.plan,
                manifest.encoder_id,
                manifest.classes_digest,
                held.version,
            )
        )

    def _tell_model(self) -> None:
        """Log the model in use if it is another one than before."""
        model = self.choice.current
        here = model.kind, model.version
        if here != self._told:
            self._told = here
            log.event("answering_with", model=model.kind, run=model.run or None)


def start_answering(
    config: AgentConfig,
    bundle: Bundle,
    outlets: Outlets,
    features: Features,
    event_of: EventOf,
    is_absent: IsAbsent,
) -> Answering:
    """Make the answering of a device with this bundle."""
    choice = model_choice(config, bundle)
    events = Events(config.answers)
    return Answering(config, choice, outlets, features, event_of, events, is_absent)
