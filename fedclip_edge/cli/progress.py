"""Progress of long work: a bar on a terminal, a line every 30 s elsewhere. Also remarks."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TextIO

import click

from fedclip_edge.reporting.figures import duration

if TYPE_CHECKING:
    from rich.live import Live
    from rich.progress import Progress, TaskID

EVERY_S = 30.0  # the longest time without a sign of progress
_REDRAW_S = 0.1

Told = Callable[[int, int], None]  # called with (done, total)


@dataclass(frozen=True)
class Rate:
    """Speed of long work since it began, and the time that it still takes at this speed."""

    per_s: float
    left_s: float


Said = Callable[[int, int, Rate], None]  # called with (done, total, rate)


def note(sentence: str) -> None:
    """Print a remark on standard error; `sentence` has no full stop."""
    click.echo(f"Note: {sentence}.", err=True)


class Bar:
    """A progress bar at the foot of `stream`; it draws nothing if that is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        # A dumb terminal, such as an editor's, cannot overwrite a line.
        self.is_drawn = stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._drawn_at = 0.0

    def show(self, done: int, total: int, text: str) -> None:
        """Draw the bar; it ends when `done` reaches `total`. A long text is wrapped."""
        if not self.is_drawn:
            return
        if self._progress is None:
            self._begin()
        assert self._progress is not None
        assert self._task is not None
        self._progress.update(self._task, completed=done, total=total, text=text)
        if done >= total:
            self.end()
        elif time.monotonic() - self._drawn_at >= _REDRAW_S:
            self._progress.refresh()
            self._drawn_at = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self._progress is None:
            click.echo(line, file=self._stream)
            return
        from rich.text import Text

        self._progress.console.print(Text(line), soft_wrap=True)

    def end(self) -> None:
        """Leave the bar on the screen as it is; the next `show` starts another below."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _begin(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        console = Console(file=self._stream, force_terminal=True)
        self._progress = Progress(
            BarColumn(bar_width=min(30, console.width // 6)),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(overflow="fold")),
            console=console,
            # No refresh thread, and no redirection because standard output may go to a file.
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("", total=None, text="")
        self._progress.start()
        self._drawn_at = 0.0


class Screen:
    """A text at the foot of a terminal that each `show` replaces; elsewhere all are printed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live: Live | None = None

    def __enter__(self) -> Screen:
        if self._stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream, force_terminal=True)
            self._live = Live(console=console, auto_refresh=False, redirect_stderr=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, text: str) -> None:
        """Show the text, which may have colours; what does not fit on the screen is cut off."""
        if self._live is None:
            click.echo(text, file=self._stream)
            return
        from rich.text import Text

        self._live.update(Text.from_ansi(text), refresh=True)


class Pace:
    """A timer for progress lines: one is due `EVERY_S` after the last, or after the start."""

    def __init__(self) -> None:
        self._last_at = time.monotonic()

    def is_due(self) -> bool:
        """Return whether a line is due; if so, the interval starts anew."""
        now = time.monotonic()
        if now - self._last_at < EVERY_S:
            return False
        self._last_at = now
        return True


class Meter:
    """Measures the rate of work, from the first count that it is given.

    So what was done before, such as pictures in a cache, does not count.
    """

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None  # time and count

    def measure(self, done: int, total: int) -> Rate | None:
        """The rate; None if nothing was done since the first count."""
        now = time.monotonic()
        if self._first is None or done < self._first[1]:  # new work began
            self._first = now, done
        began, before = self._first
        if done <= before or now <= began:
            return None
        per_s = (done - before) / (now - began)
        return Rate(per_s, (total - done) / per_s)


@contextmanager
def progress_bar(label: str, elsewhere: Said | None = None) -> Iterator[Told]:
    """Yield a callback (done, total) that draws a bar if standard error is a terminal.

    The bar ends when `done` reaches `total`; the next call starts another. Without a terminal, the
    calls go to `elsewhere`, at most every 30 s; by default it prints a line to standard error.
    """
    bar = Bar(sys.stderr)
    if not bar.is_drawn:
        yield _elsewhere(elsewhere or partial(_print, label))
        return
    try:
        yield lambda done, total: bar.show(done, total, label)
    finally:
        bar.end()


def _elsewhere(say: Said) -> Told:
    pace, meter = Pace(), Meter()

    def tell(done: int, total: int) -> None:
        rate = meter.measure(done, total)
        if rate is not None and pace.is_due():
            say(done, total, rate)

    return tell


def _print(label: str, done: int, total: int, rate: Rate) -> None:
    left = f", {duration(rate.left_s)} left" if done < total else ""
    click.echo(f"{label}: {done}/{total}{left}", err=True)
