"""The route of the box's page that shows its classes and says which need more pictures."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fedclip_edge.agent.page.catalogue import Catalogue, Pictures
from fedclip_edge.agent.page.label_routes import lists_shown
from fedclip_edge.agent.page.lists import Lists, ReviewMaker
from fedclip_edge.agent.page.live_box import LiveBox
from fedclip_edge.agent.page.shown import Filter
from fedclip_edge.agent.review import Advice, ClassNeed

WIDTH_PX, HEIGHT_PX = 96, 28  # of a curve
_EDGE_PX = 5
_ADVICE: dict[Advice, str] = {
    "too few": "too few pictures",
    "more": "more pictures would help",
    "enough": "hardly gains from more",
}


@dataclass(frozen=True, eq=False)
class ClassRoutes:
    """The route that shows the classes."""

    catalogue: Catalogue
    review: ReviewMaker
    live: LiveBox

    def routes(self) -> list[BaseRoute]:
        """List the route."""
        return [Route("/classes", self.classes)]

    async def classes(self, request: Request) -> Response:
        """Show every class, the neediest first."""
        found = await asyncio.to_thread(self.catalogue.refresh, soon=True)
        lists = await lists_shown(self.review, self.live)
        return await self.live.html(
            request,
            "classes.html.j2",
            rows=_rows(found, lists),
            lists=lists,
            trouble=found.trouble,
            curve_px=(WIDTH_PX, HEIGHT_PX),
        )


def _rows(pictures: Pictures, lists: Lists) -> list[dict[str, Any]]:
    labelled = Counter(entry.label for entry in pictures.entries if entry.label)
    named = Counter(
        entry.answer.label
        for entry in pictures.entries
        if not entry.label and entry.answer and not entry.answer.is_unknown
    )
    needs = {} if lists.review is None else {one.name: one for one in lists.review.classes}
    order = [*(name for name in needs if name in pictures.classes)]
    order += [name for name in pictures.classes if name not in needs]
    rows = []
    for place, name in enumerate(order):
        need = needs.get(name)
        rows.append(
            {
                "name": name,
                "place": place,  # the neediest is first
                "labelled": labelled[name],
                "named": named[name],
                "need": need,
                "advice": "" if need is None else _ADVICE[need.advice],
                "curve": None if need is None else curve(need),
                "address": Filter(name).address(),
            }
        )
    return rows


def curve(need: ClassNeed) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Place the two accuracies in a box of WIDTH_PX x HEIGHT_PX, from 0 % to 100 %; None without.

    The second point is further to the right: it was measured with more pictures.
    """
    if need.accuracy_half is None or need.accuracy is None:
        return None
    high = HEIGHT_PX - 2 * _EDGE_PX
    left, right = (
        (x, round(_EDGE_PX + high * (1 - value), 1))
        for x, value in ((_EDGE_PX + 20, need.accuracy_half), (WIDTH_PX - 20, need.accuracy))
    )
    return left, right
