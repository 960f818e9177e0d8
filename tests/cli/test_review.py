"""The command `fedclip-edge review`."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fedclip_edge.agent import review_files
from fedclip_edge.agent.review import Review, ToLabel
from fedclip_edge.cli.review import review
from fedclip_edge.errors import ConfigError
from fedclip_edge.vision.bundle import Bundle


@pytest.fixture
def config(random_bundle: Bundle, pictures: Path, tmp_path: Path) -> Path:
    """The agent.toml of a device with labelled pictures, and three in its inbox."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    files = sorted(path for path in pictures.rglob("*") if path.is_file())
    for name in files[:3]:
        (inbox / f"new-{name.name}").write_bytes(name.read_bytes() + b"\n")  # another hash
    shutil.copy(files[0], inbox / "copy.png")
    path = tmp_path / "agent.toml"
    path.write_text(
        f"""id = "cam-01"
fleet = "demo"
bundle = "{random_bundle.folder}"
state_dir = "state"
[data]
folder = "{pictures}"
[inbox]
folder = "inbox"
"""
    )
    return path


def typed(*words: str | Path) -> Result:
    return CliRunner().invoke(review, [*map(str, words)])


def test_the_tables_say_what_to_do(config: Path) -> None:
    done = typed(config)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "15 labelled and 3 unlabelled pictures"
    for title in ("label next", "these labels look wrong", "classes"):
        assert title in lines
    assert lines[-1] == f"all of it is in {config.parent / 'state' / 'review'}"


def test_the_files_have_what_json_has(config: Path) -> None:
    done = typed(config, "--json", "--most", "2")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    folder = Path(found["folder"])
    for name in ("label_next", "looks_mislabelled", "classes"):
        with (folder / f"{name.replace('_', '-')}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(found[name])
        assert [row.get("path", row.get("name")) for row in rows] == [
            one.get("path", one.get("name")) for one in found[name]
        ]
    assert len(found["label_next"]) <= 2
    assert [one["pictures"] for one in found["classes"]] == [5, 5, 5]


def test_a_copy_without_a_label_after_other_pictures_counts_as_labelled(config: Path) -> None:
    inbox = config.parent / "inbox"
    (inbox / "copy.png").rename(inbox / "z.png")
    assert typed(config).stdout.splitlines()[0] == "15 labelled and 3 unlabelled pictures"


def test_names_that_are_not_text_are_shown_and_written(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = config.parent / "inbox" / os.fsdecode(b"caf\xe9\n\x1b.png")
    found = Review((ToLabel(odd, "unsure", "circle", 0.5, 0.1),), (), (), 1, 0)
    monkeypatch.setattr(review_files, "review_device", lambda *_: (found, ()))
    done = typed(config)
    assert done.exit_code == 0, done.output
    assert r"caf\udce9\n\x1b.png" in done.stdout
    assert "\x1b" not in done.stdout
    listed = (config.parent / "state" / "review" / "label-next.csv").read_bytes()
    assert os.fsencode(odd) in listed
    assert json.loads(typed(config, "--json").stdout)["label_next"][0]["path"] == str(odd)


def test_a_device_without_a_bundle(config: Path) -> None:
    key = "0" * 64
    words = [line for line in config.read_text().splitlines() if not line.startswith("bundle")]
    config.write_text("\n".join([f'export_key = "{key}"', *words]))
    done = typed(config)
    assert isinstance(done.exception, ConfigError)
    assert "has no bundle yet; start its agent" in str(done.exception)
