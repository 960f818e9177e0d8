"""Progress: a bar on a terminal; elsewhere a line every 30 s, and only for long work."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import system
from click.testing import CliRunner
from terminal import shown_on_terminal

from fedclip_edge import log
from fedclip_edge.agent import process as device
from fedclip_edge.cli import progress
from fedclip_edge.cli.agent import agent
from fedclip_edge.cli.demo import _Live
from fedclip_edge.cli.progress import Bar, progress_bar
from fedclip_edge.cli.simulate_progress import Show
from fedclip_edge.config import agent as agent_settings
from fedclip_edge.demo.federation import _device_events, _Watched
from fedclip_edge.learning.evaluation import FleetEvaluation
from fedclip_edge.processes import threads
from fedclip_edge.records import Plan
from fedclip_edge.simulating.comparison import Step
from fedclip_edge.simulating.results import Outcome, Run
from fedclip_edge.simulating.settings import Setting

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d)(?:;\d+)*m")


@dataclass
class Clock:
    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


Starts = AbstractContextManager[progress.Told]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal with 80 columns and colours."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


@pytest.fixture
def bar_on(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Starts]:
    """Start a bar for "encoding" that writes to `terminal` as standard error.

    The replacement happens in the test: pytest replaces standard error after the fixtures have run.
    """

    def start() -> Starts:
        monkeypatch.setattr(sys, "stderr", terminal)
        return progress_bar("encoding")

    return start


def test_where_there_is_no_terminal_a_bar_writes_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with progress_bar("encoding") as told:
        for done in range(1, 101):
            told(done, 100)
    bar = Bar(sys.stdout)
    bar.show(1, 2, "x")
    bar.end()
    assert not bar.is_drawn
    assert capfd.readouterr() == ("", "")


def test_a_dumb_terminal_is_none(
    terminal: Terminal, bar_on: Callable[[], Starts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with bar_on() as told:
        told(1, 2)
    assert terminal.getvalue() == ""


def test_elsewhere_long_work_says_a_line_every_30_s(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("encoding") as told:
        for done in range(100):
            told(done, 500)
            clock.now += 1
    assert capsys.readouterr().err == (
        "encoding: 30/500, 8 min left\nencoding: 60/500, 7 min left\nencoding: 90/500, 7 min left\n"
    )


def test_the_rate_leaves_out_what_was_done_before(clock: Clock) -> None:
    meter = progress.Meter()
    assert meter.measure(900, 1000) is None  # they were in a cache
    assert meter.measure(900, 1000) is None
    clock.now += 10
    assert meter.measure(920, 1000) == progress.Rate(2.0, 40.0)
    assert meter.measure(5, 100) is None  # other work, with the same bar
    clock.now += 10
    assert meter.measure(15, 100) == progress.Rate(1.0, 85.0)


@pytest.mark.parametrize("as_json", [False, True])
def test_an_agent_that_encodes_says_so_every_30_s(
    as_json: bool, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_config: object, *, once: bool, progress: progress.Told, **_: object) -> None:
        for done in range(0, 640, 8):
            progress(done, 640)
            clock.now += 0.5
        log.event("features_ready")

    monkeypatch.setattr(device, "run", run)
    monkeypatch.setattr(agent_settings, "load_agent", lambda _: SimpleNamespace(page=None))
    monkeypatch.setattr(threads, "exit_on_thread_failure", lambda: None)
    try:
        done = CliRunner().invoke(agent, ["x.toml", *(["--json"] if as_json else [])])
    finally:
        log.use_json(enabled=False)
    assert done.exit_code == 0, done.output
    first, last = done.stdout.splitlines()
    if as_json:
        fields = json.loads(first)
        del fields["time"]
        said = {"event": "encoding_pictures", "done": 480, "total": 640, "per_s": 16, "left_s": 10}
        assert fields == said
    else:
        assert first.endswith(" encoding_pictures done=480 total=640 per_s=16 left_s=10")
    assert "features_ready" in last


def test_a_simulation_in_a_pipe_says_each_run_and_long_ones_every_30_s(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(Setting("fedclip", Plan("fedclip", rounds=50)), 0, "domain", "roof", ("",))
    shares = FleetEvaluation(10, 0.5, 0.5, 0.5, 0.5, 0.1)
    outcome = Outcome(run, "", (), shares, shares, None, None, None, None, 2, 1, 1)
    show = Show(rounds=100)
    for number in range(1, 51):
        clock.now += 1
        show.step(Step(run, number, "", (outcome,) if number == 50 else ()))
    show.end()
    what = "fedclip, seed 0, roof held out"
    told = (
        f"{what}: round 30 (30 of 100 in all runs)\n"
        f"{what}: 50 rounds, accuracy 50.0 %, zero-shot 50.0 %\n"
    )
    assert capsys.readouterr() == ("", told)


def test_a_demo_reads_on_in_a_devices_log(tmp_path: Path) -> None:
    log_file = tmp_path / "photo.log"
    with system.running([sys.executable, "-c", ""], text=True) as child:
        child.wait()
    read: dict[str, int]
    watched, read = _Watched("photo", child, log_file), {}
    log_file.write_text(
        'a warning\n{"event": "encoding_pictures", "done": 8, "total": 9}\n{"event": "enco'
    )
    assert list(_device_events(watched, read)) == [
        {"event": "encoding_pictures", "done": 8, "total": 9, "device": "photo"}
    ]
    with log_file.open("a") as file:
        file.write('ding_pictures", "done": 9, "total": 9}\n{"event": "connected"}\n')
    assert [event["done"] for event in _device_events(watched, read)] == [9]
    assert list(_device_events(watched, read)) == []


def test_a_demo_says_what_its_devices_leave_out(capsys: pytest.CaptureFixture[str]) -> None:
    live = _Live("cartoon", 30)
    live.happened({"event": "files_ignored", "count": 3, "kinds": ".heic .txt", "device": "photo"})
    live.happened({"event": "not_used", "path": "p/cra", "reason": "no class", "device": "photo"})
    broken = {"picture": "p/\x1b.png", "reason": "the file is empty", "more": 7}
    live.happened({"event": "picture_skipped", **broken, "trainer": "cartoon"})
    assert capsys.readouterr().out.splitlines() == [
        "photo ignores files that are not pictures: 3 (.heic .txt)",
        "photo skips p/cra: no class",
        r"cartoon skips p/\x1b.png: the file is empty (and skips 7 more)",
    ]


CLOSED = {"event": "round_closed", "round": 1, "contributions": 4, "cohort": 4, "seconds": 0.5}


def test_a_demo_in_a_pipe_says_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    live = _Live("cartoon", 3)
    live.happened({"event": "encoding_pictures", "done": 8, "total": 100, "trainer": "cartoon"})
    live.happened({"event": "encoding_pictures", "done": 8, "total": 90, "device": "photo"})
    live.happened({"event": "joined", "device": "photo", "roles": "train"})
    live.happened(CLOSED)
    live.end()
    assert capsys.readouterr().out == (
        "cartoon encodes its pictures: 8 of 100\n"
        "photo encodes its pictures: 8 of 90\n"
        "photo joined (train)\n"
        "round 1/3: 4/4 devices in 0.500 s; held-out cartoon not tested yet\n"
    )


def test_a_demo_names_the_vote_and_its_result(capsys: pytest.CaptureFixture[str]) -> None:
    def report(round: int, accuracy: float, device: str = "cartoon") -> dict[str, object]:
        return {"event": "report", "device": device, "round": round, "federated": accuracy}

    live = _Live("cartoon", 2, ends_with_vote=True)
    for event in (CLOSED, report(1, 0.7), CLOSED | {"round": 2}, report(2, 0.75)):
        live.happened(event)
    live.happened(report(2, 0.9, "photo"))
    unvoted = _Live("cartoon", 1)
    unvoted.happened(report(1, 0.8))
    assert capsys.readouterr().out.splitlines() == [
        "round 1/1: 4/4 devices in 0.500 s; held-out cartoon not tested yet",
        "the vote: 4/4 devices in 0.500 s; held-out cartoon 70.0 % (round 1)",
        "held-out cartoon 75.0 % after the vote",
        "held-out cartoon 80.0 % after the last round",
    ]


def test_a_bar_is_drawn_and_ends_with_the_work(
    terminal: Terminal, bar_on: Callable[[], Starts]
) -> None:
    with bar_on() as told:
        told(1, 3)
        before = terminal.getvalue()
        told(3, 3)
        after = terminal.getvalue()
    assert "1/3 encoding" in _CONTROL.sub("", before)
    assert "3/3 encoding" in _CONTROL.sub("", after)
    assert before.count("\x1b[?25l") == 1, "the cursor is hidden once"
    assert terminal.getvalue() == after
    assert after.endswith("\n\x1b[?25h"), "the cursor is visible again, on a new line"


def test_a_bar_that_is_interrupted_leaves_the_terminal_in_order(
    terminal: Terminal, bar_on: Callable[[], Starts]
) -> None:
    def work() -> None:
        with bar_on() as told:
            told(1, 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert terminal.getvalue().endswith("\n\x1b[?25h")


def test_a_bar_leaves_the_other_stream_alone(
    terminal: Terminal, bar_on: Callable[[], Starts]
) -> None:
    """Standard output may be redirected to a file."""
    out = sys.stdout
    with bar_on() as told:
        told(1, 3)
        assert sys.stdout is out
        assert sys.stderr is terminal


def test_a_line_stands_above_the_bar(terminal: Terminal) -> None:
    bar = Bar(terminal)
    bar.show(1, 3, "encoding")
    bar.say("Note: [bold]it[/bold] is cold.")
    bar.end()
    shown = _CONTROL.sub("", terminal.getvalue()).splitlines()
    assert "Note: [bold]it[/bold] is cold." in shown
    assert shown[-1].endswith("1/3 encoding")


def test_no_color_is_honoured(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn() -> str:
        bar = Bar(terminal)
        bar.show(1, 3, "x")
        bar.end()
        return terminal.getvalue()

    monkeypatch.setenv("NO_COLOR", "1")
    assert not _COLOUR.search(drawn())
    monkeypatch.delenv("NO_COLOR")
    assert _COLOUR.search(drawn())


DRAW = """
import sys, time
from fedclip_edge.cli import progress
progress._REDRAW_S = 0
bar = progress.Bar(sys.stdout)
for done in range(1, 31):
    bar.show(done, 30, f"4/4 devices in 0.{done:03} s; held-out cartoon 55.6 % (round {done})")
"""


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_nothing_is_cut_off_at_any_width(width: int) -> None:
    shown = shown_on_terminal([sys.executable, "-c", DRAW], width)
    lines = [_CONTROL.sub("", line) for line in re.split(r"[\r\n]+", shown)]
    assert max(map(len, lines)) <= width
    words = " ".join(shown.split()[-20:])
    for word in ("30/30", "0.030", "cartoon", "55.6"):
        assert word in words
    if width >= 80:
        assert any(line.endswith("55.6 % (round 30)") and "30/30" in line for line in lines)
