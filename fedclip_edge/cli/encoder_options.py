"""The options of every command that runs an encoder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def encoder_options(command: F) -> F:
    """Add --provider, --threads and --engine-dir to a command, as arguments of these names."""
    provider = click.option(
        "--provider",
        default="cpu",
        show_default=True,
        type=click.Choice(["cpu", "cuda", "tensorrt"]),
        help="What runs the encoder.",
    )
    threads = click.option(
        "--threads",
        default=lambda: len(os.sched_getaffinity(0)),
        show_default="all cores",
        type=click.IntRange(1),
        help="Of the CPU provider.",
    )
    engine_dir = click.option(
        "--engine-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where TensorRT's engines are kept; the user's cache by default.",
    )
    return provider(threads(engine_dir(command)))
