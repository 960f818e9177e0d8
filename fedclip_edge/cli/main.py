"""The entry point of `fedclip-edge`, and its list of commands.

Each command has its own file, with slow imports inside the command. Every error that this package
raises on purpose becomes a message on standard error and the exit code of its class (errors.py).
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from types import FrameType

import click

from fedclip_edge import __version__
from fedclip_edge.cli.agent import agent
from fedclip_edge.cli.backup import backup, restore
from fedclip_edge.cli.broker import broker
from fedclip_edge.cli.bundle import bundle
from fedclip_edge.cli.classes import classes
from fedclip_edge.cli.demo import demo
from fedclip_edge.cli.devices import devices
from fedclip_edge.cli.doctor import doctor
from fedclip_edge.cli.enroll import enroll, renew, revoke
from fedclip_edge.cli.export import export
from fedclip_edge.cli.export_classifier import export_classifier
from fedclip_edge.cli.forget import forget
from fedclip_edge.cli.group import Group
from fedclip_edge.cli.page import page
from fedclip_edge.cli.predict import predict
from fedclip_edge.cli.review import review
from fedclip_edge.cli.run import run
from fedclip_edge.cli.runs import runs
from fedclip_edge.cli.serve import serve
from fedclip_edge.cli.simulate import simulate
from fedclip_edge.cli.status import status
from fedclip_edge.cli.watch import watch
from fedclip_edge.errors import ConfigError, DiskError, FedclipError


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="fedclip-edge")
def cli() -> None:
    """Adapt CLIP to a fleet's own pictures without moving a picture."""


# Libraries that may not be installed, and for each command the extra that installs what it needs.
_LIBRARIES = (
    "PIL",
    "jinja2",
    "mlflow",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "open_clip",
    "prometheus_client",
    "starlette",
    "tensorboard",
    "torch",
    "uvicorn",
)
_EXTRAS = {
    "agent": "agent",
    "bundle": "agent",
    "doctor": "agent",
    "export": "export",
    "export-classifier": "export",
    "page": "web",
    "predict": "agent",
    "review": "agent",
    "run": "tracking",
    "serve": "serve",
    "simulate": "simulate",
}

for _command in (
    demo,
    export,
    bundle,
    classes,
    broker,
    enroll,
    renew,
    revoke,
    serve,
    status,
    watch,
    page,
    devices,
    runs,
    backup,
    restore,
    run,
    forget,
    agent,
    doctor,
    predict,
    review,
    simulate,
    export_classifier,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line; the entry point of the console script."""
    signal.signal(signal.SIGTERM, _end)
    for stream in (sys.stdout, sys.stderr):
        # The name of a file may have characters that the terminal's encoding lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as leaving:
        sys.exit(leaving.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted")
        sys.exit(128 + signal.SIGINT)
    except FedclipError as error:
        _complain(f"fedclip-edge: {error}")
        sys.exit(error.exit_code)
    except OSError as error:  # not turned into a FedclipError elsewhere
        where = f"{error.filename}: " if error.filename else ""
        kind, remedy = _of_system(error)
        _complain(f"fedclip-edge: {where}{error.strerror or error}; {remedy}")
        sys.exit(kind.exit_code)
    except ModuleNotFoundError as error:
        library = (error.name or "").split(".")[0]
        if library not in _LIBRARIES:
            raise
        asked = next((word for word in sys.argv[1:] if word in cli.commands), "")
        extra = f"pip install 'fedclip-edge[{_EXTRAS.get(asked, 'all')}]'"
        _complain(f"fedclip-edge: {library} is not installed; install it with {extra}")
        sys.exit(ConfigError.exit_code)


def _complain(message: str) -> None:
    """Write a line to standard error, which may be a file on a full disk."""
    with contextlib.suppress(OSError):
        click.echo(message, err=True)


def _of_system(error: OSError) -> tuple[type[FedclipError], str]:
    """The class of an error of the operating system, and what to do."""
    if isinstance(error, NotADirectoryError | IsADirectoryError | FileExistsError):
        return ConfigError, "name another file or folder"
    if isinstance(error, PermissionError):
        return DiskError, f"let this user (uid {os.geteuid()}) use it, or choose another folder"
    return DiskError, "free disk space, repair the disk or choose another folder, then start again"


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)  # SystemExit, so that every `finally` runs


if __name__ == "__main__":
    main()
