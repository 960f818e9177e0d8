"""The results of a simulation: CSV rows for each round, and an outcome for each finished run.

The CSV's columns are `method, seed, split, held_out, device, round, top1, zero_shot, bytes_up,
bytes_down`. Accuracies are fractions of the test pictures, and are empty for a device without test
pictures. Byte counts are those of the payloads so far, without chunk headers and control messages.
The device `all` is the fleet without the held-out domain: its accuracy is measured over all test
pictures together, and its bytes are the sum over the devices. With --base-to-new, `split` ends with
base or new.
"""

from __future__ import annotations

import csv
import functools
import io
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedclip_edge.learning.evaluation import Evaluation, FleetEvaluation, over_fleet
from fedclip_edge.learning.unknown import Separation
from fedclip_edge.simulating.federation import Round
from fedclip_edge.simulating.host import Compared
from fedclip_edge.simulating.settings import Setting
from fedclip_edge.simulating.splits import Fleet

COLUMNS = (
    "method",
    "seed",
    "split",
    "held_out",
    "device",
    "round",
    "top1",
    "zero_shot",
    "bytes_up",
    "bytes_down",
)
ALL = "all"


@dataclass(frozen=True)
class Run:
    """One run of the comparison."""

    setting: Setting
    seed: int
    split: str
    held_out: str  # empty if none
    views: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """One round in the charts."""

    round: int
    mean: float | None  # mean of the devices' top-1; None without test pictures
    held_out: float | None
    body_bytes: int  # sent and received by all devices so far


@dataclass(frozen=True)
class FleetCompared:
    """The devices' own models beside the shared one and zero-shot CLIP, on the same pictures."""

    own: FleetEvaluation
    shared: FleetEvaluation | None  # None if devices train alone
    zero_shot: FleetEvaluation


@dataclass(frozen=True)
class Outcome:
    """The result of a finished run in one view."""

    run: Run
    view: str
    points: tuple[Point, ...]
    fleet: FleetEvaluation | None  # of the last model
    zero_shot: FleetEvaluation | None
    held_out: Evaluation | None
    held_out_zero_shot: Evaluation | None
    own_pictures: FleetCompared | None  # None if no device has a model of its own
    other_pictures: FleetCompared | None
    devices: int
    up_bytes: int  # sum over all devices and rounds
    down_bytes: int
    # Test pictures of all devices together; None in the view "new", or if there is no other class.
    separation: Separation | None = None
    zero_shot_separation: Separation | None = None


def header() -> str:
    """Return the header line of the CSV."""
    return _lines([COLUMNS])


def rows(run: Run, fleet: Fleet, found: Round) -> str:
    """Format the CSV lines of one round."""
    lines = []
    names = [device.name for device in fleet.devices]
    for view in run.views:
        fixed = [run.setting.label, run.seed, f"{run.split} {view}".strip(), run.held_out]
        shown = [*names, *([fleet.held_out.name] if fleet.held_out else [])]
        for name in shown:
            key = (name, view)
            up, down = found.up_bytes.get(name, 0), found.down_bytes.get(name, 0)
            shares = (_share(found.figures.get(key)), _share(found.zero_shot.get(key)))
            if name in names or run.setting.line != "local":
                lines.append([*fixed, name, found.round, *shares, up, down])
        together = [_fleet(its, names, view) for its in (found.figures, found.zero_shot)]
        accuracies = ["" if its is None else _fraction(its.weighted) for its in together]
        up, down = (
            sum(its.get(name, 0) for name in names) for its in (found.up_bytes, found.down_bytes)
        )
        lines.append([*fixed, ALL, found.round, *accuracies, up, down])
    return _lines(lines)


class Following:
    """A collector of the rounds of one run; it keeps only the figures that the outcomes need."""

    def __init__(self, run: Run, fleet: Fleet) -> None:
        self._run = run
        self._fleet = fleet
        self._names = [device.name for device in fleet.devices]
        self._points: dict[str, list[Point]] = {view: [] for view in run.views}
        self._last: Round | None = None

    def add(self, found: Round) -> None:
        self._last = found
        spent = self._spent(found.up_bytes) + self._spent(found.down_bytes)
        for view, points in self._points.items():
            fleet = _fleet(found.figures, self._names, view)
            apart = self._apart(found.figures, view)
            mean = None if fleet is None else fleet.mean
            points.append(Point(found.round, mean, None if apart is None else apart.top1, spent))

    def outcomes(self) -> Iterator[Outcome]:
        """Yield one outcome for each view; at least one round must have been added."""
        last = self._last
        assert last is not None
        for view, points in self._points.items():
            yield Outcome(
                run=self._run,
                view=view,
                points=tuple(points),
                fleet=_fleet(last.figures, self._names, view),
                zero_shot=_fleet(last.zero_shot, self._names, view),
                held_out=self._apart(last.figures, view),
                held_out_zero_shot=self._apart(last.zero_shot, view),
                own_pictures=_compared(last.own_pictures, self._names, view),
                other_pictures=_compared(last.other_pictures, self._names, view),
                separation=self._separation(last.separation, view),
                zero_shot_separation=self._separation(last.zero_shot_separation, view),
                devices=len(self._names),
                up_bytes=self._spent(last.up_bytes),
                down_bytes=self._spent(last.down_bytes),
            )

    def _separation(self, found: Mapping[str, Separation], view: str) -> Separation | None:
        its = [found[name] for name in self._names if name in found]
        trained = view == self._run.views[0]
        return functools.reduce(operator.add, its) if its and trained else None

    def _spent(self, its_bytes: Mapping[str, int]) -> int:
        return sum(its_bytes.get(name, 0) for name in self._names)

    def _apart(self, figures: Mapping[tuple[str, str], Evaluation], view: str) -> Evaluation | None:
        held_out = self._fleet.held_out
        return None if held_out is None else figures.get((held_out.name, view))


def _fleet(
    figures: Mapping[tuple[str, str], Evaluation], names: Sequence[str], view: str
) -> FleetEvaluation | None:
    found = [figures[name, view] for name in names if (name, view) in figures]
    return over_fleet(found) if found else None


def _compared(
    its: Mapping[tuple[str, str], Compared], names: Sequence[str], view: str
) -> FleetCompared | None:
    found = [its[name, view] for name in names if (name, view) in its]
    if not found:
        return None
    shared = [one.shared for one in found if one.shared is not None]
    return FleetCompared(
        over_fleet([one.own for one in found]),
        over_fleet(shared) if shared else None,
        over_fleet([one.zero_shot for one in found]),
    )


def _share(one: Evaluation | None) -> str:
    return "" if one is None else _fraction(one.top1)


def _fraction(share: float) -> str:
    return f"{share:.6f}"


def _lines(cells: Sequence[Sequence[object]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()
