"""The pieces on top of every page of a box: the state of its agent (`agent/now_file.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedclip_edge.agent.now_file import Now
from fedclip_edge.agent.page.source import Source
from fedclip_edge.reporting.figures import percent

if TYPE_CHECKING:
    from jinja2 import Environment

_MODELS = {
    "zero-shot": "zero-shot CLIP, without any training",
    "fleet": "the fleet's model",
    "own": "this box's own model",
}
_ACTIVITIES = {
    "downloading": "downloads the model",
    "training": "trains",
    "evaluating": "evaluates the model",
}
# Names of a report, and the words of the page.
_ACCURACIES = (("zero_shot", "zero-shot"), ("federated", "shared"), ("personal", "own"))


@dataclass(eq=False)
class BoxPieces:
    """Renders the state of the agent; one that is as it was is not rendered again."""

    source: Source
    environment: Environment
    _shown: tuple[tuple[Now | None, bool], str] | None = None

    def render(self) -> dict[str, str]:
        """Return the HTML of each piece, by the id of its element."""
        state = self.source.state()
        if self._shown is None or self._shown[0] != state:
            self._shown = state, self._rendered(*state)
        return {"now": self._shown[1]}

    def _rendered(self, now: Now | None, runs: bool) -> str:
        severity, headline, why = _headline(now, runs=runs)
        macros: Any = self.environment.get_template("box_pieces.html.j2").module
        piece = macros.now(severity, headline, why, list(_facts(now)), now, is_old=not runs)
        return str(piece).strip()


def _headline(now: Now | None, *, runs: bool) -> tuple[str, str, str]:
    """Severity, a few words, and the reason or the next step."""
    if not runs:
        return "bad", "The agent does not run", "Start it, then this page shows what it does."
    if now is None:
        return "warning", "The agent starts", ""
    if now.paused:
        return "warning", "Pauses", now.paused
    if now.to_encode is not None:
        return "well", "Encodes its pictures", f"{now.encoded} of {now.to_encode} done"
    if not now.is_connected:
        return "warning", "Not connected", now.doing or "it starts, and reads its pictures"
    if now.left_out:
        return "warning", "Takes no part in the run", now.left_out
    if not now.has_coordinator:
        return "warning", "Connected; the coordinator does not answer", ""
    return "well", "Connected", _of_run(now)


def _of_run(now: Now) -> str:
    activity = _ACTIVITIES.get(now.activity)
    if activity is not None:
        return f"{now.run}: {activity}, round {now.round}"
    words = {
        "": "no run yet",
        "gathering": f"{now.run} waits for devices",
        "open": f"{now.run}: round {now.round}",
        "final": f"{now.run} collects the last reports",
        "done": f"{now.run} is over",
    }
    return words.get(now.phase, now.doing)


def _facts(now: Now | None) -> Iterator[tuple[str, str]]:
    if now is None:
        return
    if now.model:
        by = f", of {now.model_run}" if now.model_run else ""
        yield "model in use", f"{_MODELS.get(now.model, now.model)}{by}"
    shown = [
        f"{name} {percent(now.accuracy[key])}" for key, name in _ACCURACIES if key in now.accuracy
    ]
    if shown:
        where = f"{now.accuracy_run}, round {now.accuracy_round}"
        yield "accuracy here", f"{', '.join(shown)} ({where}, on this box's test pictures)"
    if now.train or now.validation or now.test:
        withheld = f", {now.withheld} withheld" if now.withheld else ""
        yield (
            "labelled",
            f"{now.train} train, {now.validation} validation, {now.test} test{withheld}",
        )
    if now.provider:
        yield "runs on", now.provider.replace("ExecutionProvider", "")
