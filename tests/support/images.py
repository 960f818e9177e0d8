"""Images of the Dockerfile, built and run by buildah, which needs no daemon.

buildah reads the Dockerfile itself, so its steps are those of a user. The base image alone is
another one: a Debian that mmdebstrap makes, because not every machine reaches a registry of images.
pip finds packages in the images where it finds them on this machine, by the same configuration.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BUILDAH, MMDEBSTRAP = shutil.which("buildah"), shutil.which("mmdebstrap")
ROOT = Path(__file__).parents[2]
DEBIAN = "bookworm"  # its Python is that of the base image in the Dockerfile
_BASE = "localhost/fedclip-edge-base"
_PACKAGES = "python3,python3-pip,ca-certificates"
_PIP_CONF = "/etc/pip.conf"


def why_not() -> str:
    """The reason why no image can be built here; empty if there is none."""
    if BUILDAH is None or MMDEBSTRAP is None:
        return "buildah or mmdebstrap is not installed: sudo apt-get install buildah mmdebstrap"
    if os.geteuid() != 0:
        return "root is needed: buildah mounts the images' folders"
    return ""


@dataclass(frozen=True)
class Image:
    """One built target."""

    engine: Engine
    name: str

    def container(self, folder: Path) -> Container:
        """A container whose folder /data is `folder`, which then belongs to the image's user."""
        made = Container(self, self.engine.said("from", self.name), folder)
        user = int(self.engine.said("run", *_CHROOT, made.name, "--", "id", "-u"))
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user, -1)
        return made


@dataclass(frozen=True)
class Container:
    """A container of an image; it is removed with its engine."""

    image: Image
    name: str
    folder: Path

    def words(self, *arguments: str) -> list[str]:
        """The command line that starts the image's program.

        Without `arguments`, or if they begin with an option, they follow the image's own.
        """
        engine = self.image.engine
        config = json.loads(engine.said("inspect", "--type", "image", self.image.name))
        image = config["OCIv1"]["config"]
        own = image["Cmd"] if not arguments or arguments[0].startswith("-") else ()
        mount = ("--volume", f"{self.folder}:/data")
        program = (*image["Entrypoint"], *own, *arguments)
        return engine.words("run", *_CHROOT, *mount, self.name, "--", *program)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Start the image's program and wait for its end."""
        return subprocess.run(
            self.words(*arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


_CHROOT = ("--isolation", "chroot")


@dataclass(frozen=True)
class Engine:
    """buildah with all its files in one folder."""

    folder: Path

    def words(self, command: str, *arguments: str) -> list[str]:
        places = ("--root", f"{self.folder}/storage", "--runroot", f"{self.folder}/run")
        return [str(BUILDAH), *places, command, *arguments]

    def said(self, command: str, *arguments: str) -> str:
        """The output of a command of buildah."""
        return _run(self.words(command, *arguments)).strip()

    def make_base(self) -> None:
        """Make the base image: a Debian with Python and pip."""
        tar = self.folder / "base.tar"
        # --mode=root, because another one would need user namespaces.
        settings = ("--mode=root", "--variant=minbase", f"--include={_PACKAGES}")
        _run([str(MMDEBSTRAP), *settings, DEBIAN, str(tar)])
        container = self.said("from", "scratch")
        self.said("add", "--quiet", container, str(tar), "/")
        # Debian's pip installs beside Debian's own packages only if it is told to.
        self.said("config", "--env", "PIP_BREAK_SYSTEM_PACKAGES=1", container)
        self.said("commit", "--quiet", container, _BASE)
        self.said("rm", container)
        tar.unlink()

    def build(self, target: str) -> Image:
        """Build a target of the Dockerfile; steps of an earlier target are not repeated."""
        name = f"localhost/fedclip-edge-{target}"
        index = os.environ.get("TORCH_INDEX", "")
        settings, paths = _pip_settings()
        (self.folder / "pip.conf").write_text(settings)
        mounts = [f"{self.folder}/pip.conf:{_PIP_CONF}:ro", *(f"{p}:{p}:ro" for p in paths)]
        self.said(
            "bud",
            *_CHROOT,
            "--layers",
            "--pull-never",
            f"--build-arg=BASE={_BASE}",
            f"--build-arg=TORCH_INDEX={index}",
            *(f"--volume={mount}" for mount in mounts),
            f"--target={target}",
            f"--tag={name}",
            str(ROOT),
        )
        return Image(self, name)


@contextlib.contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """An engine with its base image; at the end, its images and containers are deleted."""
    made = Engine(folder)
    try:
        made.make_base()
        yield made
    finally:
        for command in ("rm", "rmi"):
            subprocess.run(
                made.words(command, "--all"), stdin=subprocess.DEVNULL, check=False, timeout=600
            )
        shutil.rmtree(folder / "storage", ignore_errors=True)  # gigabytes


def _run(words: list[str]) -> str:
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def _pip_settings() -> tuple[str, list[Path]]:
    """The settings of pip on this machine as the text of a pip.conf, and the paths in them."""
    settings, paths = {}, []
    for line in _run([sys.executable, "-m", "pip", "config", "list"]).splitlines():
        key, _, quoted = line.partition("=")
        value = ast.literal_eval(quoted)
        settings[key.rpartition(".")[2]] = " ".join(value.split())
        # The pages of an index on this machine link to files beside its folder.
        paths += [Path(found).parent for found in re.findall(r"file://(/\S+)", value)]
        paths += [Path(word) for word in value.split() if word.startswith("/")]
    lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
    return f"[global]\n{lines}", [path for path in dict.fromkeys(paths) if path.exists()]
