"""Names of models and weights: found, or refused with a list; the activation must match."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import small_models

from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting import sources
from fedclip_edge.exporting.recipe import Source
from fedclip_edge.exporting.sources import find
from fedclip_edge.exporting.torchvision_ops import declare_missing


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with small_models.registered(tmp_path_factory.mktemp("configs")):
        yield


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"")
    return str(path)


@pytest.mark.parametrize(
    ("model", "interpolation", "resize", "mean"),
    [
        ("ViT-B-16-SigLIP", "bicubic", "squash", 0.5),
        ("ViT-B-16-SigLIP2", "bicubic", "squash", 0.5),
        ("MobileCLIP-S1", "bilinear", "shortest", 0.0),
        ("MobileCLIP2-S0", "bilinear", "shortest", 0.0),
        ("ViT-B-32-quickgelu", "bicubic", "shortest", 0.48145466),
        ("ViT-L-14", "bicubic", "shortest", 0.48145466),
    ],
)
def test_preprocessing_is_that_of_open_clips_tags(
    model: str, interpolation: str, resize: str, mean: float
) -> None:
    found = find(Source(model, random_weights=True))
    assert found.label == "random"
    assert found.preprocessing["interpolation"] == interpolation
    assert found.preprocessing["resize_mode"] == resize
    assert found.preprocessing["mean"][0] == mean


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source("ViT-B32"), r"no model 'ViT-B32'; did you mean .*ViT-B-32"),
        (Source("vit-b/32"), "did you mean ViT-B-32 or"),
        (Source("zzz"), r"list_models\(\) lists them\. .* local-dir:FOLDER"),
        (Source("hf-hub:org/model"), "no model 'hf-hub:org/model'"),
        (Source("ViT-B-32"), r"needs weights: give --pretrained TAG \(openai, .*, \.\.\.\) or"),
        (Source("ViT-S-32"), "needs weights: give --pretrained FILE; --random-weights is for"),
        (
            Source("ViT-B-32", "laion2b"),
            r"laion2b is not a tag of ViT-B-32: did you mean laion2b_e16\? Its tags are openai, ",
        ),
        (Source("ViT-S-32", "laion2b"), "open_clip has no weights for it; laion2b is a tag of"),
        (Source("ViT-B-16", "webli"), "webli is a tag of .*SigLIP"),
        (
            Source("ViT-B-32", "nowhere.pt"),
            r"nowhere\.pt does not exist; give a file of weights or a tag",
        ),
        (Source("ViT-S-32", "a/b"), "a/b does not exist; give a file of weights$"),
        (Source("ViT-B-32", "laion2b_e16", like="openai"), "--like openai is only for a file"),
        (Source("local-dir:x", random_weights=True), "has its own weights"),
        (Source("local-dir:x", "openai"), "has its own weights"),
    ],
)
def test_what_names_nothing_is_answered_with_what_there_is(source: Source, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find(source)


@pytest.mark.parametrize(
    ("model", "tag", "name"),
    [
        ("ViT-B-32", "openai", "ViT-B-32-quickgelu"),
        ("ViT-B-32", "OpenAI", "ViT-B-32-quickgelu"),
        ("ViT-B-16", "dfn2b", "ViT-B-16-quickgelu"),
        ("RN50", "yfcc15m", "RN50-quickgelu"),
        ("ViT-H-14-worldwide", "metaclip2_worldwide", "ViT-H-14-worldwide-quickgelu"),
        ("small", "quick_e1", "small-quickgelu"),
    ],
)
def test_quick_gelu_weights_never_run_under_gelu(model: str, tag: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"trained with QuickGELU.*export {name} instead"):
        find(Source(model, tag))


@pytest.mark.parametrize(
    ("model", "tag", "name"),
    [("ViT-B-32-quickgelu", "laion2b_e16", "ViT-B-32"), ("small-quickgelu", "plain_e1", "small")],
)
def test_gelu_weights_never_run_under_quick_gelu(model: str, tag: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{tag} is a tag of {name}, not of {model}"):
        find(Source(model, tag))


def test_every_tag_of_open_clip_runs_under_its_activation_or_is_refused() -> None:
    """Law: a tag with another activation passes only if open_clip has no other name for it."""
    declare_missing()
    import open_clip

    passed = []
    for model, tag in open_clip.list_pretrained():
        config = open_clip.get_pretrained_cfg(model, tag)
        if bool(config.get("quick_gelu")) != sources.has_quick_gelu(model):
            try:
                sources.check_activation(model, tag)
            except ConfigError:
                continue
            passed.append((model, tag))
    assert passed == [("roberta-ViT-B-32", "laion2b_s12b_b32k")]


def test_a_file_has_the_preprocessing_that_all_fitting_tags_share(file: str) -> None:
    found = find(Source("small", file))
    assert (found.label, str(found.file)) == ("file", file)
    assert found.preprocessing["resize_mode"] == "squash"
    assert find(Source("ViT-S-32", file)).preprocessing == {}  # the defaults of open_clip


def test_a_file_says_which_tag_it_is_like_where_tags_disagree(file: str) -> None:
    with pytest.raises(ConfigError, match=r"give --like TAG, .* \(first, second\)"):
        find(Source("small-larger-pictures", file))
    found = find(Source("small-larger-pictures", file, like="second"))
    assert found.preprocessing["mean"] == (0.1, 0.2, 0.3)
    with pytest.raises(
        ConfigError, match=r"--like fist: not a tag of small-.*; its tags are first"
    ):
        find(Source("small-larger-pictures", file, like="fist"))
    with pytest.raises(ConfigError, match="give --like TAG"):
        find(Source("ViT-L-14", file))


def test_like_names_the_activation_too(file: str) -> None:
    with pytest.raises(ConfigError, match=r"like quick_e1 .*export small-quickgelu instead"):
        find(Source("small", file, like="quick_e1"))
    with pytest.raises(ConfigError, match=r"like plain_e1 .*export small instead"):
        find(Source("small-quickgelu", file, like="plain_e1"))
    assert find(Source("small-quickgelu", file, like="quick_e1")).label == "file"


@pytest.mark.parametrize("folder", ["small.quick_e1", "models--org--small.quick_e1/snapshots/0123"])
def test_a_file_in_a_copy_of_a_hubs_repository_is_known_by_its_path(
    tmp_path: Path, folder: str
) -> None:
    path = tmp_path / folder / "open_clip_model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="export small-quickgelu instead"):
        find(Source("small", str(path)))
    assert find(Source("small-quickgelu", str(path))).label == "file"
