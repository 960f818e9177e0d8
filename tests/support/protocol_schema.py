"""The record of what is sent in one revision of the protocol, tests/protocol/revision.txt.

It holds the names and types of all fields of messages, the kinds on each topic, the tensors of each
codec, and the arrays of each method's exchanges. After a change of these, raise REVISION in
fedclip_edge/protocol/revision.py and run

    python tests/support/protocol_schema.py --write

The command writes no other record of a revision that has one already.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from checkout import ROOT
from protocol_examples import NESTED, type_name

from fedclip_edge.learning import methods
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.protocol import chunks, codec, messages, topics, wire
from fedclip_edge.protocol.revision import REVISION
from fedclip_edge.records import ClassTexts, Contribution, Plan, Shapes

RECORD = ROOT / "tests" / "protocol" / "revision.txt"
DIM = 6
CLASSES = ClassTexts(("ant", "bee", "cow"), np.eye(3, DIM, dtype=np.float32), 100.0, "a {}")


def schema() -> str:
    """The text of the record for the code of now."""
    return "\n".join([f"revision {REVISION}", *_lines()]) + "\n"


def _lines() -> Iterator[str]:
    yield f"version {topics.VERSION}, chunks {chunks._VERSION}, payloads {wire._SCHEMA}"
    for topic, kinds in topics._KINDS.items():
        yield f"topic {topic}: {', '.join(kinds)}"
    for kind, cls in messages.KINDS.items():
        yield f"message {kind}: {cls.__name__}"
    records: tuple[type[Any], ...] = (*messages.KINDS.values(), *NESTED, Contribution)
    for record in records:
        yield from _fields(record)
    for name in codec.CODECS:
        yield f"codec {name}: {codec.tensor_layout(name, {'term': (2, 3)}, {'sum': (4,)})}"
    for method in sorted(methods.names()):
        plan = methods.with_defaults(Plan(method))
        for number, layout in enumerate(Schedule(plan, CLASSES, DIM).layouts(), 1):
            for part in ("parameters", "delta", "sums"):
                yield f"{method} {number} {part}: {_shown(getattr(layout, part))}"


def _fields(cls: type[Any]) -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        shown = "update" if field.name == "update" else type_name(kind)
        no_default = field.default is field.default_factory is dataclasses.MISSING
        yield f"{cls.__name__}.{field.name}: {shown}{'' if no_default else ', optional'}"


def _shown(shapes: Shapes) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))


def write(path: Path) -> None:
    """Write the record; raises SystemExit if `path` has another record of this revision."""
    text, old = schema(), path.read_text(encoding="utf-8") if path.exists() else ""
    if old != text and old.startswith(f"revision {REVISION}\n"):
        sys.exit(f"revision {REVISION} has another record; raise REVISION first")
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/support/protocol_schema.py --write")
    write(RECORD)
