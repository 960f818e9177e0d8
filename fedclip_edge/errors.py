"""Errors of this package, one class for each way in which a caller should react.

Each class has the exit code of a command that ends with it. The codes are in ranges, so that a
supervisor need not parse messages to decide whether to restart. 2 means wrong usage (click's own
code), 10 to 19 mean that a person must change something, 20 to 29 mean that the command can be
tried again later.

A message is one or two sentences: the problem, its place, and the next step.
"""

from __future__ import annotations

from typing import ClassVar

_SENTENCE = 500


class FedclipError(Exception):
    """Base class of all errors that this package raises on purpose; never raised directly."""

    exit_code: ClassVar[int] = 1


class ConfigError(FedclipError):
    """A configuration or an argument is wrong: stop and tell the user what to change."""

    exit_code = 10


class DataError(FedclipError):
    """The pictures cannot be used as they are: a folder missing, empty or without classes."""

    exit_code = 11


class BundleError(FedclipError):
    """A bundle is incomplete or altered, or does not fit this run: stop."""

    exit_code = 12


class ExportError(FedclipError):
    """An encoder could not be exported, or gave different features: stop; nothing was written."""

    exit_code = 13


class RefusedError(FedclipError):
    """The coordinator or the broker refused, and trying again cannot help.

    Examples: a revoked certificate, a wrong password; with `agent --once`, another encoder.
    """

    exit_code = 14


class RunError(FedclipError):
    """The run ended without closing every round."""

    exit_code = 15


class BrokerError(FedclipError):
    """A broker could not be started (none installed, port taken) or made to reload its files."""

    exit_code = 16


class JournalError(FedclipError):
    """The journal cannot be written or read, or is damaged.

    Nothing that was acknowledged is lost, unless the file is damaged; the message says so.
    """

    exit_code = 17


class DiskError(FedclipError):
    """A file cannot be written: the disk is full or read-only, or permission is denied."""

    exit_code = 18


class CheckError(FedclipError):
    """`fedclip-edge doctor` found something that a person must do."""

    exit_code = 19


class LinkError(FedclipError):
    """The broker, or the coordinator's control socket, cannot be reached: try again later."""

    exit_code = 20


class PeerError(FedclipError):
    """A message broke the protocol: drop it, count it and log the peer, but never stop.

    The message is cut to 500 characters, because it may quote the peer's message.
    """

    exit_code = 21

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence if len(sentence) <= _SENTENCE else sentence[:_SENTENCE] + " ...")


class WorkerError(FedclipError):
    """A child process of this program died or hangs: try again later.

    Often the machine has too little memory.
    """

    exit_code = 22


def reason_of(error: BaseException) -> str:
    """Return all words of a library's error on one line, to quote in a message.

    Nothing is cut away, because many libraries name the cause last. For an error without text, it
    returns the name of its class.
    """
    return " ".join(str(error).split()) or type(error).__name__
