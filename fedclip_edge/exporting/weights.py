"""Loading of a file of weights into a model, without running code in it or resizing tensors.

Laws:

- A TorchScript archive is opened only if its SHA-256 is one that open_clip publishes for OpenAI's
  files.
- Position embeddings are not interpolated to another picture size, which open_clip would do
  silently.
- The activation is the model's own. Names of transformers with an activation that is not known are
  refused if the model may have another one.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting import transformers_names
from fedclip_edge.exporting.checkpoint import State, read_checkpoint
from fedclip_edge.exporting.sources import has_quick_gelu, other_activation, quick_twin, tag_file
from fedclip_edge.exporting.weight_kinds import architectures, kind_of
from fedclip_edge.exporting.wrappers import without_wrappers

# Entries of OpenAI's archives that are not tensors of the model; no other weights have them.
_OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
_FEW = 3  # tensors or models named in one message


def load_weights(clip: torch.nn.Module, path: Path, model: str, like: str = "") -> tuple[str, ...]:
    """Load the weights in the file `path` into `clip`, in place; returns notes for the user.

    `clip` is a model that open_clip built from its configuration `model`; weights of any precision
    are converted to the model's. The file is a .safetensors, a list of its parts, a file of
    `torch.save`, or one of OpenAI's own archives. The names are open_clip's or those of
    transformers' CLIP or SigLIP, with any prefixes of training programs. `like` is the tag that the
    user named as the origin of the weights. If the file has an image tower alone, the text tower is
    that of `like`, which is downloaded.

    Raises ConfigError, naming the file, if it cannot be read safely or has weights of another
    architecture or activation; ExportError if the text tower cannot be downloaded.
    """
    expected = clip.state_dict()
    notes: tuple[str, ...] = ()
    if _is_torchscript(path):
        state = _openai_state(path, model)
    else:
        found = without_wrappers(read_checkpoint(path), expected, path)
        state, notes = found.state, found.notes
        if set(_OPENAI_SIZES) <= set(state):
            _check_openai(path, model)
    settings = None
    if transformers_names.is_transformers(state):
        settings = transformers_names.read_settings(path, state)
        state = transformers_names.to_open_clip(state)
    state = _converted(clip, state, path, model)
    alone = bool(like) and _is_image_tower(state, expected)
    if alone:
        state = {name: tensor for name, tensor in state.items() if name in expected}
    else:
        _check_names(state, expected, path, model)
    _check_values(state, expected, path)
    if settings is not None:
        _check_settings(clip, settings, path, model, like)
    if alone:
        load_weights(clip, tag_file(model, like), model)
        notes = (*notes, f"{path.name} has an image tower alone; the text tower is that of {like}")
    clip.load_state_dict(state, strict=not alone)
    return notes


def _converted(clip: torch.nn.Module, state: State, path: Path, model: str) -> State:
    """Convert the forms that open_clip reads too: MobileCLIP's names, and older ones of its own."""
    from open_clip.convert import convert_state_dict

    try:
        state = convert_state_dict(clip, state)
    except Exception as error:  # from open_clip's and timm's conversion, for a wrong model
        raise ConfigError(
            f"{path} has MobileCLIP's weights, which do not fit {model}; name the model they were "
            "trained as"
        ) from error
    expected = clip.state_dict()
    made: State = {}
    for name, tensor in state.items():
        if name in _OPENAI_SIZES:
            continue
        single = name in ("logit_scale", "logit_bias") and name in expected and tensor.numel() == 1
        in_text = name not in expected and f"text.{name}" in expected
        made[f"text.{name}" if in_text else name] = (
            tensor.reshape(expected[name].shape) if single else tensor
        )
    if "logit_bias" in expected and "logit_scale" in made:
        made.setdefault("logit_bias", torch.zeros_like(expected["logit_bias"]))  # not exported
    return made


def _is_image_tower(state: State, expected: Mapping[str, torch.Tensor]) -> bool:
    """True if `state` has the whole image tower of a model and nothing of its text tower."""
    tower = {name for name in expected if name.startswith("visual.")}
    rest = {name for name in state if not name.startswith("logit_")}
    return rest == tower and all(state[name].shape == expected[name].shape for name in tower)


def _check_names(
    state: State, expected: Mapping[str, torch.Tensor], path: Path, model: str
) -> None:
    """Raise ConfigError if names or shapes are not those of the model."""
    if _is_image_tower(state, expected):
        missing = [name for name in expected if name not in state]
        raise ConfigError(
            f"{path} has an image tower alone, and the class texts need {model}'s text tower: "
            f"missing: {_count(missing)}; if the text tower was not trained, give --like TAG, the "
            "tag of open_clip that these weights were fine-tuned from, and its text tower is used"
        )
    if misfit := _misfit(state, expected):
        raise ConfigError(
            f"{path} has weights of another architecture than {model}: {misfit}; "
            f"{_next_step(state, model)}"
        )


def _check_values(state: State, expected: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raise ConfigError for tensors without plain numbers, and for NaN and infinity."""
    forms = {name: _form(tensor, expected[name]) for name, tensor in state.items()}
    if odd := [name for name, form in forms.items() if form]:
        found = " and ".join(sorted({forms[name] for name in odd}))
        raise ConfigError(
            f"{path} has no plain weights in {_count(odd)}, but {found}; save the whole model in "
            "fp32, fp16 or bf16"
        )
    broken = [
        n for n, t in state.items() if t.is_floating_point() and not t.float().isfinite().all()
    ]
    if broken:
        raise ConfigError(
            f"{path} has NaN or infinity in {_count(broken)}; the training diverged, so use the "
            "weights of an earlier step"
        )


def _form(tensor: torch.Tensor, expected: torch.Tensor) -> str:
    """Name what `tensor` has instead of plain numbers; "" if it has plain ones."""
    if tensor.is_meta:
        return "empty tensors (device meta)"
    if tensor.layout is not torch.strided:
        return "sparse tensors"
    if expected.is_floating_point() and not tensor.is_floating_point():
        return f"numbers of type {str(tensor.dtype).removeprefix('torch.')}"
    return ""


def _misfit(state: State, expected: Mapping[str, torch.Tensor]) -> str:
    """Summary of the differences in names and shapes; "" if there is none."""
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} is {list(state[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    found = [f"missing: {_count(missing)}"] if missing else []
    found += [f"unexpected: {_count(unexpected)}"] if unexpected else []
    if shapes:
        many = f"{len(shapes)} tensors have" if len(shapes) > 1 else "1 tensor has"
        found.append(f"{many} another shape ({_some('; ', shapes)})")
    return "; ".join(found)


def _next_step(state: State, model: str) -> str:
    if kind := kind_of(state):
        return f"it looks like {kind}"
    if not any(name.startswith("visual.") for name in state) and "token_embedding.weight" in {
        name.removeprefix("text.") for name in state
    }:
        return "it looks like a text tower alone; name a file that has the image tower too"
    names = architectures(state)
    if model in names:
        return (
            f"the sizes are those of {model}, so the model was changed or the file is incomplete; "
            f"save the state_dict() of an unchanged {model}"
        )
    if names:
        some = " or ".join(names[:_FEW])
        return f"it looks like {some}; export that model instead of {model}"
    return "name the model they were trained as"


def _check_settings(
    clip: torch.nn.Module,
    settings: transformers_names.Settings,
    path: Path,
    model: str,
    like: str,
) -> None:
    """Raise ConfigError if `model` computes something else than transformers' model did."""
    quick, twin = has_quick_gelu(model), other_activation(model)
    if not settings.activations:
        if not like and not quick and twin:
            raise ConfigError(
                f"{path} has the names of transformers' CLIP, and its config.json is not beside "
                f"it: most of these models compute QuickGELU, but {model} computes GELU, which "
                f"gives plausible but wrong features; export {twin} instead, or copy config.json "
                "there, or give --like TAG, the tag that these weights were fine-tuned from"
            )
    elif (settings.activations == {"quick_gelu"}) != quick:
        raise ConfigError(
            f"{path} was trained with {' and '.join(sorted(settings.activations))}, as the "
            f"config.json beside it says, but {model} computes {'QuickGELU' if quick else 'GELU'}, "
            "which gives plausible but wrong features; "
            + (f"export {twin} instead" if twin else "name the model that they belong to")
        )
    heads = _heads(clip)
    if heads and settings.vision_heads and settings.vision_heads != heads:
        raise ConfigError(
            f"{path} has {settings.vision_heads} attention heads in its image tower, as the "
            f"config.json beside it says, but {model} has {heads}; name the model they were "
            "trained as"
        )


def _heads(clip: torch.nn.Module) -> int:
    """Attention heads in each layer of the image tower; 0 if it is not a transformer."""
    for module in clip.get_submodule("visual").modules():
        if isinstance(heads := getattr(module, "num_heads", None), int):
            return heads
    return 0


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256, in hex, of name, dtype, shape and bytes of every tensor, in order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous().numpy()
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


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


def _count(names: Sequence[str]) -> str:
    plural = "s" if len(names) != 1 else ""
    return f"{len(names)} tensor{plural} ({_some(', ', names)})"


def _some(separator: str, words: Sequence[str]) -> str:
    return separator.join(words[:_FEW]) + (", ..." if len(words) > _FEW else "")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
