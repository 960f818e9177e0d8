"""The bundle and the model of `fedclip-edge predict`: those that are named, or a device's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedclip_edge.errors import ConfigError

if TYPE_CHECKING:
    from fedclip_edge.config.agent import EncoderConfig
    from fedclip_edge.model_file import TrainedModel
    from fedclip_edge.records import ClassTexts
    from fedclip_edge.vision.bundle import Bundle

# Where device/README.md puts it.
_INSTALLED = Path("/etc/fedclip-edge/agent.toml")


@dataclass(frozen=True, eq=False)
class Source:
    """The bundle and the model that label pictures."""

    bundle: Bundle
    classes: ClassTexts  # of the model
    trained: TrainedModel | None
    zero_shot_because: str  # why there is no model
    encoder: EncoderConfig | None = None  # of the device; None for a named bundle


def named(bundle: Path, model: str | None, journal: Path) -> Source:
    """Open the bundle and the model that the user named; raises the errors of both."""
    from fedclip_edge.coordinator.model_lookup import find_model
    from fedclip_edge.vision.bundle import read_bundle

    opened = read_bundle(bundle)
    trained = None if model is None else find_model(model, journal, opened)
    return Source(opened, opened.classes, trained, "no --model given")


def of_device(config: Path | None, model: str | None, journal: Path) -> Source:
    """Open the bundle that a device uses and, unless `model` names another, its model in use.

    `config` is its agent.toml; None stands for the one in the working folder, or else the installed
    one. Raises ConfigError if there is none, if the device has no bundle yet, or if a file of its
    model cannot be used; BundleError if the bundle is damaged.
    """
    from fedclip_edge.agent.bundle_store import BundleStore, fetched_folder
    from fedclip_edge.agent.model_in_use import model_choice
    from fedclip_edge.config.agent import load_agent
    from fedclip_edge.vision.provider_choice import kept_provider

    path = _agent_file(config)
    settings = load_agent(path)
    folder = BundleStore(fetched_folder(settings.state_dir), settings.bundle).current
    if folder is None:
        raise ConfigError(
            f"the device of {path} has no bundle yet; start its agent, which fetches one, or name "
            "a bundle with --bundle"
        )
    found = named(folder, model, journal)
    if model is None:
        in_use = model_choice(settings, found.bundle, _not_used).current
        found = Source(found.bundle, in_use.classes, in_use.trained, "the device has no model yet")
    encoder = kept_provider(found.bundle, settings.encoder, settings.state_dir)
    return Source(found.bundle, found.classes, found.trained, found.zero_shot_because, encoder)


def _agent_file(config: Path | None) -> Path:
    if config is not None:
        return config
    here = Path("agent.toml")
    for path in (here, _INSTALLED):
        if path.is_file():
            return path
    raise ConfigError(
        f"there is no bundle to use: name one with --bundle, or on a device its agent.toml with "
        f"--config (neither {here} here nor {_INSTALLED} exists)"
    )


def _not_used(file: Path, reason: str) -> None:
    raise ConfigError(f"the model of this device in {file} cannot be used: {reason}")
