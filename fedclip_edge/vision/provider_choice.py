"""The choice of the provider that computes a box's features.

Laws:

- Only an option whose golden vectors agree is chosen; the fastest of those.
- The choice for an encoder stays, because another one would make all cached features useless. It
  changes only if it is no longer possible, or if its golden vectors do not agree any more.
- If the CPU is the only option, nothing is tried.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedclip_edge import log
from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import BundleError, ConfigError, DiskError
from fedclip_edge.processes.children import Children
from fedclip_edge.storage import atomic
from fedclip_edge.storage.text_file import read_json
from fedclip_edge.vision import providers
from fedclip_edge.vision.bundle import ENCODER, Bundle
from fedclip_edge.vision.provider_trial import Tried, try_each

FILE = "encoder.json"  # in state_dir

Try = Callable[[Sequence[EncoderConfig]], tuple[Tried, ...]]


@dataclass(frozen=True)
class _Kept:
    """The choice for one encoder; the file has one for each that the device had."""

    provider: str  # EncoderConfig.label
    environment: dict[str, str]
    tried: tuple[str, ...]  # labels


def choose_provider(
    bundle: Bundle,
    settings: EncoderConfig,
    state_dir: Path,
    children: Children,
    meanwhile: Callable[[], object],
) -> EncoderConfig:
    """Return `settings` with a provider and a precision in place of "auto".

    The choice is kept in `state_dir`. Trials run in `children`, and `meanwhile` is called many
    times a second.

    Raises ConfigError or BundleError if no option can be used, and DiskError if the choice cannot
    be stored.
    """
    possible = {option.label: option for option in providers.options(settings)}
    file = state_dir / FILE
    encoder = str(bundle.manifest.files[ENCODER])
    choices = _read(file)
    kept = choices.get(encoder)

    def keep(option: EncoderConfig, tried: Sequence[str]) -> EncoderConfig:
        labels = tuple(dict.fromkeys(tried))
        made = _Kept(option.label, providers.environment(option), labels)
        if made != kept:
            _write(file, {**choices, encoder: made})
        return option

    if list(possible) == ["cpu"]:
        _tell_change(kept, "cpu", None)
        is_same = kept is not None and kept.provider == "cpu"
        return keep(possible["cpu"], kept.tried if kept and is_same else ["cpu"])

    def attempt(options: Sequence[EncoderConfig]) -> tuple[Tried, ...]:
        return try_each(bundle.folder, options, children, meanwhile)

    failed: Tried | None = None  # the kept choice, if it fails now
    if kept is not None and kept.provider in possible:
        option = possible[kept.provider]
        if kept.environment != providers.environment(option):  # after an update, or a new machine
            (checked,) = attempt([option])
            log.event("encoder_provider_checked", provider=option.label, result=str(checked))
            failed = None if checked.error is None else checked
        if failed is None:
            _tell_untried(kept, possible, file)
            return keep(option, kept.tried)
    found = _fastest(attempt, possible, bundle, failed)
    _tell_change(kept, found.label, failed)
    return keep(found, [*(kept.tried if kept else ()), *possible])


def kept_provider(bundle: Bundle, settings: EncoderConfig, state_dir: Path) -> EncoderConfig:
    """Return `settings` with the provider that the agent has chosen, if it has; tries nothing."""
    kept = _read(state_dir / FILE).get(str(bundle.manifest.files[ENCODER]))
    for option in providers.options(settings):
        if kept is not None and option.label == kept.provider:
            return option
    return settings


def _fastest(
    attempt: Try, possible: Mapping[str, EncoderConfig], bundle: Bundle, failed: Tried | None
) -> EncoderConfig:
    """Try all options but the one that `failed` before, and return the fastest that passes."""
    known: tuple[Tried, ...] = () if failed is None else (failed,)
    left = [option for option in possible.values() if failed is None or option != failed.option]
    if left:
        names = ", ".join(option.label for option in left)
        log.event("encoder_providers_tried", providers=names, bundle=bundle.folder)
    tried = (*known, *attempt(left))
    passed = [one for one in tried if one.error is None]
    if not passed:
        first = tried[0]
        assert first.error is not None
        if all(one.option.runs_on == first.option.runs_on for one in tried):
            raise first.error  # a person named this provider
        reasons = "; ".join(str(one) for one in tried)
        raise BundleError(f"no provider of this box can be used for {bundle.folder}: {reasons}")
    best = max(passed, key=lambda one: one.images_per_s)
    log.event(
        "encoder_provider_chosen",
        provider=best.option.label,
        reason="the fastest whose features agree with the bundle's golden vectors",
        tried="; ".join(str(one) for one in tried),
    )
    return best.option


def _tell_change(kept: _Kept | None, provider: str, failed: Tried | None) -> None:
    if kept is not None and kept.provider != provider:
        gone = f"{kept.provider} is not installed any more, or [encoder] does not allow it"
        log.event(
            "encoder_provider_changed",
            before=kept.provider,
            provider=provider,
            reason=gone if failed is None else str(failed),
            hint="all features are computed again",
        )


def _tell_untried(kept: _Kept, possible: Mapping[str, EncoderConfig], file: Path) -> None:
    """Tell a person of options that came after the choice, for example an installed package."""
    untried = [label for label in possible if label not in kept.tried]
    if untried:
        log.event(
            "encoder_provider_kept",
            provider=kept.provider,
            untried=", ".join(untried),
            hint=f"delete {file} to choose again; all features may be computed again then",
        )


def _read(file: Path) -> dict[str, _Kept]:
    """Return the choices by the SHA-256 of the ONNX file; none if the file is damaged."""
    try:
        tables: Any = read_json(file)
        return {
            str(encoder): _Kept(
                str(table["provider"]),
                {str(name): str(value) for name, value in table["environment"].items()},
                tuple(str(label) for label in table["tried"]),
            )
            for encoder, table in tables.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ConfigError, KeyError, TypeError, AttributeError) as error:
        log.event("encoder_choice_damaged", file=file, reason=str(error))
        return {}


def _write(file: Path, choices: Mapping[str, _Kept]) -> None:
    tables = {encoder: asdict(kept) for encoder, kept in choices.items()}
    try:
        atomic.write_file(file, (json.dumps(tables, indent=2) + "\n").encode())
    except OSError as error:
        raise DiskError(
            f"{file} cannot be written: {error.strerror or error}; free or repair the disk"
        ) from error
