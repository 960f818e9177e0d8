"""The output of `fedclip-edge export`: the parity gate's table, and a summary of the bundle."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedclip_edge.reporting.table import aligned, width_of

if TYPE_CHECKING:
    from fedclip_edge.exporting.parity import Parity
    from fedclip_edge.vision.bundle import Bundle

_INDENT = "  "


def report(parity: Parity) -> None:
    """Print the results of the parity gate to standard error.

    They are printed before the decision, so that the user sees them even if the bundle is refused.
    """
    verdicts = {None: "", True: "ok", False: "FAILED"}
    rows = [(row.label, row.value, row.threshold, verdicts[row.passed]) for row in parity.rows()]
    click.echo(f"{parity.precision} encoder compared with the original model:", err=True)
    width = width_of(sys.stderr)
    table = aligned(rows, gap="  ", align="lrll", width=width and width - len(_INDENT))
    click.echo(textwrap.indent(table, _INDENT), err=True)


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Format names and their values as an indented table."""
    width = width_of(sys.stdout)
    table = aligned(rows, gap="  ", align="ll", width=width and width - len(_INDENT))
    return textwrap.indent(table, _INDENT)


_SIGNED = "; the boxes fetch it from the coordinator."
_NOT_SIGNED = """, and sign it, so that the boxes fetch it:
fedclip-edge bundle sign {} --key site/export/export.key
Without a signature, copy it to every box and name it in every agent.toml too."""


def summary(bundle: Bundle, signed: str = "") -> str:
    """Describe the bundle, one property per line, and name the next step.

    `signed` is the sentence about its signature; empty without one.
    """
    from fedclip_edge.vision.bundle_warnings import bundle_warnings

    manifest = bundle.manifest
    preprocessing = manifest.preprocessing
    side = preprocessing.image_size
    rows = [
        ("model", f"{manifest.model}, {manifest.pretrained}"),
        ("input", f"{side} x {side}, {preprocessing.resize}, {preprocessing.interpolation}"),
        ("features", f"{manifest.dim} wide, {manifest.precision}"),
        ("activation", manifest.activation),
        ("classes", f"{len(bundle.classes.names)}: {shortened(bundle.classes.names)}"),
        ("prompt", bundle.classes.prompt),
        ("parity", _parity(manifest.parity)),
        ("encoder id", manifest.encoder_id[:16]),
        *((path.name, _size(path)) for path in sorted(bundle.folder.iterdir())),
    ]
    notes = "".join(f"\nNote: {caution}." for caution in bundle_warnings(manifest))
    said = f"{signed}\n" if signed else ""
    return (
        f"Wrote the bundle {bundle.folder}\n\n{facts(rows)}\n{notes}\n{said}"
        f'Next: write bundle = "{bundle.folder}" in fleet.toml'
        f"{_SIGNED if signed else _NOT_SIGNED.format(bundle.folder)}"
    )


def _parity(parity: Mapping[str, Any] | None) -> str:
    if parity is None:
        return "unknown"
    passed = "passed" if parity["passed"] else "FAILED, accepted with --accept-parity"
    worst = f"{parity['largest_difference']:.1e}"
    return f"{passed}; largest difference {worst} on unit vectors, {parity['pictures']} pictures"


def shortened(names: tuple[str, ...]) -> str:
    """Join the names in one line; of more than 12 names, show the first 11 and an ellipsis."""
    return ", ".join(names) if len(names) <= 12 else ", ".join((*names[:11], "..."))


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"
