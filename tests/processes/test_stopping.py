"""The end of a service by signals, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import system

# A service: what it does until it is stopped, and its goodbye.
SERVICE = """\
import hashlib, threading, time
from fedclip_edge.processes.stopping import stopping_on_signals
with stopping_on_signals(is_service={is_service}):
    try:
        {work}
    finally:
        print("goodbye", flush=True)
        {goodbye}
        print("said", flush=True)
"""
WAITS = "print('ready', flush=True); time.sleep(600)"
# Minutes in a library that releases the interpreter's lock, as an encoder's long call does. The
# signal comes in the middle of it.
CALLS_A_LIBRARY = (
    "threading.Timer(1, print, ['ready'], {'flush': True}).start(); "
    "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
)


# As a compiled module does that clears every exception that it meets: the service would go on.
LOSES_THE_EXCEPTION = """\
try:
            print('ready', flush=True); time.sleep(600)
        except SystemExit:
            pass
        time.sleep(600)
"""


def stopped(
    *signals: signal.Signals | None,
    is_service: bool = True,
    work: str = WAITS,
    goodbye: str = "pass",
) -> tuple[int, list[str]]:
    """Exit code and output of a process that gets one of these signals after each line."""
    code = SERVICE.format(is_service=is_service, work=work, goodbye=goodbye)
    command = [sys.executable, "-c", code]
    with system.running(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        for number in signals:
            lines.append(process.stdout.readline().strip())
            if number is not None:
                process.send_signal(number)
        lines += process.stdout.read().splitlines()
        return process.wait(system.DEADLINE_S), lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_says_goodbye_and_why_it_stopped(number: signal.Signals) -> None:
    code, lines = stopped(number)
    assert code == 0
    assert lines[:3] == ["ready", "goodbye", "said"]
    assert lines[3].endswith(f" stopped signal={number.name}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_with_unfinished_work_ends_with_the_signals_code(number: signal.Signals) -> None:
    code, lines = stopped(number, is_service=False)
    assert (code, lines[:3]) == (128 + number, ["ready", "goodbye", "said"])


@pytest.mark.parametrize("goodbye", [WAITS, CALLS_A_LIBRARY])
def test_a_second_signal_ends_it_at_once(goodbye: str) -> None:
    """If it ended only when the time for the goodbye is over, the code would be 0."""
    code, lines = stopped(signal.SIGTERM, None, signal.SIGINT, goodbye=goodbye)
    assert (code, lines) == (128 + signal.SIGINT, ["ready", "goodbye", "ready"])


def test_a_long_call_into_a_library_does_not_hold_it_up() -> None:
    code, lines = stopped(signal.SIGTERM, work=CALLS_A_LIBRARY)
    assert (code, lines[0], len(lines)) == (0, "ready", 2), lines  # without a goodbye
    assert lines[1].endswith(" stopped signal=SIGTERM")


def test_a_library_that_discards_the_exception_does_not_hold_it_up() -> None:
    code, lines = stopped(signal.SIGTERM, work=LOSES_THE_EXCEPTION)
    assert (code, lines[:3]) == (0, ["ready", "goodbye", "said"])
    assert lines[3].endswith(" stopped signal=SIGTERM")
