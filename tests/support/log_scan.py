"""Every log event of the package, found in its source.

An event is a call of `log.event` with a literal name. Two calls have their name from a variable:
one in transport/inbox.py, where the calls of `Inbox.note` have the literal, and one in
coordinator/trainer.py, which writes events of an agent. Any other use of the log is an error here,
so that no event is missed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fedclip_edge

PACKAGE = Path(fedclip_edge.__file__).parent
_INBOX = "transport/inbox.py"  # its `note` queues an event; `next_event` writes it
_TRAINER = "coordinator/trainer.py"  # it copies the events of an agent


class UnknownUseError(Exception):
    """The log is used in a way that this scan does not know."""


@dataclass(frozen=True)
class Site:
    """A place that writes an event; a field "**x" stands for the items of a mapping."""

    module: str  # "agent/session.py"
    line: int
    event: str
    fields: tuple[str, ...]


def sites(package: Path = PACKAGE) -> list[Site]:
    """All places, in the order of module and line; raises UnknownUseError."""
    found = list[Site]()
    for path in sorted(package.rglob("*.py")):
        module = str(path.relative_to(package))
        if module != "log.py":
            found += _in_module(module, ast.parse(path.read_text(encoding="utf-8")))
    return found


def _in_module(module: str, tree: ast.Module) -> Iterator[Site]:
    if _imports_log(module, tree):
        called = set[ast.AST]()
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _is_writer(node.func, "event"):
                called.add(node.func)
                if module == _INBOX and ast.unparse(node.args[0]) == "event.event":
                    continue  # the events of `note`
                if module == _TRAINER and ast.unparse(node.args[0]) == "str(fields['event'])":
                    continue
                yield _site(
                    module, node, [k.arg or "**" + ast.unparse(k.value) for k in node.keywords]
                )
        for node in ast.walk(tree):
            if any(_is_writer(node, name) for name in ("event", "write")) and node not in called:
                where = f"{module}:{getattr(node, 'lineno', 0)}"
                raise UnknownUseError(f"{where}: not a call of log.event: {ast.unparse(node)}")
    if module.startswith("transport/"):
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "note"
            ):
                yield _site(module, node, ["reason", "topic"][: len(node.args) - 1])


def _site(module: str, node: ast.Call, fields: list[str]) -> Site:
    name = node.args[0] if node.args else None
    if not isinstance(name, ast.Constant) or not isinstance(name.value, str):
        raise UnknownUseError(f"{module}:{node.lineno}: the event's name is not a literal")
    return Site(module, node.lineno, name.value, tuple(fields))


def _imports_log(module: str, tree: ast.Module) -> bool:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "fedclip_edge":
            names |= {alias.asname or alias.name for alias in node.names if alias.name == "log"}
        if isinstance(node, ast.ImportFrom) and node.module == "fedclip_edge.log":
            names.add("a part of it")
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names if a.name == "fedclip_edge.log"}
    if names - {"log"}:
        raise UnknownUseError(f"{module}: the log is imported as {names}, not as `log`")
    return bool(names)


def _is_writer(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node) == f"log.{name}"
