"""open_clip models from a folder: both towers, and what open_clip's configuration says of them.

Laws: everything is computed in fp32, whatever the weights are stored in; preprocessing,
activation, tokenizer, context length and logit scale are open_clip's, never guessed here. This
module and the training script of the demo are the only importers of open_clip.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedclip_edge.errors import ConfigError, ExportError
from fedclip_edge.exporting.torchvision_ops import declare_missing
from fedclip_edge.vision.pictures import Preprocessing

PREFIX = "local-dir:"  # open_clip's own spelling
_CONFIG = "open_clip_config.json"
_ACTIVATIONS = {"QuickGELU": "quick_gelu", "GELU": "gelu", "ReLU": "relu", "SiLU": "silu"}


@dataclass(frozen=True, eq=False)
class ClipModel:
    """A loaded model in evaluation mode, on the CPU, in fp32."""

    name: str
    clip: Any  # open_clip's CLIP or CustomTextCLIP
    tokenize: Callable[[Sequence[str]], torch.Tensor]  # texts -> int64 (n, context_length)
    count_tokens: (
        Callable[[str], int] | None
    )  # start and end included; None: the tokenizer hides it
    context_length: int
    vocab_size: int
    logit_scale: float  # multiplies the cosine
    preprocessing: Preprocessing
    activation: str  # of the image tower
    weights_sha256: str  # of the image tower

    @property
    def image_tower(self) -> torch.nn.Module:
        """float32 [N, 3, S, S] -> raw features [N, D]."""
        tower: torch.nn.Module = self.clip.visual
        return tower


def load_open_clip(source: str) -> ClipModel:
    """Loads `local-dir:FOLDER`, a folder with open_clip_config.json and weights.

    Raises ConfigError where the source or the folder is not such a one, ExportError where
    open_clip cannot load it or asks for a preprocessing that bundles do not know.
    """
    folder = _folder(source)
    table = _configuration(folder)
    declare_missing()
    import open_clip

    name = f"{PREFIX}{folder}"
    text = table["model_cfg"].get("text_cfg", {})
    try:
        with _quiet():
            clip = open_clip.create_model(
                name, precision="fp32", device="cpu", require_pretrained=True
            )
            tokenizer = open_clip.get_tokenizer(name, **_tokenizer_paths(text, folder))
    except Exception as error:  # a bad folder fails anywhere in open_clip, torch, safetensors
        raise ExportError(
            f"open_clip cannot load {folder}: {str(error).strip().partition(chr(10))[0][:300]}; "
            f"the folder needs {_CONFIG}, weights that fit it, and its tokenizer's file"
        ) from error
    clip.eval().requires_grad_(requires_grad=False)
    encode = getattr(tokenizer, "encode", None)
    return ClipModel(
        name=folder.name,
        clip=clip,
        tokenize=tokenizer,
        count_tokens=(lambda text: len(encode(text)) + 2) if encode else None,
        context_length=int(clip.context_length),
        vocab_size=int(clip.vocab_size),
        logit_scale=float(clip.logit_scale.exp()),
        preprocessing=_preprocessing(clip.visual.preprocess_cfg, folder),
        activation=_activation(clip.visual),
        weights_sha256=weights_digest(clip.visual.state_dict()),
    )


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous().numpy()
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _folder(source: str) -> Path:
    if not source.startswith(PREFIX):
        raise ConfigError(
            f"{source!r} is no model that can be exported; write tiny, or {PREFIX}FOLDER for a "
            f"folder with {_CONFIG}"
        )
    folder = Path(source.removeprefix(PREFIX)).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"{folder} does not exist; name a folder with {_CONFIG}")
    return folder


def _configuration(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder} holds no {_CONFIG}; name a folder that does") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(table, dict) or not isinstance(table.get("model_cfg"), dict):
        raise ConfigError(f"{path} has no model_cfg; write the one that open_clip saved")
    return table


def _tokenizer_paths(text: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The merges' absolute path: open_clip takes a relative one from the working directory."""
    path = text.get("tokenizer_kwargs", {}).get("bpe_path")
    return {} if path is None else {"bpe_path": str(folder / path)}


def _preprocessing(config: Mapping[str, Any], folder: Path) -> Preprocessing:
    size = config["size"]
    sides = {size} if isinstance(size, int) else set(size)
    try:
        if len(sides) != 1:
            raise ValueError(f"pictures of {size} pixels are not square")
        (side,) = sides
        return Preprocessing(
            image_size=int(side),
            resize=config["resize_mode"],
            resize_px=int(side),
            interpolation=config["interpolation"],
            mean=tuple(float(value) for value in config["mean"]),
            std=tuple(float(value) for value in config["std"]),
        )
    except ValueError as error:
        raise ExportError(
            f"{folder} asks for a preprocessing that is not known: {error}"
        ) from error


def _activation(tower: torch.nn.Module) -> str:
    """What the modules compute, not what a configuration claims; several are joined by "+"."""
    found = set()
    for module in tower.modules():
        kind = type(module)
        inside = kind.__module__ == "torch.nn.modules.activation" or kind.__name__ in _ACTIVATIONS
        if inside and kind is not torch.nn.MultiheadAttention:
            name = _ACTIVATIONS.get(kind.__name__, kind.__name__.lower())
            found.add(f"{name}_tanh" if getattr(module, "approximate", "") == "tanh" else name)
    return "+".join(sorted(found)) or "unknown"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps open_clip from setting up the process's logging, and from warning of its own files."""
    root = logging.getLogger()
    silent = logging.NullHandler()  # with a handler there, logging.info() installs none
    root.addHandler(silent)
    try:
        with warnings.catch_warnings():
            # SimpleTokenizer leaves closing its merges to the garbage collector.
            warnings.simplefilter("ignore", ResourceWarning)
            yield
    finally:
        root.removeHandler(silent)
