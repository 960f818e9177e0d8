"""Loading of a file of weights into a model, without running code in it or resizing tensors.

Laws:

- A pickle is read with `weights_only`.
- A TorchScript archive is opened only if its SHA-256 is one that open_clip publishes for OpenAI's
  files.
- Position embeddings are not interpolated to another picture size, which open_clip would do
  silently.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fedclip_edge.errors import ConfigError, reason_of
from fedclip_edge.exporting.sources import has_quick_gelu, quick_twin

# Entries of OpenAI's archives that are not tensors of the model; no other weights have them.
_OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
_POSITIONS = "positional_embedding"
_FEW = 3  # tensors named in one message
_MISMATCH = re.compile(
    r"size mismatch for (\S+): .*?torch\.Size\(\[(.*?)\]\).*?torch\.Size\(\[(.*?)\]\)"
)


def load_weights(clip: torch.nn.Module, path: Path, model: str) -> None:
    """Load the weights in the file `path` into `clip`, in place.

    `clip` is a model that open_clip built from its configuration `model`; weights of any precision
    are converted to the model's. The file is a .safetensors, a state dict saved by `torch.save`
    (directly or under the key "state_dict"), or one of OpenAI's own archives. Raises ConfigError,
    naming the file, if it cannot be read safely or has weights of another architecture or
    activation.
    """
    if _is_torchscript(path):
        state = _openai_state(path, model)
        _fill(clip, path, model, state)
        return
    shapes = _shapes(path)
    if set(_OPENAI_SIZES) <= set(shapes):
        _check_openai(path, model)
        _fill(clip, path, model, _state(path))
        return
    _check_positions(clip, shapes, path, model)
    import open_clip

    try:
        open_clip.load_checkpoint(clip, str(path), strict=True, weights_only=True)
    except Exception as error:  # from open_clip's conversions, for a wrong file
        raise ConfigError(_misfit(error, path, model)) from error


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256, in hex, of name, dtype, shape and bytes of every tensor, in order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous().numpy()
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor by name; the tensors of a .safetensors are not read."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"{path} cannot be read: {reason_of(error)}; it is incomplete or not a "
                "safetensors file"
            ) from error
    return {name: tuple(tensor.shape) for name, tensor in _state(path).items()}


def _state(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a file that `torch.save` wrote, without the prefix `module.` of names.

    Raises ConfigError if the file cannot be read safely or has no state dict.
    """
    try:
        state = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, KeyError, ...
        if re.search("Unsupported (global|class)", str(error)):
            raise ConfigError(
                f"{path} contains more than weights, and loading it could run code; save only the "
                "model's state_dict(), preferably as .safetensors"
            ) from error
        raise ConfigError(
            f"{path} cannot be read: it is incomplete or not a file of weights ({reason_of(error)})"
        ) from error
    if isinstance(state, dict) and "state_dict" in state:
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(torch.is_tensor(t) for t in state.values()):
        raise ConfigError(f"{path} has no state dict; save the model's state_dict()")
    if not state:
        raise ConfigError(f"{path} has no weights; save the model's state_dict()")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _openai_state(path: Path, model: str) -> dict[str, torch.Tensor]:
    owner = openai_files().get(_sha256(path))
    if owner is None:
        raise ConfigError(
            f"{path} is a TorchScript archive, which contains code, and is not one that OpenAI "
            "published; save only the model's state_dict(), preferably as .safetensors"
        )
    _check_openai(path, model)
    if quick_twin(owner) != model:
        raise ConfigError(f"{path} is OpenAI's {owner}, not {model}; export {quick_twin(owner)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but OpenAI's files use it
        loaded = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    return dict(loaded.state_dict())


def openai_files() -> dict[str, str]:
    """SHA-256 of each file that OpenAI published, mapped to open_clip's name of its model."""
    import open_clip

    urls = {
        name: open_clip.get_pretrained_url(name, "openai")
        for name in open_clip.list_pretrained_models_by_tag("openai")
    }
    return {url.split("/")[-2]: name for name, url in urls.items() if "openaipublic" in url}


def _check_openai(path: Path, model: str) -> None:
    if not has_quick_gelu(model):
        twin = quick_twin(model)
        raise ConfigError(
            f"{path} has OpenAI's weights, trained with QuickGELU, but {model} computes GELU, "
            "which gives plausible but wrong features; "
            + (f"export {twin} instead" if twin else "name the model that they belong to")
        )


def _fill(clip: torch.nn.Module, path: Path, model: str, state: Mapping[str, torch.Tensor]) -> None:
    tensors = {name: tensor for name, tensor in state.items() if name not in _OPENAI_SIZES}
    try:
        clip.load_state_dict(tensors)
    except RuntimeError as error:
        raise ConfigError(_misfit(error, path, model)) from error


def _check_positions(
    clip: torch.nn.Module, shapes: Mapping[str, Sequence[int]], path: Path, model: str
) -> None:
    """Raise ConfigError for position embeddings of another shape than the model's."""
    ours = {
        name.removeprefix("text."): list(tensor.shape)
        for name, tensor in clip.state_dict().items()
        if name.endswith(_POSITIONS)
    }
    for name, shape in shapes.items():
        wanted = ours.get(name.removeprefix("text."))
        if wanted is not None and list(shape) != wanted:
            raise ConfigError(
                f"{path} has weights of another architecture than {model}: {name} is "
                f"{list(shape)}, expected {wanted}; name the model they were trained as"
            )


def _misfit(error: BaseException, path: Path, model: str) -> str:
    """Summary, in one sentence, of torch's error message, which can have hundreds of lines."""
    found: list[str] = []
    for line in str(error).splitlines():
        names = re.findall(r'"([^"]+)"', line)
        if "Missing key" in line:
            found.append(f"missing: {_count(names)}")
        elif "Unexpected key" in line:
            found.append(f"unexpected: {_count(names)}")
    shapes = [
        f"{name} is [{theirs}], expected [{ours}]"
        for name, theirs, ours in _MISMATCH.findall(str(error))
    ]
    found += shapes[:_FEW]
    if len(shapes) > _FEW:
        found.append(f"{len(shapes) - _FEW} more have another shape")
    what = "; ".join(found) or reason_of(error)
    return (
        f"{path} has weights of another architecture than {model}: {what}; "
        "name the model they were trained as"
    )


def _count(names: Sequence[str]) -> str:
    plural = "s" if len(names) != 1 else ""
    more = ", ..." if len(names) > _FEW else ""
    return f"{len(names)} tensor{plural} ({', '.join(names[:_FEW])}{more})"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
