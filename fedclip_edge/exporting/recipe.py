"""Settings of an export, from the command line or from a recipe file in export/.

Law: a relative path in a recipe file is relative to the folder of that file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fedclip_edge.config.reading import read_table
from fedclip_edge.errors import ConfigError
from fedclip_edge.storage.toml_file import read_toml

# fp32: weights and arithmetic in float32.
# fp16: weights stored in float16; a CPU computes in float32, TensorRT in float16.
# int8: static, 8-bit activations and weights, calibrated on pictures.
# int8-weights: weights stored in 8 bits; computed in float32.
Precision = Literal["fp32", "fp16", "int8", "int8-weights"]

# The prompt of FedCLIP's reference code.
PROMPT = "a picture of a {}"

PREFIX = "local-dir:"  # open_clip's own prefix for a folder in place of a model's name
BETWEEN = " | "  # joins the prompts of an ensemble to the one text in a bundle


@dataclass(frozen=True)
class Source:
    """A model to export, as the user names it; raises ValueError for contradictory settings."""

    model: str  # a name of open_clip.list_models(), or local-dir:FOLDER
    pretrained: str = ""  # open_clip's tag, or the path of a file of weights
    random_weights: bool = False  # for tests and benchmarks; excludes `pretrained`
    like: str = ""  # tag whose preprocessing and activation a file of weights has

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ValueError("model: expected a model name of open_clip, or local-dir:FOLDER")
        if self.random_weights and self.pretrained:
            raise ValueError("random_weights and pretrained exclude each other; leave one out")


@dataclass(frozen=True)
class Recipe(Source):
    """Settings of one export, without the classes, which belong to the fleet.

    Raises ValueError for contradictory settings and for wrong prompts.
    """

    prompts: tuple[str, ...] = (PROMPT,)  # {} stands for the class name; several are averaged
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompts:
            raise ValueError(f"prompts: expected one or more, such as {PROMPT!r}")
        for prompt in self.prompts:
            check_prompt(prompt)


def in_folder(folder: Path) -> str:
    """Model name for a folder that open_clip saved: `local-dir:FOLDER`."""
    return f"{PREFIX}{folder}"


def check_prompt(prompt: str) -> None:
    """Raise ValueError unless `prompt` contains {} exactly once and no BETWEEN.

    BETWEEN separates the prompts in a bundle.
    """
    if prompt.count("{}") != 1:
        raise ValueError(
            f"the prompt {prompt!r} needs exactly one {{}} for the class name, as in {PROMPT!r}"
        )
    if BETWEEN in prompt:
        raise ValueError(
            f"the prompt {prompt!r} contains {BETWEEN!r}, which separates prompts in a bundle; use "
            "another character"
        )


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file and make its relative paths absolute.

    Raises ConfigError, with the file, the key and what to write instead, if it is missing or
    wrong.
    """
    if not path.exists():
        raise ConfigError(
            f"{path} does not exist; recipes are in the folder export/ of the source code. A model "
            "of open_clip needs no recipe: give NAME --pretrained TAG"
        )
    recipe = read_table(Recipe, read_toml(path), str(path))
    base = path.resolve().parent
    model, pretrained = recipe.model, recipe.pretrained
    if model.startswith(PREFIX):
        model = PREFIX + _placed(model.removeprefix(PREFIX), base)
    if "/" in pretrained or Path(pretrained).suffix:  # no tag of open_clip has either
        pretrained = _placed(pretrained, base)
    return replace(recipe, model=model, pretrained=pretrained)


def _placed(path: str, base: Path) -> str:
    return path if path.startswith("~") else str(base / path)
