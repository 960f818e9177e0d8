"""A group of commands whose help shows the first sentence of each command whole."""

from __future__ import annotations

import inspect

import click


class Group(click.Group):
    """A click group; click itself cuts the sentences in the list of commands to one line."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, each with its first sentence on as many lines as it needs."""
        rows = [
            (name, _sentence(command))
            for name in self.list_commands(ctx)
            if (command := self.get_command(ctx, name)) is not None and not command.hidden
        ]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def _sentence(command: click.Command) -> str:
    paragraph = inspect.cleandoc(command.short_help or command.help or "").partition("\n\n")[0]
    return " ".join(paragraph.split())
