"""Buttons of the fleet's page: commands of the control socket, each after one question.

Law: the journal has who pressed a button, with the time, before the command takes effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fedclip_edge.coordinator.page.source import Source
from fedclip_edge.errors import ConfigError
from fedclip_edge.web.app import Pages, form_of
from fedclip_edge.web.sessions import Session

Form = Mapping[str, str]


@dataclass(frozen=True)
class Field:
    """A field of the question before an action."""

    name: str
    label: str
    kind: str = "text"  # or "checkbox"
    default: str = ""


@dataclass(frozen=True)
class Action:
    """One button: its question, and the command that it gives."""

    name: str
    button: str
    question: str
    command: str
    arguments: Callable[[Form], dict[str, Any]]
    done: Callable[[Mapping[str, Any]], str]
    fields: tuple[Field, ...] = ()
    is_final: bool = False  # it cannot be undone


def _closed(found: Mapping[str, Any]) -> str:
    return f"{found['run']} ({found['closed']} of {found['rounds']} rounds closed)"


def _forgotten(found: Mapping[str, Any]) -> str:
    said = (
        f"Forgot {found['device']}: {found['contributions']} contributions and "
        f"{found['reports']} reports deleted."
    )
    runs = ", ".join(one["run"] for one in found["remaining"])
    more = f" The models of {runs} still contain it." if runs else ""
    failures = f" Not everything is done: {'; '.join(found['failures'])}." * bool(found["failures"])
    return f"{said}{more}{failures} Backups, logs and exported classifiers are not covered."


ACTIONS: Mapping[str, Action] = {
    action.name: action
    for action in (
        Action(
            "start",
            "Start a run …",
            "Start a new run, with the settings that fleet.toml has now?",
            "start",
            lambda form: {"start": form.get("start", "").strip() or "zero-shot"},
            lambda found: f"Started {found['run']} from {found['started_from']}.",
            (Field("start", "From: zero-shot, last, or the id of a run", default="zero-shot"),),
        ),
        Action(
            "pause",
            "Pause …",
            "Open no further round? A round that is open goes on to its end.",
            "pause",
            lambda _: {},
            lambda found: f"Paused {_closed(found)}.",
        ),
        Action(
            "resume",
            "Resume …",
            "Let the paused run go on?",
            "resume",
            lambda _: {},
            lambda found: f"Resumed {_closed(found)}.",
        ),
        Action(
            "end",
            "End the run …",
            "End the run now, with the model of its last closed round and without a vote?",
            "close",
            lambda _: {"now": True},
            lambda found: f"Ending {_closed(found)}.",
            is_final=True,
        ),
        Action(
            "abandon",
            "Abandon the run …",
            "End the run without a model file? Its newest model stays in the journal.",
            "abandon",
            lambda _: {},
            lambda found: f"Abandoned {_closed(found)}.",
            is_final=True,
        ),
        Action(
            "classes",
            "New classes …",
            "Publish the classes of a signed bundle? The fleet's next run has them.",
            "publish",
            lambda form: {"bundle": form.get("bundle", "").strip()},
            lambda found: (
                f"Published {found['classes']} classes, serial {found['serial']}. The next run has "
                "them."
            ),
            (Field("bundle", "Folder of the bundle, on the coordinator's machine (absolute)"),),
        ),
        Action(
            "forget",
            "Forget a device …",
            "Remove the device's contributions, answers and reports from the journal? This does not "
            "revoke the device.",
            "forget",
            lambda form: {
                "device": form.get("device", "").strip(),
                "without_vote": "without_vote" in form,
                "delete_models": "delete_models" in form,
            },
            _forgotten,
            (
                Field("device", "Id of the device"),
                Field(
                    "without_vote", "Take the default candidate instead of a new vote", "checkbox"
                ),
                Field(
                    "delete_models",
                    "Delete models that contain the device and cannot be computed again",
                    "checkbox",
                ),
            ),
            is_final=True,
        ),
    )
}
ON_THE_FLEET = tuple(ACTIONS.values())


@dataclass(frozen=True, eq=False)
class ActionRoutes:
    """The routes of the buttons: a question first, then the command."""

    source: Source
    pages: Pages

    def routes(self) -> list[BaseRoute]:
        """List the routes."""
        return [
            Route("/actions/{name}", self.question, methods=["GET"]),
            Route("/actions/{name}", self.act, methods=["POST"]),
        ]

    async def question(self, request: Request) -> Response:
        """Ask once before the command is given."""
        action = _named(request)
        values = {
            one.name: request.query_params.get(one.name, one.default) for one in action.fields
        }
        return self.pages.html(
            request, "question.html.j2", action=action, values=values, refused=""
        )

    async def act(self, request: Request) -> Response:
        """Give the command; what the coordinator refuses is said above the question."""
        action, form = _named(request), await form_of(request)
        session = request.scope["session"]
        assert isinstance(session, Session)
        via = f"page ({session.name})" if session.name else "page"
        try:
            arguments = action.arguments(form)
            if any(value == "" for value in arguments.values()):
                raise ConfigError("a field is empty; fill it in")
            found = await asyncio.to_thread(self.source.ask, action.command, via, **arguments)
        except ConfigError as error:
            values = {one.name: form.get(one.name, "") for one in action.fields}
            return self.pages.html(
                request, "question.html.j2", 409, action=action, values=values, refused=str(error)
            )
        return self.pages.message(request, action.done(found), _recorded(session))


def _recorded(session: Session) -> str:
    who = session.name or "the page, without a name"
    return f"The journal has this command, its time and who gave it: {who}."


def _named(request: Request) -> Action:
    name = request.path_params["name"]
    if name not in ACTIONS:
        raise HTTPException(404, f"There is no action {name!r}.")
    return ACTIONS[name]
