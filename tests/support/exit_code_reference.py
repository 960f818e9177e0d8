"""docs/reference/exit-codes.md: the exit codes of errors.py, of click and of signals."""

from __future__ import annotations

import configparser
import signal
from collections.abc import Iterator, Mapping

import click
import reference_markdown as md
from checkout import ROOT

from fedclip_edge import errors
from fedclip_edge.errors import FedclipError

UNIT = ROOT / "device" / "fedclip-edge-agent.service"

# By class: the meaning, and what to do next.
CODES: Mapping[type[FedclipError], tuple[str, str]] = {
    errors.ConfigError: (
        (
            "A configuration file, an argument or an option of the plan is wrong, or a library is not "
            "installed."
        ),
        "Change what the message names.",
    ),
    errors.DataError: (
        "The pictures cannot be used: a folder is missing, empty or without classes.",
        "Correct `folder` under `[data]`, or add pictures.",
    ),
    errors.BundleError: (
        "The bundle is incomplete, altered, or does not fit this run or this box.",
        "Copy the bundle again, then run `fedclip-edge bundle verify`.",
    ),
    errors.ExportError: (
        "The encoder cannot be exported, or it differs from its model. Nothing was written.",
        "Read which check failed; try another `--precision`, or other `--calibration` pictures.",
    ),
    errors.RefusedError: (
        (
            "The coordinator or the broker refused this client permanently: an unknown, expired or "
            "revoked certificate, a wrong password. With `agent --once`, also a run with another "
            "bundle or a method that the device does not allow."
        ),
        "Do what the message says; a restart does not help.",
    ),
    errors.RunError: (
        "The run ended without closing every round, or another coordinator took over.",
        "Read the message and the log of the devices, then start again.",
    ),
    errors.BrokerError: (
        (
            "A broker could not be started or told to read its files again: none is installed, or its "
            "port is taken."
        ),
        "Install mosquitto, or name another `--port`.",
    ),
    errors.JournalError: (
        "The coordinator's journal cannot be written or read, or it is damaged.",
        (
            "Free or repair the disk, then start `serve` again: no acknowledged update is lost. If the "
            "journal is damaged, the message says what is lost and how to continue."
        ),
    ),
    errors.DiskError: (
        "A file cannot be written: the disk is full or read-only, or the user may not write there.",
        "Free or repair the disk, or name another folder.",
    ),
    errors.CheckError: (
        "`fedclip-edge doctor` found something that a person must do.",
        "Do what it says after `->`.",
    ),
    errors.LinkError: (
        "The broker cannot be reached; or no coordinator serves behind its control socket.",
        (
            "Wait and start again; if the error remains, check host, port and network, or start "
            "`serve`."
        ),
    ),
    errors.PeerError: (
        (
            "A message broke the protocol, or an update exceeds a limit of the plan. Agent and "
            "coordinator drop such a message and continue; no command ends with it."
        ),
        "Report it: this is a bug.",
    ),
    errors.WorkerError: (
        "The encoder's process died twice in a row, or did not end its work.",
        (
            "Give it more memory: stop other programs, raise `MemoryMax`, or use a smaller encoder. "
            "Then start again."
        ),
    ),
}

_RANGES = """\
The ranges are for programs that start fedclip-edge:

- **10 to 19: a person must look at it first.** Most often, starting the command again gives the
  same error.
- **20 to 29: try again later.** The same command can succeed."""


def classes() -> list[type[FedclipError]]:
    """Every error class with a code of its own, by code."""

    def below(cls: type[FedclipError]) -> Iterator[type[FedclipError]]:
        for sub in cls.__subclasses__():
            if "exit_code" in vars(sub):
                yield sub
            yield from below(sub)

    ours = {cls for cls in below(FedclipError) if cls.__module__.startswith("fedclip_edge.")}
    return sorted(ours, key=lambda cls: cls.exit_code)


def page() -> str:
    usage, interrupt = click.UsageError.exit_code, 128 + signal.SIGINT
    terminate, again = 128 + signal.SIGTERM, "Start it again to continue."
    general = [
        (
            "0",
            "",
            (
                "The command did what it was asked to do. `serve`, and `agent` without `--once`, are "
                "services: they also end with 0 when SIGTERM or Ctrl-C asks them to stop."
            ),
            "",
        ),
        (
            str(FedclipError.exit_code),
            "",
            "A bug, with a traceback from Python; or the program that reads the output has closed it.",
            "Report the traceback, if there is one.",
        ),
        (
            str(usage),
            "",
            "Unknown command or option, missing argument, or a value out of range (click).",
            "Read the help: `-h` after the command.",
        ),
    ]
    signals = [
        (str(interrupt), "", "Stopped by Ctrl-C (SIGINT) before its work was done.", again),
        (str(terminate), "", "Stopped by SIGTERM before its work was done.", again),
    ]
    ours = [(str(cls.exit_code), f"`{cls.__name__}`", *CODES[cls]) for cls in classes()]
    rows = [tuple(map(md.prose, row)) for row in (*general, *ours, *signals)]
    return md.page(
        [
            "# Exit codes",
            md.notice("the error classes of `fedclip_edge/errors.py`"),
            (
                "An error is one message on standard error, which says what to do next, and an exit code. "
                "The class is the name of the error in the source."
            ),
            md.table(("code", "class", "meaning", "what to do"), rows),
            _RANGES,
            "## The systemd unit",
            _unit_text(),
        ]
    )


def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT, encoding="utf-8")
    return parser["Service"]


def _unit_text() -> str:
    service = unit()
    names = (
        "Restart",
        "RestartForceExitStatus",
        "RestartPreventExitStatus",
        "RestartSec",
        "TimeoutStopSec",
    )
    settings = "\n".join(f"{name}={service[name]}" for name in names)
    *first, last = service["RestartPreventExitStatus"].split()
    return (
        f"`device/{UNIT.name}` runs the agent with these settings:\n\n"
        + md.fenced(settings, "ini")
        + f"\n\nAfter {', '.join(first)} or {last} the agent is not started again: a person must act "
        f"first. After 18, a full disk, it is started again, and continues as soon as there is space. "
        f"After 0 it has ended as wanted, by `systemctl stop` for example. After any other "
        f"code, systemd starts it again after {service['RestartSec']} seconds.\n\n"
        "A service that is asked to stop says goodbye to its peers, closes its files, and logs "
        "`stopped`. That takes a few seconds, and 25 at the most. A second signal ends it at once, "
        "with 130 or 143; nothing that was acknowledged is lost."
    )
