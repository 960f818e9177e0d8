"""`fedclip-edge bundle`: a check of a bundle on this box, its signature, and its rollback."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fedclip_edge.cli.encoder_options import encoder_options
from fedclip_edge.cli.group import Group
from fedclip_edge.reporting.table import aligned, width_of

if TYPE_CHECKING:
    from fedclip_edge.config.agent import EncoderConfig
    from fedclip_edge.pki.bundle_signature import Signature
    from fedclip_edge.vision.bundle import Bundle
    from fedclip_edge.vision.provider_trial import Tried
    from fedclip_edge.vision.verification import Verification


@click.group(cls=Group)
def bundle() -> None:
    """Check, sign or roll back a bundle, the folder that `export` writes."""


@bundle.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--key",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The export key, the file export/export.key that `broker init` made.",
)
@click.option(
    "--serial",
    type=int,
    help="Serial number. A box accepts only a larger one than it had before. [default: the present "
    "time in seconds, or one more than before]",
)
def sign(folder: Path, key: Path, serial: int | None) -> None:
    """Sign the bundle FOLDER, so that the boxes of a fleet fetch it from their coordinator.

    The signature covers every file. It is written to signature.json in the bundle, and replaces an
    earlier one. To give the boxes an earlier bundle back, sign it again.
    """
    from fedclip_edge.pki.bundle_signature import load_export_key, sign_bundle

    made = sign_bundle(folder, load_export_key(key), serial=serial)
    click.echo(f"{folder} is signed with the export key {made.key[:16]}, serial {made.serial}")


@bundle.command()
@click.argument("config", type=click.Path(path_type=Path), default="agent.toml")
def rollback(config: Path) -> None:
    """Go back to the bundle that this box used before it fetched the last one.

    CONFIG is the box's configuration file. A running agent changes to the earlier bundle within a
    second. It does not fetch the same one again, so it takes part in no run that needs it, until
    one with a larger serial number is offered. A second rollback undoes the first.
    """
    from fedclip_edge.agent.bundle_store import BundleStore, fetched_folder
    from fedclip_edge.config.agent import load_agent

    loaded = load_agent(config)
    store = BundleStore(fetched_folder(loaded.state_dir), loaded.bundle)
    click.echo(
        f"{loaded.id} uses {store.roll_back()} again; to give it a bundle that replaces the one "
        "before, sign that bundle again"
    )


@bundle.command()
@click.argument("folder", type=click.Path(path_type=Path))
@encoder_options
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON object, for programs."
)
def verify(folder: Path, encoder: EncoderConfig, as_json: bool) -> None:
    """Check that the bundle FOLDER is complete and computes the right features on this box.

    The encoder runs on the bundle's golden pictures, and its features are compared with those of
    the machine that exported the bundle. The exit code is 12 if a file differs from the exported
    one, if the signature is invalid, or if the features differ by more than the rounding errors of
    this kind of processor.

    Without --provider, the features of the CPU are checked, and those of all other installed
    providers are compared with them in a table. Use it to see what `provider = "auto"` can choose.
    """
    from fedclip_edge.pki.bundle_signature import read_signature
    from fedclip_edge.vision import verification
    from fedclip_edge.vision.bundle import read_bundle

    opened, signed = read_bundle(folder), read_signature(folder)
    found = verification.verify(opened, encoder)
    others = () if _is_given("provider", "precision") else _others(folder, encoder)
    if as_json:
        click.echo(json.dumps(_as_json(opened, signed, found, others)))
    else:
        click.echo(_table(opened, signed, found, others))
    verification.check(found, opened)


def _is_given(*options: str) -> bool:
    context = click.get_current_context()
    return any(
        context.get_parameter_source(name) == ParameterSource.COMMANDLINE for name in options
    )


def _others(folder: Path, encoder: EncoderConfig) -> tuple[Tried, ...]:
    """Try the other providers of this machine, with the same threads."""
    from fedclip_edge.processes.children import Children
    from fedclip_edge.vision import providers
    from fedclip_edge.vision.provider_trial import try_each

    possible = providers.options(replace(encoder, provider="auto", precision="auto"))
    with Children() as children:
        return try_each(folder, [one for one in possible if one != encoder], children)


def _table(
    opened: Bundle, signed: Signature | None, found: Verification, others: tuple[Tried, ...]
) -> str:
    from fedclip_edge.vision.bundle_warnings import bundle_warnings
    from fedclip_edge.vision.manifest import FILES

    manifest = opened.manifest
    on_cpu = found.provider.startswith(("cpu", "openvino"))
    threads = f", {_counted(found.threads, 'thread')}" if on_cpu else ""
    facts = [
        ("files", f"{len(FILES)}, as exported (SHA-256)"),
        ("manifest", f"{manifest.model}, {manifest.pretrained}; {manifest.precision}"),
        ("encoder id", f"{manifest.encoder_id[:16]}, matches the manifest"),
        (
            "signed by",
            f"export key {signed.key[:16]}, serial {signed.serial}" if signed else "nobody",
        ),
        ("provider", f"{found.provider}{threads}"),
        ("speed", f"{found.images_per_s:.1f} images/s, without decoding pictures"),
    ]
    rows = [
        (figure.name, f"{figure.found:.1e}", f"{figure.allowed:.0e}", _verdict(figure.passes))
        for figure in found.figures
    ]
    rows.insert(0, (_counted(found.pictures, "golden picture"), "found", "at most", ""))
    width = width_of(sys.stdout)
    lines = [
        aligned(facts, gap="  ", align="ll", width=width),
        "",
        aligned(rows, gap="  ", align="lrrl", width=width),
    ]
    if found.bit_equal:
        lines.append("A picture gives the same bits alone and in a batch.")
    if others:
        lines += ["", *_providers(found, others, width)]
    notes = [f"Note: {caution}." for caution in bundle_warnings(manifest)]
    if manifest.parity is None:
        notes.append(
            "Note: its features were not compared with the original model's (parity unknown)."
        )
    verdict = "passes" if found.passes else "does NOT pass"
    return "\n".join([*lines, "", *notes, f"{opened.folder} {verdict} on this box."])


def _providers(found: Verification, others: tuple[Tried, ...], width: int | None) -> list[str]:
    """The lines about all providers, the one that was checked first, and why others are refused."""
    rows = [
        ("providers of this machine", "images/s", "difference", ""),
        (
            found.provider,
            f"{found.images_per_s:.1f}",
            f"{found.differs:.0%}",
            "ok" if found.passes else "refused",
        ),
    ]
    for one in others:
        speed, differs = f"{one.images_per_s:.1f}", f"{one.differs:.0%}"
        figures = (speed, differs, "ok") if one.error is None else ("-", "-", "refused")
        rows.append((one.option.label, *figures))
    lines = [*aligned(rows, gap="  ", align="lrrl", width=width).splitlines()]
    lines.append("Difference: the largest one above, as a share of its limit.")
    return [*lines, *(str(one) for one in others if one.error is not None)]


def _as_json(
    opened: Bundle, signed: Signature | None, found: Verification, others: tuple[Tried, ...]
) -> dict[str, Any]:
    from fedclip_edge.vision.bundle_warnings import bundle_warnings

    manifest = opened.manifest
    return {
        "bundle": str(opened.folder),
        "model": manifest.model,
        "pretrained": manifest.pretrained,
        "precision": manifest.precision,
        "encoder_id": manifest.encoder_id,
        "signer": signed.key if signed else None,
        "serial": signed.serial if signed else None,
        "provider": found.provider,
        "threads": found.threads,
        "pictures": found.pictures,
        "checks": [
            {"name": f.name, "found": f.found, "at_most": f.allowed, "passes": f.passes}
            for f in found.figures
        ],
        "bit_equal": found.bit_equal,
        "images_per_s": round(found.images_per_s, 2),
        "other_providers": [
            {
                "provider": one.option.label,
                "images_per_s": round(one.images_per_s, 2),
                "share_of_limit": one.differs,
                "passes": one.error is None,
                "reason": "" if one.error is None else str(one.error),
            }
            for one in others
        ],
        "parity": "unknown" if manifest.parity is None else dict(manifest.parity),
        "cautions": bundle_warnings(manifest),
        "passes": found.passes,
    }


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


def _verdict(passes: bool) -> str:
    return "ok" if passes else "TOO LARGE"
