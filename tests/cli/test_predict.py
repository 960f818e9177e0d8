"""The command `fedclip-edge predict`."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import system
from click.testing import CliRunner, Result
from PIL import Image
from terminal import shown_on_terminal
from trained_run import write_mixed

from fedclip_edge import model_file
from fedclip_edge.cli.predict import predict
from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import ConfigError, DataError
from fedclip_edge.learning.unknown import GAIN, Rule, with_rule
from fedclip_edge.model_file import TrainedModel
from fedclip_edge.prediction import Prediction, find_pictures, predict_pictures
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.encoder import open_encoder

NAMES = ("circle", "square", "triangle")


@pytest.fixture
def model(trained: TrainedModel, tmp_path: Path) -> Path:
    path = tmp_path / "models" / "run.safetensors"
    model_file.write(path, trained)
    return path


def typed(bundle: Bundle, *words: str | float | Path) -> Result:
    return CliRunner().invoke(predict, ["--bundle", str(bundle.folder), *map(str, words)])


def expected(bundle: Bundle, pictures: Path, trained: TrainedModel) -> list[Prediction]:
    asked, _ = find_pictures([pictures], NAMES)
    encoder, preprocessing = open_encoder(bundle, EncoderConfig()), bundle.manifest.preprocessing
    found = predict_pictures(
        asked, encoder, preprocessing, bundle.classes, trained.model, EncoderConfig()
    )
    return [result for result in found if isinstance(result, Prediction)]


def test_a_table_with_the_zero_shot_label_beside_the_adapted_one(
    random_bundle: Bundle, pictures: Path, trained: TrainedModel, model: Path
) -> None:
    done = typed(random_bundle, pictures, "--model", model)
    assert done.exit_code == 0, done.output
    head, *rows, empty, summary, accuracy, caution = done.stdout.splitlines()
    assert head.split() == ["picture", "adapted", "zero-shot"]
    made = expected(random_bundle, pictures, trained)
    for row, one in zip(rows, made, strict=True):
        path, adapted, share, _, zero_shot, other, _ = row.split()
        assert one.adapted is not None
        assert path == str(one.asked.path)
        assert adapted == NAMES[one.adapted.argmax()]
        assert float(share) == pytest.approx(100 * one.adapted.max(), abs=0.06)
        assert zero_shot == NAMES[one.zero_shot.argmax()]
        assert float(other) == pytest.approx(100 * one.zero_shot.max(), abs=0.06)
    assert empty == ""
    assert summary == "15 pictures; run-1234abcd, round 1 of 1 (fedclip)"
    shares = {
        name: 100 * float(np.mean([v.argmax() == o.asked.truth for v, o in zip(values, made)]))  # noqa: B905
        for name, values in {
            "adapted": [one.adapted for one in made if one.adapted is not None],
            "zero-shot": [one.zero_shot for one in made],
        }.items()
    }
    said = ", ".join(f"{name} {share:.1f} %" for name, share in shares.items())
    assert accuracy == f"accuracy on the 15 in class folders: {said}"
    assert "is too high if some of them were training" in caution
    assert shares["adapted"] > shares["zero-shot"]


def test_without_a_model_it_is_zero_shot_and_says_so(random_bundle: Bundle, pictures: Path) -> None:
    done = typed(random_bundle, pictures / "square")
    head, *_, summary, accuracy = done.stdout.splitlines()
    assert head.split() == ["picture", "zero-shot"]
    assert summary == "5 pictures; zero-shot (no --model given)"
    assert accuracy.startswith("accuracy on the 5 in class folders: zero-shot ")


def test_a_csv_file(
    random_bundle: Bundle, pictures: Path, trained: TrainedModel, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.csv"
    done = typed(random_bundle, pictures, "--model", model, "--out", out, "--top", 2)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[:1] == [f"Wrote {out}"]
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert list(rows[0]) == [
        "picture",
        "label",
        "probability",
        "label_2",
        "probability_2",
        "zero_shot",
        "zero_shot_probability",
        "truth",
    ]
    for row, one in zip(rows, expected(random_bundle, pictures, trained), strict=True):
        assert one.adapted is not None
        assert one.asked.truth is not None
        order = (-one.adapted).argsort()
        assert (row["label"], row["label_2"]) == (NAMES[order[0]], NAMES[order[1]])
        assert float(row["probability_2"]) == pytest.approx(float(one.adapted[order[1]]), abs=1e-5)
        assert row["zero_shot"] == NAMES[one.zero_shot.argmax()]
        assert row["truth"] == NAMES[one.asked.truth]
        assert row["picture"] == str(one.asked.path)


def test_a_folder_is_no_csv_file(random_bundle: Bundle, pictures: Path) -> None:
    """The error comes before any picture is encoded."""
    done = typed(random_bundle, pictures, "--out", pictures)
    assert done.exit_code == 2
    assert "is a directory" in done.output


def test_json_lines(random_bundle: Bundle, pictures: Path, model: Path) -> None:
    done = typed(random_bundle, pictures, "--model", model, "--json", "--top", 9)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 15
    for line in found:
        assert set(line["top"]) == set(NAMES)
        assert line["label"] == max(line["top"], key=line["top"].__getitem__)
        assert line["probability"] == line["top"][line["label"]]
        assert line["zero_shot"] in NAMES
        assert line["truth"] == Path(line["picture"]).parent.name
    assert "15 pictures" in done.stderr


def test_no_accuracy_where_no_folder_names_a_class(random_bundle: Bundle, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    done = typed(random_bundle, tmp_path / "a.png")
    assert done.exit_code == 0
    assert "accuracy on" not in done.output
    assert "1 picture; zero-shot" in done.stdout


def test_what_cannot_be_read_is_named_and_counted(random_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("a letter")
    done = typed(random_bundle, tmp_path)
    assert isinstance(done.exception, DataError)
    assert "none of the pictures could be read" in str(done.exception)
    Image.new("RGB", (40, 30)).save(tmp_path / "b.png")
    done = typed(random_bundle, tmp_path, "--out", tmp_path / "p.csv")
    assert done.exit_code == 0
    assert f"skipped {tmp_path / 'a.png'}: it is not a picture" in done.stderr
    assert "1 picture, 1 skipped" in done.stdout
    again = typed(random_bundle, tmp_path)
    assert "1 picture, 1 of them not encoded again, 1 skipped" in again.stdout


def test_a_pipe_is_not_read(random_bundle: Bundle, tmp_path: Path) -> None:
    """Reading it would never end."""
    os.mkfifo(tmp_path / "pipe.png")
    reason = "it is a pipe, a socket or a device, not a file"
    ended = system.run("predict", tmp_path / "pipe.png", "--bundle", random_bundle.folder)
    assert ended.returncode == DataError.exit_code
    assert f"(skipped {tmp_path / 'pipe.png'}: {reason})" in ended.stderr
    Image.new("RGB", (40, 30)).save(tmp_path / "b.png")
    done = typed(random_bundle, tmp_path / "b.png", tmp_path / "pipe.png", "/dev/zero")
    assert done.exit_code == 0, done.output
    assert f"skipped {tmp_path / 'pipe.png'}: {reason}" in done.stderr
    assert f"skipped /dev/zero: {reason}" in done.stderr
    assert "1 picture, 2 skipped" in done.stdout


def test_a_note_about_the_cache_comes_before_the_table(
    random_bundle: Bundle, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "b.png")
    done = typed(random_bundle, tmp_path / "b.png", "--cache", "/proc/none/f.sqlite")
    assert done.exit_code == 0, done.output
    assert done.output.index("Note: goes on without") < done.output.index("picture ")


def test_what_a_folder_has_beside_pictures_is_listed(random_bundle: Bundle, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "b.png")
    for number in range(30):
        (tmp_path / f"x{number:02}.png").write_text("a letter")
    (tmp_path / "usb").symlink_to(tmp_path / "unplugged")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "n.txt").write_text("bought in May")
    done = typed(random_bundle, tmp_path, "--out", tmp_path / "p.csv")
    assert done.exit_code == 0
    lines = done.stderr.splitlines()
    gone = f"it is a link to {tmp_path / 'unplugged'}, which does not exist"
    assert f"skipped {tmp_path / 'usb'}: {gone}" in lines
    assert f"skipped {tmp_path / 'loop'}: it leads back to a folder that it is in" in lines
    assert sum(line.startswith("skipped ") for line in lines) == 11
    assert "skipped 22 more, 32 in all" in lines
    assert f"ignored 1 file that is not a picture (.txt), such as {tmp_path / 'n.txt'}" in lines
    assert "1 picture, 32 skipped" in done.stdout


def test_a_name_that_no_terminal_shows(random_bundle: Bundle, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\x1b[2J\n.png")  # another encoding, an escape, a line break
    Image.new("RGB", (40, 30)).save(tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / name)
    done = typed(random_bundle, tmp_path)
    assert done.exit_code == 0, done.exception
    assert "\x1b" not in done.stdout
    assert len(done.stdout.splitlines()) == 4
    typed(random_bundle, tmp_path, "--out", tmp_path / "p.csv")
    assert os.fsencode(name) in (tmp_path / "p.csv").read_bytes()


def test_a_model_of_another_fleet_is_refused(
    random_bundle: Bundle, pictures: Path, trained: TrainedModel, tmp_path: Path
) -> None:
    model_file.write(tmp_path / "a", replace(trained, encoder_id="f" * 64))
    done = typed(random_bundle, pictures, "--model", tmp_path / "a")
    assert isinstance(done.exception, ConfigError)
    assert "another encoder" in str(done.exception)


def test_a_terminal_gets_no_line_that_is_wider(
    random_bundle: Bundle, model: Path, tmp_path: Path
) -> None:
    deep = tmp_path / ("long-" * 20) / "pictures"
    write_mixed(deep, NAMES, per_class=1)
    words = ("predict", "--bundle", random_bundle.folder, "--model", model, deep)
    lines = shown_on_terminal(system.command(*words), 80, with_errors=False).splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if line.startswith("...")]
    assert [row.split()[0].rsplit("/", 2)[1] for row in rows] == list(NAMES)


def test_a_terminal_that_lacks_a_names_characters(
    random_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    Image.new("RGB", (40, 30)).save(tmp_path / "日本.png")
    (tmp_path / "壊れた.png").write_text("a letter")
    options = ("--bundle", random_bundle.folder, "--out", tmp_path / "表.csv")
    ended = system.run("predict", tmp_path, *options)
    assert ended.returncode == 0, ended.stderr
    assert f"Wrote {tmp_path}/\\u8868.csv" in ended.stdout
    assert f"skipped {tmp_path}/\\u58ca\\u308c\\u305f.png: " in ended.stderr
    table = system.run("predict", tmp_path, "--bundle", random_bundle.folder)
    assert f"{tmp_path}/\\u65e5\\u672c.png" in table.stdout


# --- pictures of none of the classes -------------------------------------------------------------


@pytest.fixture
def threshold(random_bundle: Bundle, pictures: Path, trained: TrainedModel) -> float:
    """A threshold with some pictures on both sides."""
    scores = sorted(one.score for one in expected(random_bundle, pictures, trained))
    return (scores[5] + scores[6]) / 2


@pytest.fixture
def knowing(trained: TrainedModel, threshold: float, tmp_path: Path) -> Path:
    """A model with that threshold."""
    terms = with_rule(trained.model.parameters, Rule(threshold))
    path = tmp_path / "models" / "knowing.safetensors"
    model_file.write(path, replace(trained, model=replace(trained.model, parameters=terms)))
    return path


def test_the_table_says_unknown_beside_the_most_likely_class(
    random_bundle: Bundle, pictures: Path, trained: TrainedModel, knowing: Path, threshold: float
) -> None:
    done = typed(random_bundle, pictures, "--model", knowing)
    assert done.exit_code == 0, done.output
    head, *rows, _, _, count, accuracy, _ = done.stdout.splitlines()
    assert head.split() == ["picture", "adapted", "zero-shot"]
    said = {}
    for row, one in zip(rows, expected(random_bundle, pictures, trained), strict=True):
        assert one.adapted is not None
        assert row.split()[1] == NAMES[one.adapted.argmax()]
        said[row.endswith("  unknown")] = True
        assert row.endswith("  unknown") == (one.score < threshold)
    assert said.keys() == {True, False}
    assert count == f"6 unknown: their scores are below {threshold:.4g}"
    assert accuracy.startswith("accuracy on the 15 in class folders: ")


def test_json_and_csv_have_the_score_too(
    random_bundle: Bundle, pictures: Path, trained: TrainedModel, knowing: Path, tmp_path: Path
) -> None:
    made = expected(random_bundle, pictures, trained)
    done = typed(random_bundle, pictures, "--model", knowing, "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(line["unknown"] for line in lines) == 6
    typed(random_bundle, pictures, "--model", knowing, "--out", tmp_path / "p.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text())))
    assert list(rows[0])[-3:] == ["unknown", "score", "truth"]
    for line, row, one in zip(lines, rows, made, strict=True):
        assert line["score"] == float(row["score"]) == pytest.approx(one.score, abs=1e-5)
        assert row["unknown"] == json.dumps(line["unknown"])


def test_a_threshold_of_the_user_replaces_the_models(
    random_bundle: Bundle, pictures: Path, model: Path, knowing: Path, threshold: float
) -> None:
    for its in (model, knowing):
        words = ("--model", its, "--unknown-below", threshold + 9)
        assert (
            "\n15 unknown: their scores are below" in typed(random_bundle, pictures, *words).stdout
        )
    zero_shot = typed(random_bundle, pictures, "--unknown-below", 9, "--json").stdout
    assert all(json.loads(line)["unknown"] for line in zero_shot.splitlines())
    both = typed(random_bundle, pictures, "--unknown-below", 9, "--no-unknown")
    assert both.exit_code == 2
    assert "Give either --unknown-below SCORE or --no-unknown." in both.output


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["table", "json"])
def test_without_a_threshold_the_output_is_as_before(
    random_bundle: Bundle, pictures: Path, model: Path, knowing: Path, options: tuple[str, ...]
) -> None:
    typed(random_bundle, pictures)  # so that both find all features in the cache
    plain = typed(random_bundle, pictures, "--model", model, *options)
    off = typed(random_bundle, pictures, "--model", knowing, "--no-unknown", *options)
    assert plain.exit_code == off.exit_code == 0
    assert plain.stdout == off.stdout
    assert "unknown" not in plain.output
    assert "score" not in plain.output


def test_a_model_with_half_a_rule_is_refused(
    random_bundle: Bundle, pictures: Path, trained: TrainedModel, tmp_path: Path
) -> None:
    terms = with_rule(trained.model.parameters, Rule(0.25))
    del terms[GAIN]
    path = tmp_path / "half.safetensors"
    model_file.write(path, replace(trained, model=replace(trained.model, parameters=terms)))
    done = typed(random_bundle, pictures, "--model", path)
    assert isinstance(done.exception, ConfigError)
    assert "has the parameters" in str(done.exception)


def test_a_narrow_terminal_has_room_for_the_word(
    random_bundle: Bundle, knowing: Path, tmp_path: Path
) -> None:
    deep = tmp_path / ("long-" * 20) / "pictures"
    write_mixed(deep, NAMES, per_class=1)
    options = ("--bundle", random_bundle.folder, "--model", knowing, "--unknown-below", "9")
    words = ("predict", *options, deep)
    lines = shown_on_terminal(system.command(*words), 80, with_errors=False).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.endswith("  unknown") for line in lines) == 3
