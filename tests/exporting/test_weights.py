"""Weight files: any safe format, only if it fits the model, and never executed."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from safetensors.torch import save_file

from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting import weights
from fedclip_edge.exporting.open_clip_model import load_open_clip
from fedclip_edge.exporting.recipe import Source
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


def load(path: Path, model: str = "small") -> State:
    clip = load_open_clip(Source(model, random_weights=True)).clip
    load_weights(clip, path, model)
    state: State = clip.state_dict()
    return state


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
    with pytest.raises(ConfigError, match="cannot be read: it is incomplete or not a file of"):
        load(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {}, {"state_dict": {}}])
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
        r"unexpected: 1 tensor \(extra\); visual\.conv1\.weight is \[64, 3, 8, 8\], expected "
        r"\[64, 3, 16, 16\]; name the model",
    ):
        load(tmp_path / "w.safetensors")
    save_file({first: trained[first]}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"missing: \d+ tensors \(.*, \.\.\.\)"):
        load(tmp_path / "w.safetensors")


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
