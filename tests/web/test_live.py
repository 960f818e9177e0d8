"""The pieces of a live page: only what changed, everything once, and never too much at a time."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.web.live import MESSAGE_BYTES, Pieces

_NAMES = st.sampled_from("abcdef")
_STATES = st.lists(st.dictionaries(_NAMES, st.text("<>xyz", min_size=1, max_size=3)), max_size=8)


def catch_up(pieces: Pieces, since: str, page: dict[str, str]) -> str:
    """Apply to a browser's page all that changed."""
    while True:
        changed, since = pieces.since(since)
        if not changed:
            return since
        for name, html in changed.items():
            if html:
                page[name] = html
            else:
                page.pop(name, None)


@given(_STATES, st.data())
def test_a_browser_that_comes_back_at_any_time_has_everything(
    states: list[dict[str, str]], data: st.DataObject
) -> None:
    pieces, page, since = Pieces(), dict[str, str](), ""
    for state in states:
        pieces.replace(state)
        if data.draw(st.booleans()):
            since = catch_up(pieces, since, page)
            assert page == state == pieces.all()
    catch_up(pieces, since, page)
    assert page == pieces.all()


def test_what_did_not_change_is_not_sent() -> None:
    pieces = Pieces()
    pieces.replace({"a": "1", "b": "1"})
    since = pieces.version
    pieces.replace({"a": "1", "b": "2"})
    assert pieces.since(since)[0] == {"b": "2"}
    assert pieces.since(pieces.version) == ({}, pieces.version)


def test_a_version_of_another_process_gets_everything() -> None:
    pieces = Pieces()
    pieces.replace({"a": "1"})
    for version in ("", "none", f"{Pieces().version[:-1]}99", "0.x", pieces.version[:-1]):
        assert pieces.since(version)[0] == {"a": "1"}


def test_one_message_is_small_and_the_rest_follows() -> None:
    pieces = Pieces()
    state = {f"device-{n}": f"<tr>{'x' * 600}{n}</tr>" for n in range(1000)}
    pieces.replace(state)
    page: dict[str, str] = {}
    since, messages = "", 0
    while True:
        changed, since = pieces.since(since)
        if not changed:
            break
        messages += 1
        assert len(json.dumps(changed)) <= MESSAGE_BYTES
        page |= changed
    assert page == state
    assert messages > 5
