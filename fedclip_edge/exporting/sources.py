"""Lookup of the configuration and the weights of the model that the user names (the source).

A source is open_clip's name of a model with a tag, with a file of weights or with random weights,
or a folder that open_clip saved.

Laws:

- The error for a name that open_clip does not know lists the most similar names.
- Weights trained with QuickGELU never run with GELU, nor vice versa, because their features
  would look almost right.
- The preprocessing is the one that open_clip records for the weights. If it records several for
  one architecture, the user must name the tag whose preprocessing a file of weights needs.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting.checkpoint import weights_file
from fedclip_edge.exporting.hub import download, repository_of
from fedclip_edge.exporting.recipe import PREFIX, Source, in_folder
from fedclip_edge.exporting.torchvision_ops import declare_missing
from fedclip_edge.storage.text_file import read_json
from fedclip_edge.vision.manifest import RANDOM

CONFIG = "open_clip_config.json"
_QUICK = "-quickgelu"  # suffix of the variant of a configuration that has QuickGELU
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
_ENOUGH = 5  # number of names in one message


@dataclass(frozen=True)
class Found:
    """Settings with which open_clip builds a model and loads its weights."""

    name: str  # as open_clip.create_model takes it
    title: str  # the manifest's `model`
    label: str  # the manifest's `pretrained`
    preprocessing: Mapping[str, Any]  # overrides the configuration's; may be empty
    file: Path | None  # file of weights; None for the weights of a folder, or random ones
    like: str = ""  # the tag that the user named as the origin of a file of weights


def find(source: Source) -> Found:
    """Resolve a source to a configuration and a file of weights; downloads a tag's weights.

    Raises ConfigError if the model, tag, file or folder does not exist, if settings contradict
    each other, if a file needs `like`, or if the weights were trained with another activation.
    Raises ExportError if a tag's weights cannot be downloaded.
    """
    if source.model.startswith(PREFIX):
        return _folder(source)
    declare_missing()
    import open_clip

    _check_name(source.model)
    tags = open_clip.list_pretrained_tags_by_model(source.model)
    if source.random_weights:
        chosen = source.like or next(iter(_fitting(source.model, tags)), "")
        return Found(source.model, source.model, RANDOM, _preprocessing(source.model, chosen), None)
    if not source.pretrained:
        some = f"--pretrained TAG ({_some(tags)}) or " if tags else ""
        raise ConfigError(
            f"{source.model} needs weights: give {some}--pretrained FILE; --random-weights is for "
            "tests and benchmarks"
        )
    config = open_clip.get_pretrained_cfg(source.model, source.pretrained)
    if config:
        tag = _spelled(source.pretrained, tags)
        if source.like:
            raise ConfigError(
                f"--like {source.like} is only for a file of weights, and {tag} is a tag; leave "
                "--like out"
            )
        check_activation(source.model, tag)
        file = download(source.model, tag, config)
        return Found(source.model, source.model, tag, _preprocessing(source.model, tag), file)
    return _file(source, tags)


def _folder(source: Source) -> Found:
    if source.pretrained or source.random_weights or source.like:
        raise ConfigError(
            f"{source.model} has its own weights and settings; leave out --pretrained, "
            "--random-weights and --like"
        )
    folder = Path(source.model.removeprefix(PREFIX)).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"{folder} does not exist; name a folder with {CONFIG}")
    folder_config(folder)
    return Found(in_folder(folder), folder.name, "local-dir", {}, None)


def folder_config(folder: Path) -> dict[str, Any]:
    """The `model_cfg` that open_clip saved in `folder`.

    Raises ConfigError if the file is missing or unreadable, or has no `model_cfg` with `text_cfg`.
    """
    path = folder / CONFIG
    try:
        table = read_json(path)
    except FileNotFoundError:
        raise ConfigError(f"{folder} has no {CONFIG}; name a folder that has one") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    config = table.get("model_cfg") if isinstance(table, dict) else None
    if not isinstance(config, dict) or not isinstance(config.get("text_cfg"), dict):
        raise ConfigError(
            f"{path} has no model_cfg with a text_cfg; use the file that open_clip saved"
        )
    return config


def _check_name(model: str) -> None:
    import open_clip

    names = open_clip.list_models()
    if model in names:
        return
    near = nearest(model.replace("/", "-"), names)
    hint = f"did you mean {' or '.join(near)}?" if near else "open_clip.list_models() lists them."
    raise ConfigError(
        f"open_clip has no model {model!r}; {hint} For a folder that open_clip saved, give "
        f"{PREFIX}FOLDER; for the demo's model, give tiny"
    )


def _file(source: Source, tags: Sequence[str]) -> Found:
    path = Path(source.pretrained).expanduser().absolute()
    if not path.exists():
        raise ConfigError(_no_such_weights(source, tags, path))
    path = weights_file(path)
    like = source.like or _tag_in_path(source.model, path)
    if like:
        check_activation(source.model, like)
    elif len(_kinds(source.model, _fitting(source.model, tags))) > 1:
        raise ConfigError(
            f"{path}: open_clip's weights for {source.model} use different preprocessing, and a "
            "file of weights does not record its own; give --like TAG, the tag that these weights "
            f"are or were fine-tuned from ({_some(_fitting(source.model, tags))})"
        )
    else:
        like = next(iter(_fitting(source.model, tags)), "")
    preprocessing = _preprocessing(source.model, like)
    return Found(source.model, source.model, "file", preprocessing, path, source.like)


def tag_file(model: str, tag: str) -> Path:
    """The file of weights of a tag of `model` or its twin, downloaded if it is not cached.

    Raises ConfigError if there is no such tag; ExportError if the download fails.
    """
    return download(model, tag, _tag_config(model, tag))


def _no_such_weights(source: Source, tags: Sequence[str], path: Path) -> str:
    import open_clip

    named = source.pretrained
    if path.suffix or "/" in named:
        tag = f" or a tag ({_some(tags)})" if tags else ""
        return f"{path} does not exist; give a file of weights{tag}"
    others = open_clip.list_pretrained_models_by_tag(named)
    twin = other_activation(source.model)
    if twin in others:
        return f"{named} is a tag of {twin}, not of {source.model}; name that model"
    known = f"its tags are {_some(tags)}" if tags else "open_clip has no weights for it"
    if near := nearest(named, tags):
        known = f"did you mean {_some(near)}? {known[0].upper()}{known[1:]}"
    also = f"; {named} is a tag of {_some(nearest(source.model, others) or others)}"
    return (
        f"{named} is not a tag of {source.model}: {known}{also if others else ''}; "
        "give --pretrained FILE for your own weights"
    )


def check_activation(model: str, tag: str) -> None:
    """Raise ConfigError if the weights of `tag` were trained with another activation.

    Also raised if `tag` is not a tag of `model` or of its twin, the configuration that differs only
    in the activation. A mismatch without a twin is accepted, because it comes from
    open_clip itself: the only configuration of roberta-ViT-B-32 has QuickGELU, and its only tag
    does not mention it.
    """
    quick = _is_quick(model, tag)
    if quick != has_quick_gelu(model) and (twin := other_activation(model)):
        trained, runs = ("QuickGELU", "GELU") if quick else ("GELU", "QuickGELU")
        raise ConfigError(
            f"weights like {tag} were trained with {trained}, but {model} computes {runs}, which "
            f"gives plausible but wrong features; export {twin} instead"
        )


def has_quick_gelu(model: str) -> bool:
    """True if open_clip's configuration `model` uses QuickGELU."""
    import open_clip

    return bool(open_clip.get_model_config(model).get("quick_gelu"))


def quick_twin(model: str) -> str:
    """Name of this architecture's configuration with QuickGELU; "" if there is none."""
    return model if has_quick_gelu(model) else other_activation(model)


def other_activation(model: str) -> str:
    """Name of the configuration with the other activation; "" if there is none."""
    import open_clip

    other = model.removesuffix(_QUICK) if model.endswith(_QUICK) else model + _QUICK
    return other if other in open_clip.list_models() else ""


def _is_quick(model: str, tag: str) -> bool:
    return bool(_tag_config(model, tag).get("quick_gelu"))


def _tag_config(model: str, tag: str) -> dict[str, Any]:
    """open_clip's settings of a tag of `model` or of its twin.

    The twin's tags are included, because only the activation differs. Raises ConfigError for any
    other tag.
    """
    import open_clip

    for name in (model, other_activation(model)):
        config: dict[str, Any] = open_clip.get_pretrained_cfg(name, tag)
        if config:
            return config
    tags = open_clip.list_pretrained_tags_by_model(model)
    near = nearest(tag, tags) or tags
    raise ConfigError(f"--like {tag}: not a tag of {model}; its tags are {_some(near) or 'none'}")


def _preprocessing(model: str, tag: str) -> dict[str, Any]:
    """The tag's preprocessing settings; empty without a tag, for open_clip's defaults."""
    config = _tag_config(model, tag) if tag else {}
    return {key: config[key] for key in _PREPROCESSING if key in config}


def _kinds(model: str, tags: Iterable[str]) -> set[str]:
    return {json.dumps(_preprocessing(model, tag), sort_keys=True) for tag in tags}


def _fitting(model: str, tags: Sequence[str]) -> list[str]:
    """Tags with the activation of the configuration `model`; all tags if none has it."""
    quick = has_quick_gelu(model)
    return [tag for tag in tags if _is_quick(model, tag) == quick] or list(tags)


def _tag_in_path(model: str, path: Path) -> str:
    """Tag whose hub repository is the name of a folder in `path`; "" if there is none.

    This recognises files in a clone of the repository and in the hub's cache.
    """
    import open_clip

    for name in filter(None, (model, other_activation(model))):
        for tag in open_clip.list_pretrained_tags_by_model(name):
            repository = repository_of(open_clip.get_pretrained_cfg(name, tag))
            forms = {repository.rpartition("/")[2], "models--" + repository.replace("/", "--")}
            if repository and forms & set(path.parts):
                return str(tag)
    return ""


def nearest(word: str, words: Sequence[str]) -> list[str]:
    """Up to 5 of `words` that are spelled most like `word`, without regard to case."""
    by_lower = {known.lower(): known for known in words}
    near = difflib.get_close_matches(word.lower(), by_lower, _ENOUGH, 0.7)
    return [by_lower[known] for known in near]


def _spelled(tag: str, tags: Iterable[str]) -> str:
    """The tag as in open_clip's table: `laion2b_e16` for `LAION2B-E16`, which open_clip accepts."""
    wanted = tag.lower().replace("-", "_")
    return next(known for known in tags if known == wanted)


def _some(words: Sequence[str]) -> str:
    more = ", ..." if len(words) > _ENOUGH else ""
    return ", ".join(words[:_ENOUGH]) + more
