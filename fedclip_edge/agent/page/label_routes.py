"""Routes of the box's page on which a person labels pictures.

Law: every change is one POST, which the guard of the page has checked (web/guard.py).
"""

from __future__ import annotations

import asyncio
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from fedclip_edge import log
from fedclip_edge.agent.page.catalogue import Catalogue
from fedclip_edge.agent.page.label_lists import FIRST, TABS
from fedclip_edge.agent.page.labelling import Labelling
from fedclip_edge.agent.page.lists import Lists, ReviewMaker
from fedclip_edge.agent.page.live_box import LiveBox
from fedclip_edge.agent.page.shown import part_of
from fedclip_edge.errors import ConfigError
from fedclip_edge.web.app import fields_of
from fedclip_edge.web.sessions import Session

if TYPE_CHECKING:
    from jinja2 import Environment

AT_ONCE = 120  # pictures on a page
# Keys that choose a class. The others are those of static/label.js: all, name, undo.
KEYS = [*string.digits[1:], *(one for one in string.ascii_lowercase if one not in "anu")]
_BACK = re.compile(r"/(?:label(?:\?[a-z0-9=&]*)?|pictures/[0-9a-f]{20})")


@dataclass(frozen=True, eq=False)
class ListsPiece:
    """The live piece that says how new the lists are; `data-version` counts them."""

    review: ReviewMaker
    environment: Environment

    def render(self) -> Mapping[str, str]:
        """Return the HTML of the piece, by the id of its element."""
        macros: Any = self.environment.get_template("cards.html.j2").module
        return {"lists": macros.lists(self.review.now).strip()}


@dataclass(frozen=True, eq=False)
class LabelRoutes:
    """The routes that show the lists, give labels, and undo that."""

    catalogue: Catalogue
    review: ReviewMaker
    labelling: Labelling
    live: LiveBox

    def routes(self) -> list[BaseRoute]:
        """List the routes."""
        return [
            Route("/label", self.show, methods=["GET"]),
            Route("/label", self.give, methods=["POST"]),
            Route("/label/undo", self.undo, methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        """Show one of the lists."""
        query = request.query_params
        tab = TABS.get(query.get("tab", FIRST))
        if tab is None:
            raise HTTPException(404, "There is no such list.")
        found = await asyncio.to_thread(self.catalogue.refresh, soon=True)
        # The lists are made anew only for a list that shows them.
        lists = await lists_shown(self.review, self.live) if tab.needs_review else self.review.now
        part = part_of(list(tab.choices(found, lists)), query.get("page", ""), AT_ONCE)
        return await self.live.html(
            request,
            "label.html.j2",
            tabs=TABS.values(),
            tab=tab,
            part=part,
            lists=lists,
            keys=list(zip(KEYS, found.classes, strict=False)) * (len(found.classes) <= len(KEYS)),
            classes=found.classes,
            trouble=found.trouble,
            step=self.labelling.last,
            back=_address(tab.name, part.number),
            older=_address(tab.name, part.number + 1),
            newer=_address(tab.name, part.number - 1),
        )

    async def give(self, request: Request) -> Response:
        """Give the selected pictures a label, confirm theirs, or take them back."""
        fields = await fields_of(request)
        form = dict(fields)
        found = await asyncio.to_thread(self.catalogue.refresh, soon=True)
        ids = list(dict.fromkeys(value for name, value in fields if name == "picture"))
        entries = [found.by_id[one] for one in ids if one in found.by_id]
        if ids and not entries:
            raise ConfigError("the pictures are not on this device any more; reload the page")
        name = _name(request)
        if form.get("action") == "keep":
            right = {entry.hash: entry.label for entry in entries if entry.label}
            step = await asyncio.to_thread(self.labelling.confirm, right, name)
            log.event("labels_confirmed", pictures=len(step.before), name=name or None)
        else:
            label, pictures = _label(form), [entry.hash for entry in entries]
            give = self.labelling.give
            step = await asyncio.to_thread(give, pictures, label, found.classes, name)
            count = len(step.before)
            log.event("labels_given", pictures=count, label=step.label, name=name or None)
        await asyncio.to_thread(self.catalogue.refresh)
        self.live.expire()
        return _back(form)

    async def undo(self, request: Request) -> Response:
        """Undo the newest step."""
        form = dict(await fields_of(request))
        step = await asyncio.to_thread(self.labelling.undo, form.get("step", ""))
        log.event(
            "labels_undone",
            pictures=len(step.before),
            label=step.label,
            name=_name(request) or None,
        )
        await asyncio.to_thread(self.catalogue.refresh)
        self.live.expire()
        return _back(form)


async def lists_shown(review: ReviewMaker, live: LiveBox) -> Lists:
    """Return the lists for a page whose live piece says how new they are."""
    if review.lists().is_making:
        live.expire()
    await live.refresh()
    return review.now  # not older than the piece


def _label(form: Mapping[str, str]) -> str | None:
    """Return the class that was chosen; None if labels are to be taken back."""
    if form.get("action") == "take":
        return None
    label = (form.get("class") or form.get("typed", "")).strip()
    if not label:
        raise ConfigError("no class is chosen; choose one, or write its name")
    return label


def _name(request: Request) -> str:
    session = request.scope["session"]
    assert isinstance(session, Session)
    return session.name


def _back(form: Mapping[str, str]) -> Response:
    """Go back to where the form was, and nowhere else."""
    wanted = form.get("back", "")
    address = wanted if _BACK.fullmatch(wanted) else "/label"
    return RedirectResponse(f"{address}#pictures" if address.startswith("/label") else address, 303)


def _address(tab: str, page: int) -> str:
    values: dict[str, str | int] = {"tab": tab, **({"page": page} if page > 1 else {})}
    return f"/label?{urlencode(values)}"
