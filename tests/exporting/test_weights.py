"""Weight files: any safe format, only if it fits the model, and never executed."""

from __future__ import annotations

import argparse
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from safetensors.torch import save_file

from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting import sources, weights
from fedclip_edge.exporting.checkpoint import weights_file
from fedclip_edge.exporting.open_clip_model import load_open_clip
from fedclip_edge.exporting.recipe import Source
from fedclip_edge.exporting.weight_kinds import architectures
from fedclip_edge.exporting.weights import load_weights, weights_digest

pytestmark = pytest.mark.one_python
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with small_models.registered(tmp_path_factory.mktemp("configs")):
        yield


@pytest.fixture(scope="module")
def trained(small: None) -> State:
    """Weights that differ from those of every seed in these tests."""
    torch.manual_seed(7)
    state = load_open_clip(Source("small", random_weights=True)).clip.state_dict()
    return {name: tensor + 0.01 * torch.randn(tensor.shape) for name, tensor in state.items()}


def load_noted(path: Path, model: str = "small", like: str = "") -> tuple[State, tuple[str, ...]]:
    clip = load_open_clip(Source(model, random_weights=True)).clip
    notes = load_weights(clip, path, model, like)
    return clip.state_dict(), notes


def load(path: Path, model: str = "small", like: str = "") -> State:
    return load_noted(path, model, like)[0]


WRITERS: dict[str, Callable[[State, Path], None]] = {
    "w.safetensors": save_file,
    "w.pt": torch.save,
    "checkpoint.pt": lambda state, path: torch.save(
        {"epoch": 3, "state_dict": {f"module.{n}": t for n, t in state.items()}}, path
    ),
    "legacy.bin": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_kind_of_file_gives_the_weights(name: str, trained: State, tmp_path: Path) -> None:
    WRITERS[name](trained, tmp_path / name)
    assert weights_digest(load(tmp_path / name)) == weights_digest(trained)


def prefixed(prefix: str) -> Callable[[State], Any]:
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


def under(*keys: str, **beside: Any) -> Callable[[State], Any]:
    def nested(state: State) -> Any:
        made: Any = state
        for key in reversed(keys):
            made = {key: made}
        return {**made, **beside}

    return nested


def other(state: State) -> State:
    return {name: tensor + 1 for name, tensor in state.items()}


OPTIMIZER = {
    "state": {0: {"exp_avg": torch.ones(3)}},
    "param_groups": [{"lr": 0.1, "params": [0]}],
}
TRAINED: dict[str, Callable[[State], Any]] = {
    "DDP": prefixed("module."),
    "torch.compile": prefixed("_orig_mod."),
    "DDP of torch.compile": prefixed("module._orig_mod."),
    "torch.compile of DDP": prefixed("_orig_mod.module."),
    "FSDP": prefixed("_fsdp_wrapped_module."),
    "an attribute": prefixed("model."),
    "an attribute of DDP": prefixed("module.model._orig_mod."),
    "an attribute with any name": prefixed("backbone.clip."),
    "torch.compile of one tower": lambda state: {
        name.replace("visual.", "visual._orig_mod."): tensor for name, tensor in state.items()
    },
    "AveragedModel": lambda state: {"n_averaged": torch.tensor(7), **prefixed("module.")(state)},
    "model": under("model", optimizer=OPTIMIZER, epoch=3, loss=torch.tensor(0.5)),
    "model_state_dict": under("model_state_dict", optimizer_state_dict=OPTIMIZER),
    "net": under("net", epoch=1),
    "params": under("params"),
    "any one key": under("clip_weights", lr=0.1),
    "DeepSpeed": under("module", optimizer=None, ds_version="0.16"),
    "Lightning": lambda state: {
        "state_dict": prefixed("model.")(state),
        "optimizer_states": [OPTIMIZER],
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
        "hyper_parameters": {"lr": 0.1},
    },
}


@pytest.mark.parametrize("name", TRAINED)
def test_what_training_programs_save_gives_the_weights(
    name: str, trained: State, tmp_path: Path
) -> None:
    torch.save(TRAINED[name](trained), tmp_path / "w.pt")
    state, notes = load_noted(tmp_path / "w.pt")
    assert weights_digest(state) == weights_digest(trained)
    assert not notes


AVERAGED: dict[str, tuple[Callable[[State], Any], str | tuple[str, ...]]] = {
    "timm": (
        lambda state: {"state_dict": other(state), "state_dict_ema": state},
        (
            "using the weights under 'state_dict_ema' in w.pt, an average over the training; it "
            "also has 'state_dict'"
        ),
    ),
    "model_ema": (
        lambda state: {"model": other(state), "model_ema": state, "optimizer": OPTIMIZER},
        (
            "using the weights under 'model_ema' in w.pt, an average over the training; it also has "
            "'model'"
        ),
    ),
    "nested": (
        lambda state: {"model": other(state), "ema": {"decay": 0.9, "module": state}},
        (
            "using the weights under 'ema.module' in w.pt, an average over the training; it also has "
            "'model'"
        ),
    ),
    "by prefix": (
        lambda state: {
            "step": torch.tensor(3),
            **prefixed("online_model.")(other(state)),
            **prefixed("ema_model.")(state),
        },
        (
            (
                "using the weights under 'ema_model' in w.pt, an average over the training; it "
                "also has 'online_model'"
            ),
            "leaving out 1 tensor of w.pt, not part of CLIP (step)",
        ),
    ),
    "beside the names without a prefix": (
        lambda state: {**other(state), **prefixed("ema.")(state)},
        "using the weights under 'ema' in w.pt, an average over the training; it also has ''",
    ),
    "two usual keys": (
        lambda state: {"model": other(state), "state_dict": state},
        "using the weights under 'state_dict' in w.pt; it also has 'model'",
    ),
    "a head beside the model": (
        lambda state: {**prefixed("clip.")(state), "head.weight": torch.ones(2, 3)},
        "leaving out 1 tensor of w.pt, not part of CLIP (head.weight)",
    ),
}


@pytest.mark.parametrize("name", AVERAGED)
def test_the_choice_among_several_models_is_told(name: str, trained: State, tmp_path: Path) -> None:
    make, note = AVERAGED[name]
    torch.save(make(trained), tmp_path / "w.pt")
    state, notes = load_noted(tmp_path / "w.pt")
    assert weights_digest(state) == weights_digest(trained)
    assert notes == (note if isinstance(note, tuple) else (note,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda state: {"first": state, "second": state},
            r"w\.pt has several state dicts \('first', 'second'\); save the one to export",
        ),
        (
            lambda state: {**prefixed("student.")(state), **prefixed("teacher.")(state)},
            r"w\.pt has several models \('student', 'teacher'\); save the one to export",
        ),
        (lambda state: OPTIMIZER, "has no state dict of a model, but that of an optimizer; save"),
    ],
)
def test_a_choice_that_nobody_made_is_refused(
    make: Callable[[State], Any], message: str, trained: State, tmp_path: Path
) -> None:
    torch.save(make(trained), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "w.pt")


def test_half_precision_is_widened(trained: State, tmp_path: Path) -> None:
    save_file({n: t.half() for n, t in trained.items()}, tmp_path / "w.safetensors")
    loaded = load(tmp_path / "w.safetensors")
    assert {t.dtype for t in loaded.values()} == {torch.float32}
    torch.testing.assert_close(loaded, {n: t.half().float() for n, t in trained.items()})


class Bomb:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(
    trained: State, tmp_path: Path, zipped: bool
) -> None:
    mark, path = tmp_path / "mark", tmp_path / "w.pt"
    torch.save({**trained, "x": Bomb(mark)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ConfigError, match=r"w\.pt contains more than weights, and loading it could"
    ):
        load(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the unsafe load does write the file
    assert mark.exists()


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("keep", [0, 5, 4000, -1])
def test_truncated_files_are_refused(name: str, keep: int, trained: State, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](trained, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=f"{name} cannot be read: .*incomplete"):
        load(path)


def test_a_text_is_not_called_code(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_text("dog\ncat\n")
    expected = (
        r"cannot be read: it is incomplete or not a file of weights \(Unsupported operand \d+\)$"
    )
    with pytest.raises(ConfigError, match=expected):
        load(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "content", [[1, 2], {"a": 1}, {}, {"state_dict": {}}, {0: torch.ones(2), 1: torch.ones(2)}]
)
def test_files_without_a_state_dict_are_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"w\.pt has no (state dict|weights)"):
        load(tmp_path / "w.pt")


def test_another_architecture_is_named_with_the_tensors(trained: State, tmp_path: Path) -> None:
    first = next(iter(trained))
    other = {**trained, "visual.conv1.weight": torch.zeros(64, 3, 8, 8), "extra": torch.ones(1)}
    del other["visual.proj"]
    save_file(other, tmp_path / "w.safetensors")
    with pytest.raises(
        ConfigError,
        match=r"another architecture than small: missing: 1 tensor \(visual\.proj\); "
        r"unexpected: 1 tensor \(extra\); 1 tensor has another shape \(visual\.conv1\.weight is "
        r"\[64, 3, 8, 8\], expected \[64, 3, 16, 16\]\); name the model",
    ):
        load(tmp_path / "w.safetensors")
    save_file({first: trained[first]}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"missing: \d+ tensors \(.*, \.\.\.\)"):
        load(tmp_path / "w.safetensors")


def lora(state: State) -> State:
    a, b = "visual.transformer.resblocks.0.mlp.c_fc.lora_A.weight", "lora_B.weight"
    return {f"base_model.model.{a}": torch.ones(2, 64), f"base_model.model.{b}": torch.ones(2)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lora,
            r"it looks like a LoRA adapter, .*merge it into that model \(peft's merge_and_unload",
        ),
        (
            lambda state: {**state, "visual.proj.more": torch.ones(3)},
            (
                r"unexpected: 1 tensor \(visual\.proj\.more\); the sizes are those of small, so the model "
                r"was changed or the file is incomplete; save the state_dict\(\) of an unchanged small"
            ),
        ),
        (
            lambda state: {**state, "visual.proj.absmax": torch.ones(3)},
            "unexpected: 1 tensor .* it looks like quantised weights; save the model in fp32",
        ),
        (
            lambda state: {"blocks.0.attn.qkv.weight": torch.ones(3), "cls_token": torch.ones(1)},
            "it looks like an image model of timm without CLIP's text tower; use it by --onnx",
        ),
        (
            lambda state: {"layer1.0.conv1.weight": torch.ones(3), "fc.weight": torch.ones(3)},
            "it looks like an image model of torchvision or timm",
        ),
        (
            lambda state: {n: t for n, t in state.items() if not n.startswith("visual.")},
            r"missing: 32 tensors .*it looks like a text tower alone; name a file that has",
        ),
        (
            lambda state: {**state, "visual.proj": torch.zeros(64, 32, dtype=torch.int8)},
            r"has no plain weights in 1 tensor \(visual\.proj\), but numbers of type int8; save the",
        ),
        (
            lambda state: {**state, "visual.proj": torch.zeros(64, 32).to_sparse()},
            r"has no plain weights in 1 tensor \(visual\.proj\), but sparse tensors; save the whole",
        ),
        (
            lambda state: {**state, "visual.proj": torch.zeros(64, 32, device="meta")},
            r"has no plain weights in 1 tensor \(visual\.proj\), but empty tensors \(device meta\);",
        ),
        (
            lambda state: {**state, "visual.proj": torch.full((64, 32), torch.nan)},
            r"has NaN or infinity in 1 tensor \(visual\.proj\); the training diverged, so use",
        ),
    ],
)
def test_what_the_weights_look_like_is_told(
    make: Callable[[State], State], message: str, trained: State, tmp_path: Path
) -> None:
    torch.save(make(trained), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "w.pt")


def test_the_architecture_of_the_weights_is_found(trained: State, tmp_path: Path) -> None:
    torch.save(trained, tmp_path / "w.pt")
    with pytest.raises(
        ConfigError,
        match=r"another architecture than small-wider-images: 33 tensors have another shape "
        r"\(text_projection is \[64, 32\], expected \[64, 48\]; visual\.class_embedding is .*, "
        r"\.\.\.\); it looks like small or "
        r"small-.*; export that model instead",
    ):
        load(tmp_path / "w.pt", "small-wider-images")


def test_shapes_of_open_clips_own_models_are_recognised() -> None:
    """Law: weights of a ViT or ResNet look like their own configuration."""
    import open_clip

    for name in ("ViT-L-14", "ViT-B-32-256", "ViT-H-14", "RN50", "RN101", "EVA01-g-14"):
        config = open_clip.get_model_config(name)
        custom = config.pop("custom_text", False)
        with torch.device("meta"):
            state = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config).state_dict()
        assert (name in architectures(state)) == ("EVA" not in name)


def towers(state: State) -> dict[str, State]:
    """The image tower in the forms that programs save it in."""
    visual = {name: t for name, t in state.items() if name.startswith("visual.")}
    own = {name.removeprefix("visual."): t for name, t in visual.items()}
    return {
        "with its prefix": visual,
        "its own state dict": own,
        "in a program's module": {f"backbone.{name}": t for name, t in own.items()},
        "with a scale": {**visual, "logit_scale": torch.tensor(1.5), "logit_bias": torch.ones(1)},
    }


@pytest.mark.parametrize(
    "form", ["with its prefix", "its own state dict", "in a program's module", "with a scale"]
)
def test_an_image_tower_alone_takes_the_text_tower_of_like(
    form: str, trained: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(towers(trained)[form], tmp_path / "w.pt")
    with pytest.raises(
        ConfigError,
        match=r"w\.pt has an image tower alone, and the class texts need small's text tower: "
        r"missing: \d+ tensors \(positional_embedding, .*; if the text tower was not trained, give --like TAG",
    ):
        load(tmp_path / "w.pt")
    base = {name: tensor - 1 for name, tensor in trained.items()}
    folder = tmp_path / "models--org--small.plain_e1"
    folder.mkdir()
    save_file(base, folder / "open_clip_model.safetensors")
    monkeypatch.setattr(sources, "download", lambda *_: folder / "open_clip_model.safetensors")
    state, notes = load_noted(tmp_path / "w.pt", like="plain_e1")
    expected = {**base, **{n: t for n, t in trained.items() if n.startswith("visual.")}}
    if form == "with a scale":
        expected["logit_scale"] = torch.tensor(1.5)
    assert weights_digest(state) == weights_digest(expected)
    assert notes == ("w.pt has an image tower alone; the text tower is that of plain_e1",)


def test_the_weights_in_a_folder_are_found(trained: State, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match=r"model has no file of weights \(model\.safetensors, "):
        load_open_clip(Source("small", str(tmp_path / "model"), like="plain_e1"))
    for name in ("first", "second"):
        save_file(trained, tmp_path / "model" / f"{name}.safetensors")
    with pytest.raises(ConfigError, match=r"model has 2 \.safetensors and none of the usual names"):
        weights_file(tmp_path / "model")
    only = tmp_path / "whole-00001-of-00001.safetensors"
    assert weights_file(only) == only
    save_file(trained, tmp_path / "model" / "model.safetensors")
    found = load_open_clip(Source("small", str(tmp_path / "model"), like="plain_e1"))
    assert weights_digest(found.clip.state_dict()) == weights_digest(trained)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("[]", "is not a list of a model's parts"),
        ("{", "is not a list of a model's parts"),
        ('{"weight_map": {"a": 3}}', "is not a list of a model's parts"),
        (
            '{"weight_map": {"a": "../gone.bin"}}',
            r"lacks 1 of the 1 files .* lists: gone\.bin; copy",
        ),
        (
            '{"weight_map": {"a": "w.index.json"}}',
            r"lists w\.index\.json, which has no weights; copy",
        ),
    ],
)
def test_a_wrong_list_of_parts_is_refused(listed: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "w.index.json").write_text(listed)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "w.index.json")


def test_the_name_of_the_file_does_not_matter(trained: State, tmp_path: Path) -> None:
    save_file(trained, tmp_path / "pytorch_model.bin")
    assert weights_digest(load(tmp_path / "pytorch_model.bin")) == weights_digest(trained)


def test_a_file_that_may_not_be_read_is_told(trained: State, tmp_path: Path) -> None:
    save_file(trained, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").chmod(0)
    if os.access(tmp_path / "w.safetensors", os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(ConfigError, match=r"w\.safetensors cannot be read: Permission denied"):
        load(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_pointer_of_git_lfs_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\nsize 3\n")
    with pytest.raises(ConfigError, match=r"it is a pointer of Git LFS, .* run git lfs pull"):
        load(tmp_path / name)


def test_what_a_pickle_has_beside_the_weights_is_named(trained: State, tmp_path: Path) -> None:
    torch.save({"model": trained, "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pt")
    with pytest.raises(
        ConfigError,
        match=r"contains more than weights, .* \(argparse\.Namespace\); save only the weights "
        r"where it was made: safetensors\.torch\.save_file\(model\.state_dict\(\), ",
    ):
        load(tmp_path / "w.pt")


def test_position_embeddings_are_not_stretched_in_silence(trained: State, tmp_path: Path) -> None:
    save_file(trained, tmp_path / "w.safetensors")
    with pytest.raises(
        ConfigError, match=r"visual\.positional_embedding is \[5, 64\], expected \[17, 64\]"
    ):
        load(tmp_path / "w.safetensors", "small-larger-pictures")
    shorter = {**trained, "positional_embedding": torch.zeros(50, 64)}
    save_file(shorter, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"positional_embedding is \[50, 64\], expected \[77"):
        load(tmp_path / "w.safetensors")


SIZES = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}


def test_a_state_dict_of_openais_runs_under_quick_gelu_alone(
    trained: State, tmp_path: Path
) -> None:
    state = {**trained, **{name: torch.tensor(size) for name, size in SIZES.items()}}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"has OpenAI's weights.*export small-quickgelu instead"):
        load(tmp_path / "w.pt")
    assert weights_digest(load(tmp_path / "w.pt", "small-quickgelu")) == weights_digest(trained)


@pytest.fixture(scope="module")
def archive(trained: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A traced model in a TorchScript archive, in the format of OpenAI's files."""
    clip = load_open_clip(Source("small-quickgelu", random_weights=True)).clip
    clip.load_state_dict(trained)
    del clip.attn_mask  # OpenAI's files do not have this buffer
    for name, size in SIZES.items():
        vars(clip).pop(name, None)  # a plain number in open_clip
        clip.register_buffer(name, torch.tensor(size))
    path: Path = tmp_path_factory.mktemp("archives") / "small.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace_module(  # type: ignore[no-untyped-call]
            clip, {"encode_image": torch.zeros(1, 3, 32, 32)}, check_trace=False
        )
        torch.jit.save(traced, str(path))
    return path


def test_an_archive_is_opened_only_if_openai_published_it(
    archive: Path, trained: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ConfigError, match=r"TorchScript archive, .* is not one that OpenAI published"
    ):
        load(archive, "small-quickgelu")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(weights, "openai_files", lambda: {digest: "small"})
    with pytest.raises(ConfigError, match=r"has OpenAI's weights.*export small-quickgelu instead"):
        load(archive, "small")
    assert weights_digest(load(archive, "small-quickgelu")) == weights_digest(trained)
    monkeypatch.setattr(weights, "openai_files", lambda: {digest: "ViT-B-16"})
    with pytest.raises(
        ConfigError, match="is OpenAI's ViT-B-16, not small-quickgelu; export ViT-B-16-q"
    ):
        load(archive, "small-quickgelu")


def test_openais_files_are_those_of_open_clips_table() -> None:
    files = weights.openai_files()
    assert len(files) == 9
    assert all(len(digest) == 64 for digest in files)
    vit = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
    assert files[vit].removesuffix("-quickgelu") == "ViT-B-32"


def test_weights_digest_sees_name_dtype_shape_and_bytes() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    assert weights_digest(state) == weights_digest(dict(reversed(state.items())))
    others: list[State] = [
        {"a": torch.zeros(2, 3), "c": torch.ones(2)},
        {"a": torch.zeros(3, 2), "b": torch.ones(2)},
        {"a": torch.zeros(2, 3), "b": torch.tensor([1.0, 1.0000001])},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(2)},
    ]
    assert len({weights_digest(s) for s in (state, *others)}) == 5
