"""A progress bar on a terminal, nothing elsewhere: logs say each step there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A callback of (done, total), which shows nothing where standard error is no terminal.

    The bar begins at each total that is new and ends when it is reached.
    """
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return

    def show(done: int, total: int) -> None:
        width = 30
        filled = width * done // max(1, total)
        bar = "#" * filled + "-" * (width - filled)
        click.echo(f"\r{label} [{bar}] {done}/{total}", nl=done == total, err=True)

    yield show
