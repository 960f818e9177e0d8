"""Routes of the box's page that show its pictures: the newest ones, and one picture."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fedclip_edge.agent.page.catalogue import PERSON, Catalogue, Entry, Pictures
from fedclip_edge.agent.page.labelling import Labelling
from fedclip_edge.agent.page.live_box import LiveBox
from fedclip_edge.agent.page.shown import SHOW, Filter, is_unsure, part_of

if TYPE_CHECKING:
    from jinja2 import Environment

AT_ONCE = 60  # pictures on a page


@dataclass(eq=False)
class NewestPiece:
    """The live piece with the newest pictures; it is rendered when they have changed."""

    catalogue: Catalogue
    environment: Environment
    _seen: Pictures | None = None
    _made: dict[str, str] = field(default_factory=dict)

    def render(self) -> Mapping[str, str]:
        """Return the HTML of the piece, by the id of its element."""
        pictures = self.catalogue.refresh(soon=True)
        if pictures is not self._seen:
            macros: Any = self.environment.get_template("cards.html.j2").module
            cards = [card(entry) for entry in pictures.entries[:AT_ONCE]]
            self._made = {"newest": macros.cards("newest", cards).strip()}
            self._seen = pictures
        return self._made


@dataclass(frozen=True, eq=False)
class PictureRoutes:
    """The routes that show pictures."""

    catalogue: Catalogue
    labelling: Labelling
    live: LiveBox

    def routes(self) -> list[BaseRoute]:
        """List the routes."""
        return [Route("/", self.pictures), Route("/pictures/{picture}", self.picture)]

    async def pictures(self, request: Request) -> Response:
        """Show the pictures, the newest first."""
        found = await asyncio.to_thread(self.catalogue.refresh, soon=True)
        wanted = Filter.of(request.query_params)
        matching = [entry for entry in found.entries if wanted.matches(entry)]
        part = part_of(matching, request.query_params.get("page", ""), AT_ONCE)
        return await self.live.html(
            request,
            "pictures.html.j2",
            cards=[card(entry) for entry in part.items],
            part=part,
            wanted=wanted,
            is_newest=wanted == Filter() and part.number == 1,
            show=SHOW,
            classes=found.classes,
            unread=found.unread,
            trouble=found.trouble,
        )

    async def picture(self, request: Request) -> Response:
        """Show one picture with its answer and its label."""
        found = await asyncio.to_thread(self.catalogue.refresh, soon=True)
        entry = found.by_id.get(request.path_params["picture"])
        if entry is None:
            raise HTTPException(404, "This device has no such picture now.")
        return await self.live.html(
            request,
            "picture.html.j2",
            entry=entry,
            at=minute(entry.at),
            has_own_label=entry.by == PERSON,
            classes=found.classes,
            step=self.labelling.last,
            back=f"/pictures/{entry.id}",
        )


def card(entry: Entry) -> dict[str, Any]:
    """Return what a small picture shows."""
    answer = entry.answer
    return {
        "id": entry.id,
        "name": entry.path.name,
        "at": minute(entry.at),
        "label": entry.label,
        "by": entry.by,
        "answer": "" if answer is None else "unknown" if answer.is_unknown else answer.label,
        "probability": None if answer is None or answer.is_unknown else answer.probability,
        "is_unsure": is_unsure(entry),
        # The model and the label disagree.
        "differs": bool(
            answer and entry.label and not answer.is_unknown and answer.label != entry.label
        ),
    }


def minute(at: float) -> str:
    """Format a Unix time as this machine's date and time of day."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
