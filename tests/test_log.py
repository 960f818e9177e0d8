"""The log: one line per event, with any contents of peers' messages and file names."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from fedclip_edge import log

FIELD = re.compile(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^ "=]*)')
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d"
# All code points, including the lone surrogates of undecodable file names.
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
        TIME + r' joined device=cam-01 domain="" note="a b" accuracy=0\.1235 round=3\n',
        written,
    )


def test_an_observer_gets_each_event_as_it_is_until_the_block_ends() -> None:
    seen: list[tuple[str, dict[str, object]]] = []
    with log.observed(lambda name, fields: seen.append((name, dict(fields)))):
        log.event("joined", device="cam-01", norm=0.123456789, domain=None)
    log.event("left", device="cam-01")
    assert seen == [("joined", {"device": "cam-01", "norm": 0.123456789})]


@pytest.fixture
def kathmandu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A time zone whose offset is not a whole number of hours."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX-5:45")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize("as_json", [False, True])
def test_the_time_is_local_with_date_milliseconds_and_offset(
    as_json: bool, kathmandu: None
) -> None:
    log.use_json(as_json)
    before = datetime.now(timezone.utc)
    written = line("joined", device="cam-01")
    after = datetime.now(timezone.utc)
    if as_json:
        fields = json.loads(written)
        assert next(iter(fields)) == "time"
        text = fields["time"]
    else:
        text = written.split(" ", 1)[0]
    assert re.fullmatch(TIME, text)
    assert text.endswith("+05:45")
    shortest = timedelta(milliseconds=1)
    assert before - shortest <= datetime.fromisoformat(text) <= after


def test_for_machines_no_field_takes_the_place_of_time_or_event() -> None:
    log.use_json(enabled=True)
    fields = json.loads(line("joined", time="never", event="none"))
    assert re.fullmatch(TIME, fields["time"])
    assert fields["event"] == "joined"


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
    found = json.loads(written)
    assert re.fullmatch(TIME, found.pop("time"))
    assert found == {"event": "event", **fields}


def test_for_machines_a_path_is_its_text() -> None:
    log.use_json(enabled=True)
    assert json.loads(line("picture_skipped", picture=Path("a/b.png")))["picture"] == "a/b.png"


def test_events_go_to_standard_output_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    log.event("connected", name="cam-01")  # a field may have the name "name"
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
        patch.setattr(log._LOGGER, "disabled", False)
        log.mute()
        log.event("left", device="cam-01")
    assert capsys.readouterr().out.endswith("joined device=cam-01\n")


def test_events_go_to_whatever_is_standard_output_at_that_moment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @click.command()
    def command() -> None:
        log.event("inside")

    log.event("before")
    inside = CliRunner().invoke(command, [])
    log.event("after")
    assert inside.stdout.endswith(" inside\n")
    names = [each.split()[1] for each in capsys.readouterr().out.splitlines()]
    assert names == ["before", "after"]


def test_nothing_reaches_the_root_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(logging.root, "handlers", [logging.StreamHandler(written)])
    log.event("joined", device="cam-01")
    assert written.getvalue() == ""


def test_lines_of_several_threads_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    def say(number: int) -> None:
        for _ in range(200):
            log.event("said", thread=number, text="x" * 200)

    threads = [threading.Thread(target=say, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 800
    pattern = re.compile(TIME + " said thread=[0-3] text=x{200}")
    assert all(pattern.fullmatch(each) for each in lines)


def test_a_reader_that_has_gone_ends_the_command_without_a_word() -> None:
    """A closed pipe ends the command silently, as with other click commands: `serve | head`."""
    code = (
        "import click\nfrom fedclip_edge import log\n"
        "@click.command()\ndef command():\n    while True: log.event('x', text='y' * 1000)\n"
        "command.main([], standalone_mode=False)"
    )
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        os.close(theirs)
    assert (done.returncode, done.stderr) == (1, "")


def test_an_error_of_the_stream_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stdout", Broken())
    with pytest.raises(OSError, match="Input/output"):
        log.event("joined")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device")
def test_a_full_disk_loses_lines_and_ends_nothing() -> None:
    program = (
        "import os, sys; from fedclip_edge import log\n"
        "for number in range(1000): log.event('joined', number=number)\n"
        "os.write(2, b'all of them'); os._exit(0)"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"all of them")
