"""What went wrong, named by what the caller does next.

Each class carries the exit code of the command that ends with it. Codes stand in ranges, so
that a supervisor can decide without reading text: 2 is bad usage (click's own), 10-19 is
"a person must change something", 20-29 is "try again later".

A message is one sentence or two: what happened, where, and what to do next.
"""

from __future__ import annotations

from typing import ClassVar

_SENTENCE = 500


class FedclipError(Exception):
    """Anything this package raises on purpose; never raised itself."""

    exit_code: ClassVar[int] = 1


class ConfigError(FedclipError):
    """A configuration or an argument is wrong: stop and say what to change."""

    exit_code = 10


class DataError(FedclipError):
    """The pictures cannot be used as they are: a folder missing, empty or without classes."""

    exit_code = 11


class BundleError(FedclipError):
    """A bundle is incomplete, altered or unfit for this run: stop."""

    exit_code = 12


class ExportError(FedclipError):
    """An encoder could not be exported faithfully: stop; nothing was written."""

    exit_code = 13


class RefusedError(FedclipError):
    """The coordinator or the broker refused for good (another encoder, a revoked certificate, a
    wrong password): retrying cannot help.
    """

    exit_code = 14


class RunError(FedclipError):
    """The run ended without closing every round."""

    exit_code = 15


class BrokerError(FedclipError):
    """A broker could not be started here: none installed, or its port is taken."""

    exit_code = 16


class JournalError(FedclipError):
    """The journal cannot be written or read: nothing acknowledged is lost; mend and start again."""

    exit_code = 17


class DiskError(FedclipError):
    """The disk refused a file: it is full, read-only, or not ours to write."""

    exit_code = 18


class LinkError(FedclipError):
    """The broker cannot be reached: back off and come back."""

    exit_code = 20


class PeerError(FedclipError):
    """A message broke the protocol: drop it, count it, name the peer; never stop for it.

    The sentence stays short however much of the message it was made of.
    """

    exit_code = 21

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence if len(sentence) <= _SENTENCE else sentence[:_SENTENCE] + " ...")


def first_line(error: BaseException) -> str:
    """The first line of a library's error, cut to 300 characters, for a sentence of ours."""
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
