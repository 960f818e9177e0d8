"""The files of a demo: a folder of pictures for each domain, a bundle, and configurations.

There is one configuration for the coordinator and one for each device. A second demo in the same
folder reuses its pictures, its bundle and every device's feature cache: it draws, exports and
encodes nothing.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.demo import tiny_clip, world
from fedclip_edge.errors import BundleError, ConfigError, DataError
from fedclip_edge.learning import methods
from fedclip_edge.pki import authority
from fedclip_edge.pki.bundle_signature import load_export_key, read_signature, sign_bundle
from fedclip_edge.processes.children import Children
from fedclip_edge.records import COORDINATOR, Plan, Scalar, normalized_name, slug
from fedclip_edge.storage import atomic
from fedclip_edge.vision.bundle import read_bundle
from fedclip_edge.vision.class_folders import find_domains
from fedclip_edge.vision.datasets import read_folder
from fedclip_edge.vision.picture_files import LeftOut

DRAWN_DOMAINS = ("photo", "painting", "poster", "sketch", "cartoon")
MARKER = ".fedclip-edge-demo"
_WEIGHTS = "open_clip_model.safetensors"  # as open_clip names it
DEADLINE_S = 300.0  # deadline of a round

Tables = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class Settings:
    """Settings of a demo, as given on the command line."""

    out: Path
    data: Path | None = None  # holds DOMAIN/CLASS/*; None draws the pictures
    bundle: Path | None = None  # None exports the tiny CLIP
    hold_out: str = "cartoon"
    rounds: int = 0  # 0 takes the method's own number
    seed: int = 0
    method: str = Plan.method
    options: Mapping[str, Scalar] = field(default_factory=dict)
    per_class: int = 170  # drawn pictures of each class in each style

    @property
    def plan(self) -> Plan:
        """The fleet's plan, with its number of rounds.

        Raises ConfigError for an unknown method, or options or rounds that it does not take.
        """
        plan = Plan(self.method, self.options, rounds=self.rounds, seed=self.seed)
        return methods.with_defaults(plan)

    @property
    def published(self) -> Plan:
        """FedCLIP as published, to compare: its own options, and no vote."""
        plan = Plan("fedclip", rounds=self.rounds, seed=self.seed, vote="off")
        return methods.with_defaults(plan)


@dataclass(frozen=True)
class Device:
    """One device of the demo."""

    id: str
    domain: str
    config: Path
    pictures: Path

    @property
    def state_dir(self) -> Path:
        return self.config.parent


@dataclass(frozen=True)
class Stage:
    """Settings and paths of a prepared demo; its pictures and its bundle exist."""

    settings: Settings
    bundle: Path
    fleet: Path
    journal: Path
    devices: tuple[Device, ...]
    held_out: Device
    export_key: str  # that signed the demo's own bundle, public; empty with a bundle of the user


def check(settings: Settings) -> LeftOut:
    """Check the settings before any work is done; return what in `settings.data` is in no domain.

    Raises ConfigError for options that are wrong or do not fit together, DataError for an unusable
    folder of pictures, and BundleError for an unusable bundle.
    """
    _ = settings.plan  # raises ConfigError for method, options and rounds
    if settings.data is not None and settings.bundle is None:
        raise ConfigError(
            "--data needs --bundle: the demo's tiny CLIP recognises only drawn pictures; make a "
            "bundle with `fedclip-edge export`"
        )
    domains, left_out = _domains(settings)
    if len(domains) < 2:
        raise DataError(
            f"{settings.data} has only one domain, {domains[0]}{left_out.reasons()}, and the demo "
            "holds one out; add a folder with a domain to train on"
        )
    if normalized_name(settings.hold_out) not in map(normalized_name, domains):
        raise ConfigError(
            f"there is no domain {settings.hold_out!r} to hold out; name one of these with "
            f"--hold-out: {', '.join(domains)}{left_out.reasons()}"
        )
    if settings.data is not None and settings.bundle is not None:
        classes = read_bundle(settings.bundle).classes.names
        for domain in domains:
            read_folder(settings.data / domain, classes)
    if settings.data is None and settings.bundle is not None:
        missing = set(world.CLASSES) - set(read_bundle(settings.bundle).classes.names)
        if missing:
            raise ConfigError(
                f"{settings.bundle} lacks the class {min(missing)!r} of the drawn pictures; give "
                "your own pictures with --data, or leave out --bundle"
            )
    out = settings.out
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not _is_demo(out))):
        raise ConfigError(
            f"{out} exists and was not made by the demo; give a new folder with --out"
        )
    return left_out


def prepare(settings: Settings, say: Callable[[str], None]) -> Stage:
    """Draw the pictures, and export and sign the bundle, unless they are already there.

    `check` must have passed, and `settings.out` must exist. `say` is called with a line of text
    before each slow step. Raises ConfigError if the folder of pictures holds other pictures,
    ExportError if the tiny CLIP cannot be exported, and DataError and BundleError as `check` does.
    """
    pictures = settings.data or _draw(settings, say)
    bundle = settings.bundle or _export(settings.out / "bundle", say)
    devices = {}
    for domain in _domains(settings)[0]:
        config = settings.out / "devices" / slug(domain) / "agent.toml"
        devices[normalized_name(domain)] = Device(slug(domain), domain, config, pictures / domain)
    held_out = devices.pop(normalized_name(settings.hold_out))
    export_key = "" if settings.bundle else _sign(bundle, settings.out / "export" / "export.key")
    return Stage(
        settings=settings,
        bundle=bundle,
        fleet=settings.out / "fleet.toml",
        journal=settings.out / "journal.sqlite",
        devices=tuple(devices.values()),
        held_out=held_out,
        export_key=export_key,
    )


def configure(stage: Stage, broker: BrokerAddress) -> None:
    """Write fleet.toml and every agent.toml, and delete the journal of an earlier demo."""
    for path in stage.journal.parent.glob(stage.journal.name + "*"):
        path.unlink()
    settings = stage.settings
    for device in (*stage.devices, stage.held_out):
        device.config.parent.mkdir(parents=True, exist_ok=True)
        evaluates_only = device == stage.held_out
        tables: Tables = {
            "": {
                "id": device.id,
                "fleet": "demo",
                "domain": device.domain,
                "bundle": str(stage.bundle.resolve()),
                "state_dir": ".",
                **({"export_key": stage.export_key} if stage.export_key else {}),
                "roles": ["evaluate"] if evaluates_only else ["train", "evaluate"],
            },
            "data": {
                "folder": str(device.pictures.resolve()),
                **({"train": 0.0, "validation": 0.0, "test": 1.0} if evaluates_only else {}),
            },
            # Not "auto": trials of providers would take longer than the demo's pictures.
            "broker": {"host": broker.host, "port": broker.port},
            "encoder": {"provider": "cpu", "threads": 1},  # the devices share this machine's cores
        }
        device.config.write_text(_toml(tables), encoding="utf-8")
    fleet: Tables = {
        "": {
            "fleet": "demo",
            "bundle": str(stage.bundle.resolve()),
            "journal": stage.journal.name,
            "reports": "off",  # the demo writes its own, with pictures
        },
        "broker": {"host": broker.host, "port": broker.port},
        "rules": {"devices": len(stage.devices), "quorum": 1.0, "deadline_s": DEADLINE_S},
        "plan": {
            "method": settings.method,
            "rounds": settings.plan.rounds,
            "seed": settings.seed,
        },
        "plan.options": dict(settings.options),
        "trainer": {"config": str(stage.held_out.config.relative_to(settings.out))},
    }
    stage.fleet.write_text(_toml(fleet), encoding="utf-8")


def _domains(settings: Settings) -> tuple[tuple[str, ...], LeftOut]:
    """Return the names of the domains' folders, one or more, and what is in none of them."""
    data, bundle = settings.data, settings.bundle
    if data is None or bundle is None:
        return DRAWN_DOMAINS, LeftOut()
    found = find_domains(data, read_bundle(bundle).classes.names)
    expected = f"a folder for each domain, with a folder for each class in it ({data}/DOMAIN/CLASS)"
    if found.class_folders:
        names = ", ".join(folder.name for folder in found.class_folders[:3])
        names += ", ..." * (len(found.class_folders) > 3)
        raise DataError(
            f"--data {data} holds class folders ({names}), but the demo expects {expected}; move "
            "the class folders into a folder for each domain, or give --data to `fedclip-edge "
            "simulate`, which can divide the pictures of one domain among devices (--split iid)"
        )
    if not found.domains:
        raise DataError(
            f"--data {data} holds no domain{found.left_out.reasons()}; the demo expects {expected}"
        )
    domains = [folder.name for folder in found.domains]
    slugs = {slug(domain) for domain in domains}
    if len(slugs) < len(domains) or "" in slugs or COORDINATOR in slugs:
        raise DataError(
            f"the domain folders of {data} do not give distinct device ids (only letters and "
            "digits count, and `coordinator` is reserved); rename them"
        )
    return tuple(domains), found.left_out


def _draw(settings: Settings, say: Callable[[str], None]) -> Path:
    folder = settings.out / "pictures" / f"{settings.per_class}-of-seed-{settings.seed}"
    drawn = [(folder / style, style, settings.per_class, settings.seed) for style in DRAWN_DOMAINS]
    missing = [one for one in drawn if not one[0].is_dir()]
    if missing:
        say(f"drawing {settings.per_class} pictures of each class in {len(missing)} styles")
        log = settings.out / "drawing.log"
        with Children() as children:
            module = [sys.executable, "-m", world.__name__]
            drawing = [children.start([*module, *map(str, one)], log) for one in missing]
            for process in drawing:
                process.wait()
    for one in drawn:
        # Draws what a process could not draw, and raises the reason. Also raises if the folder
        # holds other pictures.
        world.write_pictures(*one)
    return folder


def _export(folder: Path, say: Callable[[str], None]) -> Path:
    """Export the tiny CLIP's bundle, unless it exists for these weights; return its folder."""
    weights = hashlib.sha256((tiny_clip.FOLDER / _WEIGHTS).read_bytes()).hexdigest()
    marker = folder.with_name(folder.name + ".weights")
    if folder.exists() and marker.is_file() and marker.read_text(encoding="utf-8") == weights:
        try:
            read_bundle(folder)
        except BundleError:
            say("the demo's bundle is damaged; exporting it again")
        else:
            return folder
    say("exporting the tiny CLIP")
    from fedclip_edge.demo import gate_pictures
    from fedclip_edge.exporting.bundles import export_open_clip  # takes seconds to import
    from fedclip_edge.exporting.recipe import Recipe, in_folder

    export_open_clip(
        Recipe(in_folder(tiny_clip.FOLDER)),
        world.CLASSES,
        folder,
        draw=gate_pictures.draw,
        replace_existing=True,
    )
    marker.write_text(weights, encoding="utf-8")
    return folder


def _sign(bundle: Path, path: Path) -> str:
    """Sign the demo's bundle with the key in `path`, which is made if it is missing.

    So the devices fetch later bundles that the user signs with it. Returns the public key.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_file(path, authority.private_pem(authority.new_key()), private=True)
    exporter = load_export_key(path)
    try:
        signed = read_signature(bundle)
    except BundleError:  # of another content
        signed = None
    if signed is None or signed.key != exporter.key:
        sign_bundle(bundle, exporter)
    return exporter.key


def _is_demo(out: Path) -> bool:
    return (out / MARKER).is_file()


def _toml(tables: Tables) -> str:
    """Format tables as TOML; for the types used here, TOML values are written as in JSON."""
    lines = []
    for name, table in tables.items():
        lines += [f"\n[{name}]"] if name else []
        lines += [
            f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()
        ]
    return "\n".join(lines) + "\n"
