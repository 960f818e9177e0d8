"""The running of checks that fail, hang, or find several things."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from fedclip_edge.agent.doctor.finding import Check, Finding, of_error, ok, run_all, todo
from fedclip_edge.errors import ConfigError


def test_one_check_that_fails_or_hangs_does_not_stop_the_others() -> None:
    release = threading.Event()

    def hang() -> Iterator[Finding]:
        yield ok("disk", "mounted")
        release.wait()

    def fail() -> Iterator[Finding]:
        raise OSError("boom")

    def refuse() -> Iterator[Finding]:
        raise ConfigError("the id is wrong; correct it; or not")

    try:
        found = run_all(
            [
                Check("hangs", hang, 0.3),
                Check("fails", fail, 5.0),
                Check("refuses", refuse, 5.0),
                Check("works", lambda: [ok("a", "1"), todo("b", "2", "do it")], 5.0),
            ]
        )
    finally:
        release.set()
    assert [(one.name, one.state) for one in found] == [
        ("disk", "ok"),
        ("hangs", "todo"),
        ("fails", "todo"),
        ("refuses", "todo"),
        ("a", "ok"),
        ("b", "todo"),
    ]
    assert found[1].said == "no answer within 0.3 s"
    assert found[2].said == "the check failed: OSError: boom"
    assert found[3] == Finding("refuses", "todo", "the id is wrong", "correct it; or not")


def test_an_error_without_advice_is_a_finding_too() -> None:
    assert of_error("a", ConfigError("wrong")) == Finding("a", "todo", "wrong", "")
