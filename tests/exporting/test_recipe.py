"""Recipes: their allowed contents, and models of export/ that open_clip must have."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
from checkout import ROOT
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting.recipe import PROMPT, Precision, Recipe, check_prompt, read_recipe
from fedclip_edge.exporting.torchvision_ops import declare_missing

EXPORT = ROOT / "export"
SHIPPED = sorted(set(EXPORT.glob("*.toml")) - {EXPORT / "preprocess.example.toml"})

WHOLE = """
model = "ViT-B-32-quickgelu"
pretrained = "openai"
prompts = ["a photo of a {}", "a drawing of a {}."]
precision = "int8"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_a_recipe(tmp_path: Path) -> None:
    assert read_recipe(written(tmp_path, WHOLE)) == Recipe(
        model="ViT-B-32-quickgelu",
        pretrained="openai",
        prompts=("a photo of a {}", "a drawing of a {}."),
        precision="int8",
    )


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, 'model = "RN50"\nrandom_weights = true'))
    assert recipe == Recipe("RN50", random_weights=True)
    assert (recipe.prompts, recipe.precision, recipe.like) == ((PROMPT,), "fp32", "")


@pytest.mark.parametrize("file", ["tuned.safetensors", "weights/tuned", "../tuned.pt"])
def test_files_are_relative_to_the_recipe(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    written(tmp_path / "site", f'model = "RN50"\npretrained = "{file}"\nlike = "openai"')
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(Path("site/recipe.toml"))
    assert recipe.pretrained == str(tmp_path / "site" / file)
    assert recipe.like == "openai"


def test_a_saved_model_is_relative_to_the_recipe_too(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, 'model = "local-dir:models/mine"'))
    assert recipe.model == f"local-dir:{tmp_path}/models/mine"


@pytest.mark.parametrize("path", ["/srv/tuned.pt", "~/tuned.pt"])
def test_other_paths_stay_as_they_are(tmp_path: Path, path: str) -> None:
    recipe = read_recipe(written(tmp_path, f'model = "RN50"\npretrained = "{path}"'))
    assert recipe.pretrained == path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('model = "ViT-B-32-quickgelu"', "", ": the key 'model' is missing"),
        ('"ViT-B-32-quickgelu"', '" "', ": model: expected a model name of open_clip"),
        ("pretrained =", "pretraind =", ": unknown key 'pretraind'; did you mean 'pretrained'?"),
        ("prompts =", "prompt =", ": unknown key 'prompt'; did you mean 'prompts'?"),
        ('"int8"', '"int4"', ": precision: expected 'fp32' or 'fp16' or 'int8' or 'int8-weights'"),
        ("precision =", "random_weights = true\nprecision =", ": random_weights and pretr"),
        ('["a photo of a {}", "a drawing of a {}."]', "[]", ": prompts: expected one or more"),
        (
            '"a drawing of a {}."',
            '"a drawing"',
            ": the prompt 'a drawing' needs exactly one {} for",
        ),
        ('"a drawing of a {}."', '"{} or {}"', ": the prompt '{} or {}' needs exactly one {} for"),
        ('"a drawing of a {}."', "1", ": prompts: expected str, got int 1"),
        (
            '"openai"',
            "openai",
            ", line 3 (pretrained = openai) is not valid TOML: text needs quotes",
        ),
    ],
)
def test_names_what_is_wrong(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert WHOLE.count(old) == 1
    path = written(tmp_path, WHOLE.replace(old, new))
    with pytest.raises(ConfigError) as refused:
        read_recipe(path)
    assert str(refused.value).startswith(f"{path}{said}")


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml does not exist"):
        read_recipe(tmp_path / "gone.toml")


@given(st.text(max_size=20), st.integers(0, 3))
def test_a_prompt_has_one_place_for_the_name(text: str, places: int) -> None:
    words = text.replace("{", "").replace("}", "")
    prompt = words + places * f"{{}}{words}"
    if places == 1:
        check_prompt(prompt)
        assert Recipe("m", prompts=(prompt,)).prompts == (prompt,)
    else:
        with pytest.raises(ValueError, match=r"exactly one \{\} for the class name"):
            Recipe("m", prompts=(PROMPT, prompt))


# The recipes that ship with the project.
NAMES = {
    "mobileclip-s1",
    "mobileclip-s2",
    "mobileclip2-s0",
    "rn50",
    "vit-b-16",
    "vit-b-16-siglip",
    "vit-b-16-siglip2",
    "vit-b-32",
    "vit-l-14",
}


def test_the_shipped_recipes_are_those_the_team_stands_behind() -> None:
    assert {path.stem for path in SHIPPED} == NAMES


@pytest.fixture(scope="module")
def open_clip() -> Any:
    declare_missing()
    return pytest.importorskip("open_clip")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_names_a_model_and_a_tag_of_open_clip(path: Path, open_clip: Any) -> None:
    recipe = read_recipe(path)
    assert recipe.pretrained in open_clip.list_pretrained_tags_by_model(recipe.model)
    assert recipe.precision in get_args(Precision)
    assert path.stem == recipe.model.lower().removesuffix("-quickgelu")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_runs_the_activation_its_weights_were_trained_with(
    path: Path, open_clip: Any
) -> None:
    recipe = read_recipe(path)
    trained = open_clip.get_pretrained_cfg(recipe.model, recipe.pretrained)
    configured = open_clip.get_model_config(recipe.model)
    assert trained.get("quick_gelu", False) == configured.get("quick_gelu", False)
    # Proof that this test can fail: OpenAI's weights with the plain model name do not match.
    plain = open_clip.get_pretrained_cfg("ViT-B-32", "openai")
    assert plain["quick_gelu"] != open_clip.get_model_config("ViT-B-32").get("quick_gelu", False)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_says_what_it_is_for(path: Path, open_clip: Any) -> None:
    text = path.read_text(encoding="utf-8")
    head = [line for line in text.splitlines() if line.startswith("#")]
    for word in ("For ", "Picture ", "Weights "):
        assert any(line.startswith(f"# {word}") for line in head), word
    configured = open_clip.get_model_config(read_recipe(path).model)
    side = configured["vision_cfg"]["image_size"]
    assert f"{side} x {side}" in text
    assert f"features {configured['embed_dim']} wide" in text


def test_no_tag_of_open_clip_is_taken_for_a_file(open_clip: Any, tmp_path: Path) -> None:
    for _, tag in open_clip.list_pretrained():
        path = written(tmp_path, f'model = "RN50"\npretrained = "{tag}"')
        assert read_recipe(path).pretrained == tag


def test_every_field_of_a_recipe_can_be_written_in_a_file(tmp_path: Path) -> None:
    values = {"model": '"m"', "pretrained": '""', "random_weights": "true", "like": '""'}
    values |= {"prompts": '["a {}"]', "precision": '"fp16"'}
    assert set(values) == {f.name for f in dataclasses.fields(Recipe)}
    text = "\n".join(f"{name} = {value}" for name, value in values.items())
    assert read_recipe(written(tmp_path, text)).precision == "fp16"
