"""The options of every command that runs an encoder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

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
    """Add --provider, --precision, --threads and --engine-dir to a command.

    It gets one argument for them, `encoder`, an EncoderConfig.
    """

    @functools.wraps(command)
    def run(
        *arguments: Any,
        provider: Any,
        precision: Any,
        threads: int,
        engine_dir: Path | None,
        **others: Any,
    ) -> Any:
        from fedclip_edge.processes.blas import limit_blas_threads

        limit_blas_threads()  # before numpy is imported
        from fedclip_edge.config.agent import EncoderConfig

        try:
            encoder = EncoderConfig(provider, precision, threads, engine_dir=engine_dir)
        except ValueError as error:
            raise click.UsageError(f"--{error}.") from error
        return command(*arguments, encoder=encoder, **others)

    options = (
        click.option(
            "--provider",
            default="cpu",
            show_default=True,
            type=click.Choice(["cpu", "cuda", "tensorrt", "openvino", "coreml"]),
            help="Where the encoder runs: on the CPU by ONNX Runtime (cpu) or by OpenVINO "
            "(openvino), on an NVIDIA GPU (cuda), or through TensorRT or Apple's Core ML.",
        ),
        click.option(
            "--precision",
            default="fp32",
            show_default=True,
            type=click.Choice(["fp32", "bf16"]),
            help="Numbers that the encoder computes with: as it was exported (fp32), or bf16, "
            "which is faster on processors that have it; used with --provider openvino.",
        ),
        click.option(
            "--threads",
            default=usable_cores,
            show_default="all cores",
            type=click.IntRange(1),
            help="Number of threads that decode pictures, and that encode them with --provider cpu "
            "and openvino.",
        ),
        click.option(
            "--engine-dir",
            type=click.Path(file_okay=False, path_type=Path),
            help="Folder in which TensorRT keeps its compiled engines; used with --provider "
            "tensorrt. [default: the user's cache folder]",
        ),
    )
    wrapped: Any = run
    for option in reversed(options):
        wrapped = option(wrapped)
    return cast("F", wrapped)
