"""The options of every command that runs an encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from fedclip_edge.processes.cores import usable_cores

F = TypeVar("F", bound=Callable[..., Any])


def cache_option(command: F) -> F:
    """Add --cache to a command; it gets the argument `cache`, the file or None."""
    return click.option(
        "--cache",
        type=click.Path(dir_okay=False, path_type=Path),
        help="File that keeps the features of encoded pictures, so that neither this command nor "
        "another one encodes a picture again with the same encoder. [default: "
        "fedclip-edge/features.sqlite in the user's cache folder]",
    )(command)


def encoder_options(command: F) -> F:
    """Add --provider, --threads and --engine-dir to a command; it gets arguments of these names."""
    provider = click.option(
        "--provider",
        default="cpu",
        show_default=True,
        type=click.Choice(["cpu", "cuda", "tensorrt"]),
        help="Where the encoder runs: on the CPU, on an NVIDIA GPU (cuda), or on an NVIDIA GPU "
        "through TensorRT.",
    )
    threads = click.option(
        "--threads",
        default=usable_cores,
        show_default="all cores",
        type=click.IntRange(1),
        help="Number of threads that decode pictures, and that encode them with --provider cpu.",
    )
    engine_dir = click.option(
        "--engine-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder in which TensorRT keeps its compiled engines; used with --provider tensorrt. "
        "[default: the user's cache folder]",
    )
    return provider(threads(engine_dir(command)))
