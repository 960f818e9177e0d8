"""The drawn world: a seed determines each picture, and folders are complete or absent."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT
from PIL import Image

from fedclip_edge.demo import world
from fedclip_edge.demo.world import CLASSES, SEEN, STYLES, UNSEEN, caption, draw, write_pictures
from fedclip_edge.errors import ConfigError

_DIGEST = """
import hashlib
from fedclip_edge.demo.world import CLASSES, STYLES, draw
digest = hashlib.sha256()
for style in STYLES:
    for class_name in CLASSES:
        digest.update(draw(class_name, style, 7).tobytes())
print(digest.hexdigest())
"""


def test_names() -> None:
    assert len(set(CLASSES)) == len(CLASSES) == 10
    assert list(CLASSES) == sorted(CLASSES)
    assert STYLES == SEEN + UNSEEN
    assert len(set(STYLES)) == len(STYLES)
    assert SEEN == ("photo", "painting", "poster")
    assert {"sketch", "cartoon"} <= set(UNSEEN)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("class_name", CLASSES)
def test_a_picture_depends_on_its_seed_alone(class_name: str, style: str) -> None:
    picture = draw(class_name, style, 3)
    assert picture.size == (64, 64)
    assert picture.mode == "RGB"
    random.seed(1)  # the global generator must not matter
    assert draw(class_name, style, 3).tobytes() == picture.tobytes()
    assert draw(class_name, style, 4).tobytes() != picture.tobytes()


def test_pictures_are_the_same_in_every_process() -> None:
    digest = hashlib.sha256()
    for style in STYLES:
        for class_name in CLASSES:
            digest.update(draw(class_name, style, 7).tobytes())
    other = subprocess.run(
        [sys.executable, "-c", _DIGEST],
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == digest.hexdigest()


def test_classes_and_styles_are_told_apart() -> None:
    pictures = {draw(c, s, 11).tobytes() for c in CLASSES for s in STYLES}
    assert len(pictures) == len(CLASSES) * len(STYLES)


@pytest.mark.parametrize("style", STYLES)
def test_every_picture_shows_something(style: str) -> None:
    for class_name in CLASSES:
        for seed in range(2):
            bands = draw(class_name, style, seed).getextrema()
            assert any(high - low > 40 for low, high in bands)  # type: ignore[misc]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="class 'horse'"):
        draw("horse", "photo", 0)
    with pytest.raises(ConfigError, match="style 'etching'"):
        draw("house", "etching", 0)
    with pytest.raises(ConfigError, match="style 'etching'"):
        caption("house", "etching", random.Random(0))
    with pytest.raises(ConfigError, match="class 'horse'"):
        world.adjectives("horse", 0)


@pytest.mark.parametrize("style", SEEN)
@pytest.mark.parametrize("class_name", CLASSES)
def test_a_caption_names_its_class_and_no_other(class_name: str, style: str) -> None:
    rng = random.Random(0)
    captions = [caption(class_name, style, rng, ("small", "red")) for _ in range(200)]
    for text in captions:
        words = text.split()
        assert class_name in words
        assert not set(words) & (set(CLASSES) - {class_name})
        assert not set(words) & (set(UNSEEN) | set(SEEN) - {style})
        assert words[-1] == class_name or words[0] in ("a", "an")
    assert any("red" in text.split() for text in captions)
    assert any("red" not in text.split() for text in captions)
    assert any(text.startswith("a picture of a ") for text in captions)
    again = random.Random(0)
    assert captions == [caption(class_name, style, again, ("small", "red")) for _ in captions]


def test_adjectives_are_words_of_the_captions() -> None:
    said = {word for c in CLASSES for seed in range(60) for word in world.adjectives(c, seed)}
    assert {"small", "big", "red", "green"} <= said
    assert all(word.isalpha() for word in said)


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_write_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "photo"
    write_pictures(folder, "photo", 2, seed=5)
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == list(CLASSES)
    for class_name in CLASSES:
        names = sorted(p.name for p in (folder / class_name).iterdir())
        assert names == ["0001.png", "0002.png"]
    assert [p.name for p in folder.parent.iterdir()] == ["photo"]  # no temporary folder is left
    with Image.open(folder / "cup" / "0002.png") as picture:
        assert picture.format == "PNG"
        pixels = picture.convert("RGB").tobytes()
    assert pixels == draw("cup", "photo", world.picture_seed("photo", 5, 1)).tobytes()
    write_pictures(tmp_path / "again", "photo", 2, seed=5)
    assert _contents(tmp_path / "again") == _contents(folder)
    write_pictures(tmp_path / "other", "photo", 2, seed=6)
    fresh, old = _contents(tmp_path / "other"), _contents(folder)
    assert not set(fresh.values()) & set(old.values())


def test_a_complete_folder_is_used_again(tmp_path: Path) -> None:
    folder = tmp_path / "poster"
    write_pictures(folder, "poster", 1, seed=0)
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    write_pictures(folder, "poster", 1, seed=0)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == times


def test_other_folders_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "poster"
    write_pictures(folder, "poster", 1, seed=0)
    before = _contents(folder)
    for style, per_class, seed in (("photo", 1, 0), ("poster", 2, 0), ("poster", 1, 1)):
        with pytest.raises(ConfigError, match="remove this one"):
            write_pictures(folder, style, per_class, seed=seed)
    marker = json.loads((folder / ".world.json").read_text(encoding="utf-8"))
    (folder / ".world.json").write_text(json.dumps({**marker, "pillow": "0.0"}), encoding="utf-8")
    with pytest.raises(ConfigError, match="remove this one"):
        write_pictures(folder, "poster", 1, seed=0)
    (folder / ".world.json").unlink()
    with pytest.raises(ConfigError, match="not a complete folder"):
        write_pictures(folder, "poster", 1, seed=0)
    assert _contents(folder) == {k: v for k, v in before.items() if k != ".world.json"}
    with pytest.raises(ConfigError, match="per_class"):
        write_pictures(tmp_path / "none", "poster", 0, seed=0)
    assert not (tmp_path / "none").exists()


def test_nothing_is_left_of_a_drawing_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(class_name: str, style: str, seed: int) -> Image.Image:
        if class_name == CLASSES[3]:
            raise KeyboardInterrupt
        return draw(class_name, style, seed)

    monkeypatch.setattr(world, "draw", broken)
    with pytest.raises(KeyboardInterrupt):
        write_pictures(tmp_path / "poster", "poster", 1, seed=0)
    assert list(tmp_path.iterdir()) == []
