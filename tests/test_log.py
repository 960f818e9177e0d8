"""One event, one line, whatever a peer or a file name puts into it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedclip_edge import log

FIELD = re.compile(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^ "=]*)')
# Every code point, the lone surrogates of undecodable file names among them.
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
KEYS = st.sampled_from(["device", "name", "stream", "reason", "round"])


@pytest.fixture(autouse=True)
def _plain() -> Iterator[None]:
    yield
    log.use_json(enabled=False)


def line(name: str, /, **fields: object) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    log.write(stream, name, fields)
    stream.seek(0)
    return stream.read()


def test_reads_as_event_and_fields() -> None:
    written = line("joined", device="cam-01", domain="", note="a b", accuracy=0.123456, round=3)
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d joined device=cam-01 domain="" note="a b" accuracy=0\.1235 round=3\n',
        written,
    )


def test_none_is_left_out() -> None:
    assert line("report", bytes_up=None, round=0).endswith("report round=0\n")


def test_letters_of_every_language_stay_readable() -> None:
    assert line("joined", domain="Küche").endswith("domain=Küche\n")
    assert line("joined", domain="Küche 2").endswith('domain="Küche 2"\n')


@settings(max_examples=100)
@given(st.dictionaries(KEYS, ANY_TEXT, max_size=3))
def test_an_event_is_one_line_that_can_be_taken_apart(fields: dict[str, str]) -> None:
    written = line("event", **fields)
    assert written.endswith("\n")
    assert len(written.splitlines()) == 1
    _clock, name, *rest = written[:-1].split(" ", 2)
    assert name == "event"
    found = {
        key: json.loads(text) if text.startswith('"') else text
        for key, text in FIELD.findall(" ".join(rest))
    }
    assert found == fields


@settings(max_examples=50)
@given(st.dictionaries(KEYS, ANY_TEXT | st.integers() | st.booleans(), max_size=3))
def test_for_machines_an_event_is_one_json_object(fields: dict[str, object]) -> None:
    log.use_json(enabled=True)
    written = line("event", **fields)
    assert len(written.splitlines()) == 1
    assert json.loads(written) == {"event": "event", **fields}


def test_for_machines_a_path_is_its_text() -> None:
    log.use_json(enabled=True)
    assert json.loads(line("picture_skipped", picture=Path("a/b.png")))["picture"] == "a/b.png"


def test_events_go_to_standard_output_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    log.event("connected", name="cam-01")  # a field may have any name
    out, err = capsys.readouterr()
    assert out.endswith("connected name=cam-01\n")
    assert err == ""


def test_a_narrow_terminal_stops_nothing() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    log.write(stream, "joined", {"domain": "Küche", "picture": Path("caf\udce9.png")})
    assert raw.getvalue().endswith(b'domain=K\\xfcche picture="caf\\udce9.png"\n')


def test_a_process_can_be_muted(capsys: pytest.CaptureFixture[str]) -> None:
    log.event("joined", device="cam-01")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "_format", {"json": False, "muted": False})
        log.mute()
        log.event("left", device="cam-01")
    assert capsys.readouterr().out.endswith("joined device=cam-01\n")
