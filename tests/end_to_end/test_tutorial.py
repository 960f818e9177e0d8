"""The commands of docs/tutorial.md, run as on the page: every `sh` block in its terminal."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from brokers import MOSQUITTO, free_port, wait_until_served
from checkout import ROOT
from system import DEADLINE_S, running

PAGE = ROOT / "docs" / "tutorial.md"
READY = Path(sys.prefix) / ".ready"
BROKER = "Terminal 1"
MAIN = ""  # blocks without a title go to the terminal of step 1

pytestmark = [
    pytest.mark.one_python,
    pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed"),
    pytest.mark.skipif(
        not READY.exists() or READY.stat().st_mtime < (ROOT / "pyproject.toml").stat().st_mtime,
        reason="this Python's environment was not made by `make setup`, or is older than the project",
    ),
]


@dataclass(frozen=True)
class Block:
    """A fenced block of the page: commands of one terminal, or the output that the page shows."""

    language: str
    terminal: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    fence = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
    for language, title, text in fence.findall(page):
        yield Block(language, title or MAIN, text)


class Terminal:
    """A bash that keeps its folder and variables between blocks, as a person's terminal does."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.output = ""
        self.process = process

    def run(self, commands: str) -> None:
        """Runs the commands to their end; fails with their output where one of them fails."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{commands}\necho; echo the block has ended\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line == "the block has ended\n":
                return
            self.output += line
        pytest.fail(f"this block failed:\n{commands}\nIts terminal shows:\n{self.output}")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a terminal's shell and its program."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def shown(page: str, *, words: re.Pattern[str]) -> set[str]:
    """The parts of the page's output blocks that do not differ from run to run."""
    text = "".join(block.text for block in blocks(page) if block.language == "text")
    return set(words.findall(text))


def test_the_tutorials_commands_lead_from_nothing_to_a_classified_picture(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    port = free_port()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    inherited = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHONPATH"}
    environment = {key: value for key, value in os.environ.items() if key not in inherited}
    environment["PYTHONPATH"] = str(ROOT)
    folder, output = tmp_path / "tutorial", tmp_path / "output"
    output.mkdir()
    with ExitStack() as stack:
        main = Terminal(
            stack.enter_context(
                running(
                    ["bash", "-e"],
                    timeout_s=4 * DEADLINE_S,
                    cwd=tmp_path,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        )
        others: dict[str, subprocess.Popen[bytes]] = {}
        for block in blocks(page):
            commands = block.text.replace("8883", str(port))  # a port that is free here
            if block.language != "sh":
                continue
            if block.terminal == MAIN:
                for name, process in others.items():
                    if name != BROKER:  # a person waits for the prompts here
                        code = process.wait(DEADLINE_S)
                        assert code == 0, f"{name}: {(output / name).read_text()}"
                main.run(commands)
                continue
            if block.terminal == BROKER and os.geteuid() == 0:
                with (folder / "site/broker/mosquitto.conf").open("a") as settings:
                    settings.write("user root\n")  # its own user may not read the test's folder
            with (output / block.terminal).open("wb") as log:
                process = stack.enter_context(
                    running(
                        ["bash", "-ec", f"exec 2>&1\n{commands}"],
                        timeout_s=4 * DEADLINE_S,
                        cwd=folder,
                        env=environment,
                        stdout=log,
                        start_new_session=True,
                    )
                )
            others[block.terminal] = process
            stack.callback(end_group, process)
            if block.terminal == BROKER:
                assert wait_until_served(process, port), (output / BROKER).read_text()
        end_group(others[BROKER])

        serve = (output / "Terminal 2").read_text()
        for event in shown(page, words=re.compile(r"^(\w+) (?=\w+=)", re.MULTILINE)):
            assert re.search(rf"^\S+ {event} ", serve, re.MULTILINE), f"no line {event}: {serve}"
        for line in shown(page, words=re.compile(r"^(?:Wrote|picture|  \w+ ).*$", re.MULTILINE)):
            assert line in main.output
        row = next(line for line in main.output.splitlines() if "cartoon/tree/0014.png" in line)
        assert re.search(r"tree +\d+\.\d % +boat +\d+\.\d %$", row), row
        (found,) = re.findall(r"the 400 in .*adapted (\S+) %, zero-shot (\S+) %", main.output)
        assert float(found[0]) > float(found[1])
        assert abs(float(found[1]) - 68) <= 1  # about what the page says
        assert abs(float(found[0]) - 73) <= 1
