"""Wrong input of a user: one sentence that says what is wrong, where, and what to do next.

test_exit_codes.py has a port that is taken, and a broker that cannot be reached.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import system
from system import Site

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import (
    BundleError,
    ConfigError,
    DataError,
    FedclipError,
    JournalError,
    LinkError,
)
from fedclip_edge.vision.bundle import Bundle

pytestmark = pytest.mark.one_python
NOBODY = BrokerAddress(port=9)  # the discard port, where no broker listens


@pytest.fixture
def site(tmp_path: Path, random_bundle: Bundle) -> Site:
    copy = tmp_path / "bundle"
    shutil.copytree(random_bundle.folder, copy)
    return Site(tmp_path, Bundle(copy, random_bundle.manifest, random_bundle.classes), NOBODY, "f")


def refused(kind: type[FedclipError], *arguments: str | Path, words: tuple[str, ...]) -> str:
    """Check that the command exits with the code of `kind` and one line with all `words`.

    Returns the line.
    """
    done = system.run(*arguments)
    assert done.returncode == kind.exit_code, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("fedclip-edge: ")
    for word in words:
        assert word in last
    return last


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("command", ["agent", "serve"])
def test_a_missing_configuration(command: str, tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    refused(ConfigError, command, path, words=(str(path), "does not exist"))


def test_a_misspelt_key_names_the_nearest(site: Site) -> None:
    agent = site.write_agent("north")
    replace(agent, "state_dir", "state_dri")
    refused(ConfigError, "agent", agent, words=(str(agent), "'state_dri'", "'state_dir'"))
    fleet = site.write_fleet(1, 1)
    replace(fleet, "deadline_s", "deadlines")
    refused(ConfigError, "serve", fleet, words=("[rules]", "'deadlines'", "'deadline_s'"))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ('strategy = "fedadm"\n', ("'fedadm'", "'fedadam'")),
        ('strategy = "krum"\n[plan.strategy_options]\nbizantine = 0.1\n', ("'byzantine'",)),
        ('strategy = "scaffold"\n', ("unknown strategy 'scaffold'", "known names: fedavg")),
        (
            'strategy = "median"\n[plan.options]\nweighting = "pictures"\n',
            ('write weighting = "uniform"',),
        ),
        ("personal_epochs = -1\n", ("personal_epochs", "0 to 1000")),
    ],
)
def test_a_strategy_that_cannot_be(site: Site, extra: str, words: tuple[str, ...]) -> None:
    refused(ConfigError, "serve", site.write_fleet(1, 1, extra), words=words)


def test_broken_toml(site: Site) -> None:
    fleet = site.write_fleet(1, 1)
    replace(fleet, "[plan]", "[plan")
    refused(ConfigError, "serve", fleet, words=(str(fleet), "TOML"))


def test_a_missing_folder_of_pictures(site: Site) -> None:
    agent = site.write_agent("north")
    shutil.rmtree(agent.parent / "pictures")
    refused(DataError, "agent", agent, words=(str(agent.parent / "pictures"),))


@pytest.mark.parametrize("content", ["nothing", "class folders", "broken pictures"])
def test_a_folder_without_a_usable_picture_yet_is_no_mistake(site: Site, content: str) -> None:
    agent = site.write_agent("north")
    if content == "nothing":
        shutil.rmtree(agent.parent / "pictures")
        (agent.parent / "pictures").mkdir()
    for picture in (agent.parent / "pictures").rglob("*.png"):
        if content == "class folders":
            picture.unlink()
        else:
            picture.write_bytes(picture.read_bytes()[:40])
    refused(LinkError, "agent", agent, words=("broker",))  # it got as far as that


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_no_picture_that_may_be_read(site: Site) -> None:
    agent = site.write_agent("north")
    for picture in (agent.parent / "pictures").rglob("*.png"):
        picture.chmod(0)
    refused(DataError, "agent", agent, words=("has a readable picture", "Permission denied"))


def test_no_folder_that_is_a_class(site: Site) -> None:
    agent = site.write_agent("north")
    for folder in (agent.parent / "pictures").iterdir():
        folder.rename(folder.with_name(folder.name.replace("e", "ee")))
    refused(DataError, "agent", agent, words=("circlee", "did you mean 'circle'?"))


def test_a_folder_of_domains(site: Site) -> None:
    agent = site.write_agent("north")
    pictures = agent.parent / "pictures"
    pictures.rename(agent.parent / "photo")
    pictures.mkdir()
    (agent.parent / "photo").rename(pictures / "photo")
    refused(
        DataError, "agent", agent, words=("its folder photo has one (circle)", "name the folder")
    )


@pytest.mark.parametrize("name", ["image_encoder.onnx", "classes.safetensors"])
def test_a_bundle_with_a_changed_byte(site: Site, name: str) -> None:
    file = site.bundle.folder / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    refused(BundleError, "agent", site.write_agent("north"), words=(name,))
    refused(BundleError, "serve", site.write_fleet(1, 1), words=(name,))


def test_no_bundle(site: Site) -> None:
    shutil.rmtree(site.bundle.folder)
    refused(BundleError, "serve", site.write_fleet(1, 1), words=(str(site.bundle.folder),))


def test_a_provider_that_is_not_here(site: Site) -> None:
    agent = site.write_agent("north")
    agent.write_text(agent.read_text() + '[encoder]\nprovider = "tensorrt"\n')
    refused(ConfigError, "agent", agent, words=("tensorrt", "cpu"))


def test_an_unknown_method_and_option(site: Site) -> None:
    fleet = site.write_fleet(1, 1, method="fedklip")
    refused(ConfigError, "serve", fleet, words=(f"{fleet} [plan]: ", "'fedklip'", "'fedclip'"))
    fleet = site.write_fleet(1, 1, extra="[plan.options]\nlearning_rate = 0.1\n")
    refused(ConfigError, "serve", fleet, words=(f"{fleet} [plan]: ", "'learning_rate'"))


def test_a_trainer_of_another_fleet(site: Site) -> None:
    trainer = site.write_agent("judge", extra='roles = ["evaluate"]')
    replace(trainer, 'fleet = "f"', 'fleet = "g"')
    fleet = site.write_fleet(1, 1, extra='[trainer]\nconfig = "judge/agent.toml"\n')
    refused(ConfigError, "serve", fleet, words=(str(trainer), "'g'", "'f'"))


def test_a_broker_host_that_is_no_name(site: Site) -> None:
    agent = site.write_agent("north")
    replace(agent, "[broker]\n", '[broker]\nhost = "broker..local"\n')
    refused(ConfigError, "agent", agent, words=("broker..local", "[broker]"))


@pytest.mark.parametrize(
    ("content", "word"), [("a letter, by mistake" * 100, "not a database"), ("", "0 bytes")]
)
def test_a_journal_that_is_no_journal(site: Site, content: str, word: str) -> None:
    fleet = site.write_fleet(1, 1)
    (site.folder / "journal.sqlite").write_text(content)
    refused(
        JournalError, "serve", fleet, words=("journal.sqlite", word, "set 'journal' to another")
    )


@pytest.mark.parametrize(
    ("shape", "word"),
    [("missing", "does not exist"), ("empty", "no domain"), ("one-domain", "only one domain")],
)
def test_a_demo_on_no_data(site: Site, shape: str, word: str) -> None:
    data = site.folder / "data"
    if shape != "missing":
        data.mkdir()
    if shape == "one-domain":
        system.write_pictures(data / "cartoon", site.bundle.classes.names, 1, 0)
    out = site.folder / "out"
    refused(
        DataError, "demo", "--data", data, "--bundle", site.bundle.folder, "--out", out,
        words=("data", word),
    )  # fmt: skip
    assert not out.exists()


def test_a_demo_that_holds_out_an_unknown_domain(site: Site) -> None:
    out = site.folder / "out"
    refused(
        ConfigError, "demo", "--hold-out", "cartoons", "--out", out, words=("cartoon", "sketch")
    )
    assert not out.exists()


def test_a_demo_into_a_folder_of_something_else(site: Site) -> None:
    out = site.folder / "thesis"
    out.mkdir()
    (out / "chapter.txt").write_text("mine")
    refused(ConfigError, "demo", "--out", out, words=(str(out),))
    assert [path.name for path in out.iterdir()] == ["chapter.txt"]


def test_a_demo_with_pictures_but_no_encoder(site: Site) -> None:
    data = site.folder / "data"
    for domain in ("a", "cartoon"):
        (data / domain).mkdir(parents=True)
    refused(ConfigError, "demo", "--data", data, "--out", site.folder / "out", words=("--bundle",))


def test_a_demo_with_a_damaged_bundle_leaves_nothing(site: Site) -> None:
    data = site.folder / "data"
    for domain in ("a", "cartoon"):
        system.write_pictures(data / domain, site.bundle.classes.names, 3, 0)
    (site.bundle.folder / "manifest.json").write_text("{")
    out = site.folder / "out"
    refused(
        BundleError, "demo", "--data", data, "--bundle", site.bundle.folder, "--out", out,
        words=("manifest.json",),
    )  # fmt: skip
    assert not out.exists()


def test_a_demo_with_a_domain_without_pictures(site: Site) -> None:
    data = site.folder / "data"
    for domain in ("a", "cartoon"):
        system.write_pictures(data / domain, site.bundle.classes.names, 3, 0)
    for picture in (data / "a").rglob("*.png"):
        picture.unlink()
    out = site.folder / "out"
    refused(
        DataError, "demo", "--data", data, "--bundle", site.bundle.folder, "--out", out,
        words=("square", str(data / "a"), "it has no picture"),
    )  # fmt: skip
    assert not out.exists()


def test_a_demo_with_the_pictures_of_one_device(site: Site) -> None:
    """The message is about the folder, not about --hold-out, which nobody gave."""
    data = site.folder / "data"
    system.write_pictures(data, site.bundle.classes.names, 3, 0)
    out = site.folder / "out"
    said = refused(
        DataError, "demo", "--data", data, "--bundle", site.bundle.folder, "--out", out,
        words=(
            "holds class folders (circle, square, triangle)",
            "expects a folder for each domain, with a folder for each class in it",
            "fedclip-edge simulate",
        ),
    )  # fmt: skip
    assert "--hold-out" not in said
    assert not out.exists()


def test_a_demo_with_an_option_that_is_none() -> None:
    done = system.run("demo", "--option", "lr")
    assert done.returncode == 2
    assert "NAME=VALUE" in done.stderr


def test_a_misspelt_method_in_a_devices_list_names_the_nearest(site: Site) -> None:
    agent = site.write_agent("north", extra='methods = ["ridge", "fedclop"]')
    words = ("methods", "unknown method 'fedclop'", "did you mean 'fedclip'?")
    refused(ConfigError, "agent", agent, words=words)
    assert not (agent.parent / "state").exists(), "it ends before it encodes a picture"
