"""open_clip models: both towers, and the settings that open_clip's configuration gives them.

Laws:

- Everything is computed in fp32, even if the weights are stored in another precision.
- Preprocessing, tokenizer, context length and logit scale come from open_clip; none is guessed.
- The activation is read from the modules that compute it, not from the configuration.
- Random weights are the same in every process.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedclip_edge.errors import ExportError, reason_of
from fedclip_edge.exporting.hub import check_reach
from fedclip_edge.exporting.recipe import Source
from fedclip_edge.exporting.sources import CONFIG, Found, find
from fedclip_edge.exporting.tokenizers import Tokenizer, open_tokenizer, stand_in
from fedclip_edge.exporting.torchvision_ops import declare_missing
from fedclip_edge.exporting.weights import load_weights, weights_digest
from fedclip_edge.vision.manifest import RANDOM
from fedclip_edge.vision.pictures import Preprocessing

_SEED = 0
_ACTIVATIONS = {
    "QuickGELU": "quick_gelu",
    "GELU": "gelu",
    "GELUTanh": "gelu_tanh",
    "ReLU": "relu",
    "SiLU": "silu",
}


@dataclass(frozen=True, eq=False)
class ClipModel:
    """A loaded model in evaluation mode, on the CPU, in fp32."""

    name: str
    pretrained: str  # the tag, "file", "local-dir", or RANDOM
    clip: Any  # open_clip's CLIP, CustomTextCLIP or CoCa
    tokenize: Callable[[Sequence[str]], torch.Tensor]  # texts -> int64 (n, context_length)
    count_tokens: Callable[[str], int]  # tokens of one text, including start and end
    context_length: int
    vocab_size: int
    logit_scale: float  # multiplies the cosine
    preprocessing: Preprocessing
    activation: str  # of the image tower
    weights_sha256: str  # of the image tower
    notes: tuple[str, ...] = ()  # sentences for the user about which weights were loaded

    @property
    def image_tower(self) -> torch.nn.Module:
        """Module from pixels float32 (N, 3, S, S) to raw features float32 (N, D).

        It is open_clip's own module, wrapped only if that one also returns tokens.
        """
        tower: torch.nn.Module = self.clip.visual
        return FeaturesAlone(tower) if getattr(tower, "output_tokens", False) else tower


class FeaturesAlone(torch.nn.Module):
    """Wrapper that drops the tokens that some image towers (CoCa's) return with the features."""

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Raw features float32 (N, D) of pixels float32 (N, 3, S, S)."""
        features: torch.Tensor = self.tower(pixels)[0]
        return features


def load_open_clip(source: Source) -> ClipModel:
    """Build the model that `source` names and load its weights.

    Raises ConfigError if the source is wrong: an unknown name or tag, weights of another
    architecture or activation, a file that cannot be read safely. Raises ExportError if the source
    is right but cannot be used here: the hub does not answer, a package is missing, or bundles do
    not support the preprocessing.
    """
    declare_missing()
    notes: tuple[str, ...] = ()
    with _quiet():
        found = find(source)
        tokenizer = _tokenizer(found)
        clip = _built(found)
        if found.file is not None:
            notes = load_weights(clip, found.file, found.name, found.like)
    clip.eval().requires_grad_(requires_grad=False)
    text = getattr(clip, "text", clip)  # CLIP is its own text tower
    vocabulary = int(text.vocab_size)
    if tokenizer is None:
        ends = getattr(text, "pool_type", "") == "eos"
        end = int(text.eos_id) if ends else vocabulary - 1
        tokenizer = stand_in(int(text.context_length), vocabulary, end)
    return ClipModel(
        name=found.title,
        pretrained=found.label,
        clip=clip,
        tokenize=tokenizer.tokenize,
        count_tokens=tokenizer.count,
        context_length=tokenizer.context_length,
        vocab_size=vocabulary,
        logit_scale=float(clip.logit_scale.exp()),
        preprocessing=_preprocessing(clip.visual.preprocess_cfg, found.title),
        activation=_activation(clip.visual),
        weights_sha256=weights_digest(clip.visual.state_dict()),
        notes=notes,
    )


def _tokenizer(found: Found) -> Tokenizer | None:
    """The model's tokenizer, or None if `tokenizers.stand_in` must replace it.

    This is allowed for random weights only, because their text vectors mean nothing. Raises
    ExportError if the tokenizer of other weights is not available.
    """
    try:
        return open_tokenizer(found.name)
    except ExportError:
        if found.label == RANDOM:
            return None
        raise


def _built(found: Found) -> Any:
    """open_clip's model, with the weights of a folder, or else with random weights."""
    import open_clip

    own = found.file is None and found.label != RANDOM
    theirs = open_clip.get_model_config(found.name)["text_cfg"].get("hf_model_name")
    if theirs and not Path(theirs).exists() and importlib.util.find_spec("transformers"):
        check_reach(theirs, found.title)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            return open_clip.create_model(
                found.name,
                precision="fp32",
                device="cpu",
                load_weights=own,
                require_pretrained=own,
                pretrained_text=False,  # True would download the text tower's own weights
                force_preprocess_cfg=dict(found.preprocessing),
            )
    except Exception as error:  # from open_clip, torch or safetensors, for a bad folder
        hint = f"; the folder needs {CONFIG} and weights that fit it" if own else ""
        raise ExportError(f"open_clip cannot load {found.name}: {reason_of(error)}{hint}") from (
            error
        )


def _preprocessing(config: Mapping[str, Any], model: str) -> Preprocessing:
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
            f"the preprocessing of {model} is not supported in a bundle: {error}"
        ) from error


def _activation(tower: torch.nn.Module) -> str:
    """Activations that the tower's modules compute, joined by "+"; "unknown" without any.

    The configuration is not used, because it may name another activation.
    """
    found = set()
    for module in tower.modules():
        kind = type(module)
        inside = kind.__module__ == "torch.nn.modules.activation" or kind.__name__ in _ACTIVATIONS
        if inside and kind not in (torch.nn.MultiheadAttention, torch.nn.Softmax):
            name = _ACTIVATIONS.get(kind.__name__, kind.__name__.lower())
            found.add(f"{name}_tanh" if getattr(module, "approximate", "") == "tanh" else name)
    return "+".join(sorted(found)) or "unknown"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip from configuring the process's logging and from warning of its own files."""
    root = logging.getLogger()
    silent = logging.NullHandler()  # without a handler, logging.info() adds one
    root.addHandler(silent)
    try:
        with warnings.catch_warnings():
            # SimpleTokenizer never closes its file of merges.
            warnings.simplefilter("ignore", ResourceWarning)
            yield
    finally:
        root.removeHandler(silent)
