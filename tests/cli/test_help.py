"""The help of every command is shown whole, on wide and on narrow terminals."""

from __future__ import annotations

import inspect
import os
import subprocess
from collections.abc import Iterator

import click
import pytest
import system
from click.testing import CliRunner

from fedclip_edge.cli.main import cli

NAME = "fedclip-edge"


def commands(group: click.Command = cli, names: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and group, the program itself first."""
    yield names
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*names, name))


def command_of(names: tuple[str, ...]) -> click.Command:
    found: click.Command = cli
    for name in names:
        assert isinstance(found, click.Group)
        found = found.commands[name]
    return found


def sentence(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "").partition("\n\n")[0]


def squeezed(text: str) -> str:
    """`text` without blanks: a line may break at a blank or after a hyphen."""
    return "".join(text.replace("\b", "").split())


def test_every_command_is_looked_at() -> None:
    assert {(), ("broker",), ("broker", "start"), ("bundle", "verify"), ("export",)} < set(
        commands()
    )


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize("names", list(commands()), ids=" ".join)
def test_no_line_is_cut(names: tuple[str, ...], width: int) -> None:
    # On a terminal, click leaves two columns free.
    words = [*names, "--help"]
    done = CliRunner().invoke(cli, words, prog_name=NAME, terminal_width=width - 2)
    assert done.exit_code == 0
    long = [line for line in done.output.splitlines() if len(line) > width]
    assert not long
    command, shown = command_of(names), squeezed(done.output)
    assert squeezed(command.help or "") in shown
    for option in command.params:
        assert squeezed(getattr(option, "help", None) or "") in shown
    for name, below in getattr(command, "commands", {}).items():
        assert squeezed(name + sentence(below)) in shown
    # An ellipsis means "several" after a word in capitals, and nothing else.
    for word in done.output.split():
        assert "..." not in word or word.rstrip(".]").strip("[,").isupper() or "VALUE" in word


@pytest.mark.parametrize("names", [(), ("broker",), ("bundle",)], ids=" ".join)
def test_the_program_itself_lists_whole_sentences(names: tuple[str, ...]) -> None:
    done = subprocess.run(
        system.command(*names, "-h"),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "60"},
    )
    for below in getattr(command_of(names), "commands", {}).values():
        assert " ".join(sentence(below).split()) in " ".join(done.stdout.split())
