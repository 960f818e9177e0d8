"""Weights under transformers' names: the converted model has the features of transformers' own."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from safetensors.torch import load_file, save_file

from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting.open_clip_model import load_open_clip
from fedclip_edge.exporting.recipe import Source
from fedclip_edge.exporting.torchvision_ops import declare_missing
from fedclip_edge.exporting.weights import load_weights

pytestmark = pytest.mark.one_python

END = 49407  # the end of a text, the largest token
TEXT = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 49406,
    "eos_token_id": END,
}
VISION = {
    "image_size": 32,
    "patch_size": 16,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
}


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with small_models.registered(tmp_path_factory.mktemp("configs")):
        yield


@pytest.fixture(scope="module")
def transformers() -> Any:
    declare_missing()
    return pytest.importorskip(
        "transformers", reason="transformers is not installed; the extra [dev] has it"
    )


def clip_model(transformers: Any, activation: str, *, width: int = 64, dim: int = 32) -> Any:
    """transformers' CLIP with random weights; the image tower has `width`."""
    torch.manual_seed(3)
    config = transformers.CLIPConfig(
        text_config={**TEXT, "hidden_act": activation},
        vision_config={
            **VISION,
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_attention_heads": width // 64,
            "hidden_act": activation,
        },
        projection_dim=dim,
    )
    return randomised(transformers.CLIPModel(config))


def siglip_model(transformers: Any, activation: str) -> Any:
    torch.manual_seed(4)
    config = transformers.SiglipConfig(
        text_config={**TEXT, "max_position_embeddings": 64, "hidden_act": activation},
        vision_config={**VISION, "num_attention_heads": 2, "hidden_act": activation},
    )
    return randomised(transformers.SiglipModel(config))


def randomised(model: Any) -> Any:
    """Give every tensor its own random values, biases and norms too."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not name.startswith("logit_"):
            tensor.add_(torch.randn(tensor.shape) / math.sqrt(tensor.shape[-1]) / 2)
    return model.eval()


def pictures() -> torch.Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def tokens(length: int) -> torch.Tensor:
    """Texts of different lengths, as CLIP's tokenizer gives them."""
    made = torch.zeros(4, length, dtype=torch.int64)
    generator = torch.Generator().manual_seed(2)
    for row, words in zip(made, (1, 3, 10, length - 2), strict=True):
        row[0] = 49406
        row[1 : 1 + words] = torch.randint(1, 49000, (words,), generator=generator)
        row[1 + words] = END
    return made


def features(output: Any) -> torch.Tensor:
    """The features, which newer releases of transformers return as a part of the output."""
    return output if torch.is_tensor(output) else output.pooler_output


def assert_same_features(theirs: Any, ours: Any) -> None:
    with torch.no_grad():
        length = theirs.config.text_config.max_position_embeddings
        for made, expected in (
            (ours.encode_image(pictures()), theirs.get_image_features(pixel_values=pictures())),
            (ours.encode_text(tokens(length)), theirs.get_text_features(input_ids=tokens(length))),
        ):
            wanted = features(expected)
            gap = (made - wanted).norm(dim=1) / wanted.norm(dim=1)
            assert gap.max() < 1e-5
            assert wanted.std(dim=0).min() > 1e-3  # the features differ between pictures
        torch.testing.assert_close(ours.logit_scale.exp(), theirs.logit_scale.exp().reshape(()))


def loaded(model: str, path: Path, like: str = "") -> Any:
    clip = load_open_clip(Source(model, random_weights=True)).clip
    load_weights(clip, path, model, like)
    return clip.eval()


@pytest.mark.parametrize(
    ("activation", "model", "width", "dim"),
    [
        ("quick_gelu", "small-quickgelu", 64, 32),
        ("gelu", "small", 64, 32),
        ("gelu", "small-wider-images", 128, 48),
    ],
)
def test_clip_has_the_features_of_transformers(
    transformers: Any, tmp_path: Path, activation: str, model: str, width: int, dim: int
) -> None:
    theirs = clip_model(transformers, activation, width=width, dim=dim)
    theirs.save_pretrained(tmp_path)
    assert_same_features(theirs, loaded(model, tmp_path / "model.safetensors"))


def test_siglip_has_the_features_of_transformers(transformers: Any, tmp_path: Path) -> None:
    theirs = siglip_model(transformers, "gelu")
    theirs.save_pretrained(tmp_path)
    ours = loaded("small-siglip", tmp_path / "model.safetensors")
    assert_same_features(theirs, ours)
    torch.testing.assert_close(ours.logit_bias, theirs.logit_bias.reshape(()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_and_old_buffers_are_read_too(
    transformers: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    theirs = clip_model(transformers, "quick_gelu").to(dtype)
    for tower in (theirs.text_model, theirs.vision_model):
        places = tower.embeddings.position_embedding.num_embeddings
        tower.embeddings.register_buffer("position_ids", torch.arange(places)[None])
    assert "text_model.embeddings.position_ids" in theirs.state_dict()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    ours = loaded("small-quickgelu", tmp_path / "pytorch_model.bin")
    assert_same_features(theirs.float(), ours)


def test_a_model_in_parts_is_read_by_its_list(transformers: Any, tmp_path: Path) -> None:
    theirs = clip_model(transformers, "quick_gelu")
    theirs.save_pretrained(tmp_path, max_shard_size="1MB")
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(parts) > 1
    assert_same_features(
        theirs, loaded("small-quickgelu", tmp_path / "model.safetensors.index.json")
    )
    with pytest.raises(ConfigError, match=r"has only a part of the weights; name .*index\.json"):
        load_open_clip(Source("small-quickgelu", str(parts[0]), like="quick_e1"))
    by_folder = load_open_clip(Source("small-quickgelu", str(tmp_path)))
    assert_same_features(theirs, by_folder.clip)
    parts[0].unlink()
    with pytest.raises(
        ConfigError, match=rf"lacks 1 of the {len(parts)} files .*{parts[0].name}; copy"
    ):
        loaded("small-quickgelu", tmp_path / "model.safetensors.index.json")


def test_weights_of_a_training_program_with_transformers_names(
    transformers: Any, tmp_path: Path
) -> None:
    theirs = clip_model(transformers, "quick_gelu")
    state = {f"model.clip._orig_mod.{name}": t for name, t in theirs.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    assert_same_features(theirs, loaded("small-quickgelu", tmp_path / "last.ckpt"))


@pytest.mark.parametrize(
    ("activation", "model", "message"),
    [
        ("quick_gelu", "small", "trained with quick_gelu, .* export small-quickgelu instead"),
        (
            "gelu",
            "small-quickgelu",
            "trained with gelu, .* computes QuickGELU, .* export small inst",
        ),
    ],
)
def test_another_activation_in_config_json_is_refused(
    transformers: Any, tmp_path: Path, activation: str, model: str, message: str
) -> None:
    clip_model(transformers, activation).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        loaded(model, tmp_path / "model.safetensors")


def test_an_activation_that_nothing_states_is_refused(transformers: Any, tmp_path: Path) -> None:
    theirs = clip_model(transformers, "gelu")
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(
        ConfigError,
        match=r"config\.json is not beside it: .*export small-quickgelu instead, or copy",
    ):
        loaded("small", tmp_path / "w.safetensors")
    assert_same_features(theirs, loaded("small", tmp_path / "w.safetensors", "plain_e1"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')  # of another model
    with pytest.raises(ConfigError, match="is not beside it"):
        loaded("small", tmp_path / "w.safetensors")


def test_another_number_of_heads_is_refused(transformers: Any, tmp_path: Path) -> None:
    clip_model(transformers, "gelu").save_pretrained(tmp_path)
    table = json.loads((tmp_path / "config.json").read_text())
    table["vision_config"]["num_attention_heads"] = 4
    (tmp_path / "config.json").write_text(json.dumps(table))
    with pytest.raises(
        ConfigError, match=r"has 4 attention heads in its image tower, .* small has 1;"
    ):
        loaded("small", tmp_path / "model.safetensors")


def test_what_cannot_become_the_model_is_named(transformers: Any, tmp_path: Path) -> None:
    theirs = siglip_model(transformers, "gelu")
    theirs.save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError, match=r"another architecture than small: missing: .*unexpected: "
    ):
        loaded("small", tmp_path / "model.safetensors")
    state = load_file(tmp_path / "model.safetensors")
    patches = "vision_model.embeddings.patch_embedding.weight"
    save_file({**state, patches: state[patches].flatten(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="SigLIP 2 NaFlex, which takes pictures of any shape"):
        loaded("small-siglip", tmp_path / "model.safetensors")
    bert = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    save_file(bert.state_dict(), tmp_path / "bert.safetensors")
    with pytest.raises(ConfigError, match="it looks like a text model of transformers"):
        loaded("small", tmp_path / "bert.safetensors")
