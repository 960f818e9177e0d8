"""The tables of the fleet: complete, within the terminal, and coloured only on a terminal."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.cells import cell_len

from fedclip_edge.cli import device_tables, status_text


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def row(name: str = "cam-01", state: str = "online", **changes: Any) -> dict[str, Any]:
    """A device as `coordinator/snapshot.py` describes it."""
    return {
        "id": name,
        "state": state,
        "detail": "",
        "part": None,
        "seen_s": 3.0,
        "domain": "roof",
        "roles": ["train", "evaluate"],
        "pictures": {"train": 600, "validation": 200, "test": 200, "withheld": 3},
        "provider": "tensorrt",
        "version": "0.3.0",
        "encoder_id": "e" * 64,
        "classes_digest": "c" * 64,
        "certificate_ends": "2028-11-28",
        "reported_round": 4,
        "accuracy": {"zero_shot": 0.812, "federated": 0.864},
        "contributions": 4,
        "norm": 0.281,
        "updates_bytes": 66_000,
        "bytes_up": 123_456,
        "bytes_down": 7_654_321,
        "encode_s": 12.5,
        "train_s": 3.25,
        "wait_s": 1234.5,
        "skipped": 0,
        "refused_messages": 0,
        **changes,
    }


def status(**changes: Any) -> dict[str, Any]:
    return {
        "fleet": "lab",
        "run": {
            "id": "run-12345678",
            "method": "auto",
            "state": "open",
            "paused": False,
            "running_s": 90.0,
            "phase": "open",
            "kind": "round",
            "round": 5,
            "rounds": 12,
            "rounds_closed": 4,
            "attempt": 1,
            "contributions": 37,
            "cohort": 49,
            "quorum": 37,
            "deadline_in_s": 512.3,
            "updates_bytes": 12_300_000,
            "model_bytes": 34_500,
            **changes.pop("run", {}),
        },
        "waiting": {
            "needs": 37,
            "has": 37,
            "missing": [{"id": f"cam-{n:02}", "why": "last seen 80 s ago"} for n in range(10)],
            "more": 2,
        },
        "counts": {
            "enrolled": 52,
            "known": 52,
            "online": 40,
            "late": 9,
            "offline": 2,
            "revoked": 1,
        },
        "accuracy": {"devices": 47, "zero_shot": 0.812, "federated": 0.864},
        "certificates": {
            "coordinator": "2036-11-27",
            "first_device": {"id": "cam-07", "ends": "2026-12-20"},
        },
        "next": None,
        "traffic": {"up": 1_234_567_890, "down": 87_654},
        "refused_messages": 3,
        "devices": [row("cam-07", "refused", detail="its bundle has other classes " * 6)],
        "more": 4,
        **changes,
    }


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal with 80 columns."""
    for module in (device_tables, status_text):
        monkeypatch.setattr(module, "width_of", lambda stream: 80 if stream.isatty() else None)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def plain(text: str) -> str:
    """The text without its colours."""
    from rich.text import Text

    return Text.from_ansi(text).plain


def test_a_status_answers_the_operators_questions() -> None:
    text = status_text.status_text(status(), io.StringIO())
    assert "the coordinator has sent 1,235 MB and received 87.7 kB since it started" in text
    without = status_text.status_text(status(traffic=None), io.StringIO())
    assert "since it started" not in without
    for words in (
        "fleet lab: run-12345678, method auto, 4 of 12 rounds closed",
        "round 5 of 12 open; 37 of 49 contributions, needs 37; 9 min to the deadline",
        "cam-00 (last seen 80 s ago)",
        "and 2 more; 37 of 37 contributions that it needs are in",
        "52 enrolled: 1 revoked, 40 online, 9 late, 2 offline",
        "zero-shot 81.2 %, shared 86.4 % (mean of 47 devices)",
        "12 MB of updates in this run; the model has 34.5 kB",
        "of the devices, that of cam-07 ends first: 2026-12-20",
        "3 messages since the coordinator started",
        "refused: its bundle has other classes",
        "and 4 more; --all shows every device",
    ):
        assert words in " ".join(text.split()), words


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"state": "held"}, "now not started"),
        ({"state": "done", "phase": "done"}, "done after 90 s; devices get the last model"),
        ({"phase": "gathering", "paused": True}, "round 5 of 12; paused: no further round opens"),
        ({"phase": "gathering", "attempt": 3}, "round 5 of 12 waits for devices, attempt 3"),
        ({"phase": "final"}, "the devices evaluate the last model"),
        ({"kind": "vote", "round": 12}, "vote 12 of 12 open"),
    ],
)
def test_every_phase_has_words(run: dict[str, Any], words: str) -> None:
    text = status_text.status_text(status(run=run), io.StringIO())
    assert words in " ".join(text.split())


def test_between_two_runs_it_says_what_starts_the_next_one() -> None:
    due = {"at": "2026-11-30T02:30:00+01:00", "new_pictures": 50, "has_new_pictures": 12}
    for following, words in (
        (
            due,
            "at 2026-11-30T02:30:00+01:00, or when the devices have 50 new pictures (12 so far), or",
        ),
        ({"at": None, "new_pictures": None}, "next run with `fedclip-edge run start`"),
    ):
        text = status_text.status_text(status(next=following), io.StringIO())
        assert words in " ".join(text.split())


def test_without_a_terminal_there_are_no_colours() -> None:
    rows = [row("cam-01"), row("cam-02", "offline")]
    assert "\x1b" not in device_tables.device_table(rows, io.StringIO())


def test_on_a_terminal_a_bad_state_has_a_colour(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row("cam-01", "refused"), row("cam-02", "late"), row("cam-03")]
    lines = device_tables.device_table(rows, terminal).splitlines()[2:5]
    assert ["\x1b[31m" in line for line in lines] == [True, False, False]
    assert ["\x1b[33m" in line for line in lines] == [False, True, False]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in device_tables.device_table(rows, terminal)


@pytest.mark.parametrize("count", [1, 50, 1000])
def test_no_line_is_wider_than_the_terminal_and_no_device_is_lost(
    terminal: Terminal, count: int
) -> None:
    names = [f"camera-hall-{n:04}" for n in range(count)]
    rows = [row(name, "late", detail="it missed the last deadline") for name in names]
    text = plain(device_tables.device_table(rows, terminal))
    assert max(map(cell_len, text.splitlines())) <= 80
    assert all(name in text for name in names)
    whole = plain(status_text.status_text(status(devices=rows), terminal))
    assert max(map(cell_len, whole.splitlines())) <= 80


def test_figures_are_to_the_right_and_unknown_ones_are_a_dash() -> None:
    unknown = row("cam-02", "not seen", seen_s=None, pictures=None, provider=None, accuracy={})
    unknown |= dict.fromkeys(
        ("version", "norm", "bytes_up", "bytes_down", "encode_s", "train_s", "wait_s")
    )
    text = device_tables.device_table([row("cam-01"), unknown], io.StringIO())
    head, _, known, none = text.splitlines()
    for heading, figure in (
        ("shared", "86.4"),
        ("gain", "+5.2"),
        ("up", "123.5"),
        ("norm", "0.281"),
    ):
        assert known.index(figure) + len(figure) == head.index(heading) + len(heading), heading
    assert none.split() == ["cam-02", "not", "seen", *["-"] * 6, "4", *["-"] * 7, "2028-11-28"]


def test_the_own_model_has_a_column_where_there_is_one() -> None:
    rows = [row(accuracy={"zero_shot": 0.5, "federated": 0.6, "personal": 0.7})]
    head, _, cells = device_tables.device_table(rows, io.StringIO()).splitlines()
    assert "own" in head.split()
    assert "+20.0" in cells.split(), "the gain is that of the model that the device uses"


def test_one_device_is_shown_with_its_classes() -> None:
    one = row(
        part="training",
        classes_digest="d" * 64,
        pictures_by_class={"train": [500, 100], "validation": [200, 0], "test": [150, 50]},
        accuracy_by_class={"zero_shot": [0.8, 0.9], "federated": [0.9, None]},
    )
    found = {
        "version": "0.4.0",
        "classes": ["ant", "bee"],
        "bundle": {"encoder_id": "e" * 64, "classes_digest": "c" * 64},
    }
    text = device_tables.device_text(found, one, io.StringIO())
    assert "not those of the run: classes" in text
    assert re.search(r"in the round +training", text)
    assert "0.3.0; the coordinator has 0.4.0" in text
    assert "3 pictures of classes with few pictures" in text
    ant, bee = (line.split() for line in text.splitlines()[-2:])
    assert ant == ["ant", "1", "500", "200", "150", "80.0", "90.0"]
    assert bee == ["bee", "1", "100", "0", "50", "90.0", "-"]


def test_classes_are_counted_over_the_devices() -> None:
    some = {"train": [5, 0], "validation": [0, 0], "test": [30, 0]}
    more = {"train": [7, 6], "validation": [1, 1], "test": [10, 5]}
    rows = [
        row("a", pictures_by_class=some, accuracy_by_class={"federated": [0.5, None]}),
        row("b", pictures_by_class=more, accuracy_by_class={"federated": [0.9, 1.0]}),
        row("c", pictures_by_class={}, accuracy_by_class={}),
    ]
    lines = device_tables.class_table(rows, ["ant", "bee"], io.StringIO()).splitlines()
    assert lines[2].split() == ["ant", "2", "12", "1", "40", "-", "60.0"]
    assert lines[3].split() == ["bee", "1", "6", "1", "5", "-", "100.0"]
    assert device_tables.class_table(rows[2:], ["ant", "bee"], io.StringIO()) == ""


@pytest.mark.parametrize("hostile", ["\x1b[2J", "a\nb", "\u202e"])
def test_a_name_from_outside_cannot_change_the_terminal(terminal: Terminal, hostile: str) -> None:
    rows = [row(detail=f"refused {hostile}", state="refused", provider=hostile)]
    text = device_tables.device_table(rows, terminal)
    assert hostile not in text
