"""docs/reference/commands.md: every command, from click's own description of it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import click
import reference_markdown as md

from fedclip_edge.cli.main import cli

NAME = "fedclip-edge"

# Click knows no help for an argument. By command and argument.
ARGUMENTS: Mapping[tuple[str, str], str] = {
    ("export", "SOURCE"): "A recipe, a model of open_clip, `local-dir:FOLDER`, or `tiny`.",
    ("bundle sign", "FOLDER"): "The folder of the bundle.",
    ("bundle rollback", "CONFIG"): "The device's [configuration file](configuration.md).",
    ("bundle verify", "FOLDER"): "The folder of the bundle.",
    ("classes publish", "BUNDLE"): "The folder of the bundle with the new classes.",
    ("classes publish", "CONFIG"): "The coordinator's [configuration file](configuration.md).",
    ("broker init", "FOLDER"): "The folder to make.",
    ("broker move", "FOLDER"): "The folder of the fleet.",
    ("broker replace-authority", "FOLDER"): "The folder of the fleet.",
    ("broker rotate", "FOLDER"): "The folder of the fleet.",
    ("enroll", "ID"): "The device's id. It may be left out if `--csr` names it.",
    ("renew", "ID"): "The device's id.",
    ("revoke", "ID"): "The device's id.",
    ("serve", "CONFIG"): "The coordinator's [configuration file](configuration.md).",
    ("backup", "CONFIG"): "The coordinator's [configuration file](configuration.md).",
    ("backup", "FILE"): "The tar file to write.",
    ("restore", "FILE"): "The backup.",
    ("restore", "FOLDER"): "The folder to make.",
    **{
        (name, "CONFIG"): "The coordinator's [configuration file](configuration.md)."
        for name in ("status", "watch", "devices", "runs")
    },
    (
        "page",
        "CONFIG",
    ): "The [configuration file](configuration.md) of the coordinator or of a device.",
    ("run export", "RUN"): "The id of a run; without it, the newest run.",
    ("run show", "RUN"): "The id of a run; without it, the newest run.",
    **{
        (f"run {name}", "CONFIG"): "The coordinator's [configuration file](configuration.md)."
        for name in ("start", "pause", "resume", "close", "abandon", "extend")
    },
    ("forget", "[CONFIG]"): "The coordinator's [configuration file](configuration.md); by default "
    "`fleet.toml`.",
    ("forget", "ID"): "The device's id.",
    ("agent", "CONFIG"): "The device's [configuration file](configuration.md).",
    ("doctor", "CONFIG"): "The device's [configuration file](configuration.md).",
    ("review", "CONFIG"): "The device's [configuration file](configuration.md).",
    ("predict", "PICTURES"): "Picture files, or folders with pictures.",
}

_OPTION = re.compile(r"(?<![\w`-])--[a-z][a-z-]*[a-z](?![\w`])")
_DEFAULT = re.compile(r"\s*\[default: (.*?)\]\.?$")

Command = tuple[str, click.Command, click.Context]


def commands() -> Iterator[Command]:
    """Every command that does something, with its name ("broker start") and its context."""

    def below(
        group: click.Group, above: click.Context, names: tuple[str, ...]
    ) -> Iterator[Command]:
        for name, command in group.commands.items():
            context = click.Context(command, info_name=name, parent=above)
            if isinstance(command, click.Group):
                yield from below(command, context, (*names, name))
            else:
                yield " ".join((*names, name)), command, context

    yield from below(cli, click.Context(cli, info_name=NAME), ())


def arguments() -> set[tuple[str, str]]:
    return {
        (name, argument.human_readable_name)
        for name, command, _ in commands()
        for argument in command.params
        if isinstance(argument, click.Argument)
    }


def page() -> str:
    parts = [
        "# Commands",
        md.notice("the commands themselves"),
        (
            "One program, `fedclip-edge`, has all commands. `-h` or `--help` after any of them prints "
            f"its help, and `{NAME} --version` prints the version. Every command ends with one of the "
            "[exit codes](exit-codes.md)."
        ),
        md.table(
            ("command", "purpose"),
            [
                (f"[`{name}`](#{name.replace(' ', '-')})", _prose(_paragraphs(command)[0]))
                for name, command, _ in commands()
            ],
        ),
    ]
    for name, command, context in commands():
        parts += [f"## {name}", *_section(name, command, context)]
    return md.page(parts)


def _section(name: str, command: click.Command, context: click.Context) -> Iterator[str]:
    pieces = " ".join(command.collect_usage_pieces(context))
    yield md.fenced(f"{context.command_path} {pieces}", "text")
    for paragraph in _paragraphs(command):
        if paragraph.startswith("\b\n"):
            yield md.fenced(paragraph.removeprefix("\b\n"), "text")
        else:
            yield _prose(" ".join(paragraph.split()))
    rows = [_row(name, parameter) for parameter in command.params]
    if rows:
        yield md.table(("option", "value", "default", "meaning"), rows)


def _paragraphs(command: click.Command) -> list[str]:
    return inspect.cleandoc(command.help or "").split("\n\n")


def _prose(text: str) -> str:
    """A text of click's help, with its options as code."""
    return md.prose(_OPTION.sub(r"`\g<0>`", text))


def _row(command: str, parameter: click.Parameter) -> tuple[str, ...]:
    told = parameter.to_info_dict()
    if isinstance(parameter, click.Argument):
        name = parameter.human_readable_name
        spelled = md.code(name + ("..." if parameter.nargs == -1 else ""))
        meaning, default = ARGUMENTS[command, name], ""
    else:
        spelled = ", ".join(map(md.code, (*parameter.opts, *parameter.secondary_opts)))
        # The help of an option states a default that click itself does not know.
        meaning = str(told["help"] or "")
        found = _DEFAULT.search(meaning)
        meaning, default = _DEFAULT.sub("", meaning), found[1] if found else ""
    value = "" if told.get("is_flag") else _value(parameter.type, getattr(parameter, "metavar", ""))
    if told["multiple"]:
        value += ", repeatable"
    return spelled, value, _prose(default) or _default(parameter, told), _prose(meaning)


def _value(kind: Any, metavar: str | None) -> str:
    if isinstance(kind, click.Choice):
        return md.any_of(kind.choices)
    if isinstance(kind, click.IntRange | click.FloatRange):
        name = "integer" if isinstance(kind, click.IntRange) else "number"
        assert kind.min is not None
        assert not kind.min_open
        assert not kind.max_open
        if kind.max is None:
            return f"{name}, {kind.min} or more"
        return f"{name}, {kind.min} to {kind.max}"
    if metavar:
        return md.code(metavar)
    if isinstance(kind, click.Path):
        only = {(True, False): "file", (False, True): "folder"}
        return only.get((kind.file_okay, kind.dir_okay), "path")
    return {"text": "text", "integer": "integer", "float": "number"}[kind.name]


def _default(parameter: click.Parameter, told: Mapping[str, Any]) -> str:
    shown, value = getattr(parameter, "show_default", None), told["default"]
    if parameter.required:
        return "required"
    if isinstance(shown, str):
        return _prose(shown)
    if told.get("is_flag"):
        return "on" if value else "off"
    return "" if value in (None, "", ()) else md.code(str(value))
