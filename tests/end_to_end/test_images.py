"""The Dockerfile's images: built step by step, and one run in containers of them.

`make test-docker` runs this file; it takes ten minutes or more, and downloads what pip needs.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import images
import pytest
from images import Engine, Image
from system import running, write_pictures

from fedclip_edge import model_file
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.vision.bundle import Bundle, read_bundle

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(bool(images.why_not()), reason=images.why_not()),
    pytest.mark.timeout(5400),
]
DEADLINE_S = 1200


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with images.engine(tmp_path_factory.mktemp("images")) as made:
        yield made


@pytest.fixture(scope="module")
def exporter(engine: Engine) -> Image:
    return engine.build("export")


@pytest.fixture(scope="module")
def tiny(exporter: Image, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo's bundle, exported in a container."""
    folder = tmp_path_factory.mktemp("export")
    done = exporter.container(folder).run("export", "tiny", "--out", "bundle")
    assert done.returncode == 0, done.stderr
    return read_bundle(folder / "bundle")


def test_the_export_image_exports_a_model(exporter: Image, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    container = exporter.container(tmp_path)
    helped = container.run()
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "Export an image encoder and class texts to a bundle." in helped.stdout
    words = ("ViT-B-32", "--random-weights", "--classes", "classes.txt", "--out", "bundle")
    done = container.run("export", *words)
    assert done.returncode == 0, done.stderr
    assert read_bundle(tmp_path / "bundle").classes.names == ("ant", "bee")


def test_agents_and_a_coordinator_in_their_images_finish_a_run(
    engine: Engine, tiny: Bundle, mosquitto: BrokerAddress, tmp_path: Path
) -> None:
    server, agent = engine.build("coordinator"), engine.build("agent")
    broker = f"[broker]\nport = {mosquitto.port}\n"  # containers with chroot share the network
    place = tmp_path / "coordinator"
    place.mkdir()
    shutil.copytree(tiny.folder, place / "bundle")
    (place / "fleet.toml").write_text(
        f'fleet = "images"\nbundle = "bundle"\n{broker}'
        f"[rules]\ndevices = 2\nquorum = 1.0\ndeadline_s = {DEADLINE_S}\n"
        '[plan]\nmethod = "fedclip"\nrounds = 1\n'
    )
    programs = [(server, place)]
    for number, name in enumerate(("cam-01", "cam-02")):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copytree(tiny.folder, folder / "bundle")
        write_pictures(folder / "pictures", tiny.classes.names[:3], 12, number)
        (folder / "agent.toml").write_text(
            f'id = "{name}"\nfleet = "images"\nbundle = "bundle"\nstate_dir = "state"\n'
            f'[data]\nfolder = "pictures"\n{broker}'
        )
        programs.append((agent, folder))
    with contextlib.ExitStack() as ends:
        started = [start(ends, *program) for program in programs]
        for process in started:
            assert process.wait(DEADLINE_S) == 0, logs(tmp_path)
    (model,) = (place / "models").glob("*.safetensors")
    assert model_file.read(model).encoder_id == tiny.manifest.encoder_id
    assert model.stat().st_uid == place.stat().st_uid != 0  # the image's own user wrote it


def start(ends: contextlib.ExitStack, image: Image, folder: Path) -> subprocess.Popen[bytes]:
    file = ends.enter_context(folder.with_suffix(".log").open("wb"))
    words = image.container(folder).words("--once", "--json")
    process = ends.enter_context(
        running(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout_s=2 * DEADLINE_S)
    )
    ends.callback(end, process)
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program in its container: buildah hands SIGTERM on, but cannot hand on SIGKILL."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(60)


def logs(folder: Path) -> str:
    return "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("*.log")))
