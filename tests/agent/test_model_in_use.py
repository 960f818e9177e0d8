"""The model that answers: which one, from when on, and after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
from answer_scene import CLASSES, ENCODER, D, class_texts, fleet_model, own_model

from fedclip_edge import model_file
from fedclip_edge.agent.model_in_use import CLASSES as CLASSES_FILE
from fedclip_edge.agent.model_in_use import FLEET, OWN, ModelChoice
from fedclip_edge.model_file import TrainedModel
from fedclip_edge.records import ClassTexts


def choice(
    folder: Path, *, encoder: str = ENCODER, classes: ClassTexts = CLASSES, wants_own: bool = True
) -> ModelChoice:
    return ModelChoice(folder, encoder, D, classes, wants_own=wants_own)


def write_own(folder: Path, own: TrainedModel) -> None:
    model_file.write(folder / OWN, own)


def test_zero_shot_comes_first_then_the_newest_model_of_the_fleet(tmp_path: Path) -> None:
    chosen = choice(tmp_path)
    assert chosen.current.kind == "zero-shot"
    for value in (0.1, 0.2):
        trained = fleet_model(value, f"run-{value:g}".replace(".", "-"))
        chosen.adopt(trained)
        assert chosen.current.trained is trained
        assert (chosen.current.kind, chosen.current.run) == ("fleet", trained.run)
        assert chosen.fleet_version == trained.version


def test_a_restart_answers_with_the_same_model(tmp_path: Path) -> None:
    trained = fleet_model(0.1)
    choice(tmp_path).adopt(trained)
    again = choice(tmp_path).current
    assert (again.kind, again.run, again.version) == ("fleet", trained.run, trained.version)
    assert again.trained is not None
    assert {n: t.tobytes() for n, t in again.trained.model.parameters.items()} == {
        n: t.tobytes() for n, t in trained.model.parameters.items()
    }


def test_a_model_for_another_encoder_does_not_answer(tmp_path: Path) -> None:
    choice(tmp_path).adopt(fleet_model(0.1))
    assert choice(tmp_path, encoder="f" * 64).current.kind == "zero-shot"


def test_with_new_classes_the_model_answers_with_its_own_until_the_next(tmp_path: Path) -> None:
    choice(tmp_path).adopt(fleet_model(0.1))
    more = class_texts("circle", "square", "triangle", "star")
    chosen = choice(tmp_path, classes=more)
    assert chosen.current.kind == "fleet"
    assert chosen.current.classes.names == CLASSES.names
    chosen.adopt(fleet_model(0.2, "run-2", more))
    assert chosen.current.classes.names == more.names
    assert choice(tmp_path, classes=more).current.run == "run-2"


def test_the_own_model_answers_while_the_fleets_model_in_it_is_the_one_in_use(
    tmp_path: Path,
) -> None:
    chosen, first = choice(tmp_path), fleet_model(0.1)
    chosen.adopt(first)
    write_own(tmp_path, own_model(first))
    assert chosen.current.kind == "fleet"
    chosen.look()
    assert (chosen.current.kind, chosen.current.run) == ("own", "run-1")
    assert choice(tmp_path).current.kind == "own"
    assert choice(tmp_path, wants_own=False).current.kind == "fleet"
    second = fleet_model(0.2, "run-2")
    chosen.adopt(second)  # its own model is not made yet
    assert (chosen.current.kind, chosen.current.run) == ("fleet", "run-2")
    write_own(tmp_path, own_model(second))
    chosen.look()
    assert (chosen.current.kind, chosen.current.run) == ("own", "run-2")
    (tmp_path / OWN).unlink()
    chosen.look()
    assert chosen.current.kind == "fleet"


@pytest.mark.parametrize("damaged", [FLEET, CLASSES_FILE])
@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_a_damaged_file_is_reported_and_zero_shot_answers(
    tmp_path: Path,
    damaged: str,
    content: bytes | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    choice(tmp_path).adopt(fleet_model(0.1))
    path = tmp_path / damaged
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    assert choice(tmp_path).current.kind == "zero-shot"
    assert capsys.readouterr().out.count("model_file_not_used") == 1


def test_a_damaged_own_model_is_reported_once_and_the_fleets_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = choice(tmp_path)
    chosen.adopt(fleet_model(0.1))
    (tmp_path / OWN).write_bytes(b"not a model")
    for _ in range(3):
        chosen.look()
    assert chosen.current.kind == "fleet"
    assert capsys.readouterr().out.count("model_file_not_used") == 1


def test_files_of_two_models_are_never_mixed(tmp_path: Path) -> None:
    """As after a kill between the two writes of `adopt`."""
    more = class_texts("circle", "square", "triangle", "star")
    choice(tmp_path).adopt(fleet_model(0.1))
    before = (tmp_path / FLEET).read_bytes()
    choice(tmp_path, classes=more).adopt(fleet_model(0.2, "run-2", more))
    (tmp_path / FLEET).write_bytes(before)
    assert choice(tmp_path, classes=more).current.kind == "zero-shot"


def test_a_model_that_cannot_be_written_is_used_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = choice(tmp_path)
    (tmp_path / FLEET).mkdir()
    (tmp_path / FLEET / "in the way").touch()
    trained = fleet_model(0.1)
    chosen.adopt(trained)
    assert chosen.current.trained is trained
    assert "model_not_written" in capsys.readouterr().out
