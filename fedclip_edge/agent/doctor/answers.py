"""Checks of the places where a device's answers go: a file, and a broker if there is one.

Law: nothing is written to the file, and nothing is published.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from fedclip_edge.agent.answer_link import of_answers
from fedclip_edge.agent.answering import answers_path
from fedclip_edge.agent.doctor.finding import Finding, ok, todo
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.config.answers import AnswersBroker
from fedclip_edge.errors import FedclipError
from fedclip_edge.transport.mqtt import PahoTransport

_CONNECTS_S = 5.0


def check_answers(config: AgentConfig) -> Iterator[Finding]:
    """Check that answers can be written, and that their broker accepts this device."""
    yield _of_file(answers_path(config))
    if config.answers.broker is not None:
        yield _of_broker(config.answers.broker, config.id)


def _of_file(path: Path) -> Finding:
    other = "set another `file` under [answers]"
    there = next(up for up in (path, *path.absolute().parents) if os.path.lexists(up))
    if there == path and not path.is_file():
        return todo("answers", f"{path} is not a file", f"move it away, or {other}")
    if not os.access(there, os.W_OK):
        what = f"let this user (uid {os.geteuid()}) write there, run doctor as the agent's, or"
        return todo("answers", f"{there} cannot be written to", f"{what} {other}")
    if there != path:
        return ok("answers", f"none yet; they will be in {path}")
    return ok("answers", f"in {path}, {path.stat().st_size / 1e6:.1f} MB")


def _of_broker(broker: AnswersBroker, device: str) -> Finding:
    where, name = f"{broker.host}:{broker.port}", f"fedclip-edge.{device}.{secrets.token_hex(8)}"
    try:
        link = PahoTransport(broker, name, (), None)
        link.connect(_CONNECTS_S)
    except FedclipError as error:
        said, _, what = of_answers(str(error)).partition("; ")
        return todo("answers", said, what)
    link.close()
    topic = f"{broker.topic}/{device}"
    return ok("answers", f"{where} accepts this device; the agent's log says if it denies {topic}")
