"""Weights from a hub, and a quick answer where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedclip_edge.errors import ExportError, first_line

_ANSWERS_S = 5.0
_ANY = "config.json"  # to be answered, any name will do


def repository_of(config: Mapping[str, Any]) -> str:
    """`org/name` out of `org/name/` or `org/name/file`."""
    return str(config.get("hf_hub", "")).rpartition("/")[0]


def download(model: str, tag: str, config: Mapping[str, Any]) -> Path:
    """The file of weights of open_clip's tag, through open_clip's own code and the hub's cache.

    `config` is the tag's. Raises ExportError where it cannot be had.
    """
    import open_clip

    repository = repository_of(config)
    if not hub_answers(repository):
        cached = _cached(repository, str(config["hf_hub"]).rpartition("/")[2])
        if cached:
            return cached
        raise ExportError(
            f"the weights {tag} of {model} cannot be downloaded: no hub answers from here; fetch "
            f"them from {repository} on a machine that can, and give --pretrained FILE"
        )
    try:
        return Path(open_clip.download_pretrained(dict(config)))
    except Exception as error:  # whatever urllib, httpx and the hub's client raise
        raise ExportError(
            f"the weights {tag} of {model} cannot be downloaded: {first_line(error)}; try again, "
            f"or fetch them from {repository} and give --pretrained FILE"
        ) from error


def hub_answers(repository: str) -> bool:
    """Asks once, with a short limit: the hub's client itself retries for most of a minute."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    url = huggingface_hub.hf_hub_url(repository, _ANY)
    try:
        huggingface_hub.get_hf_file_metadata(url, timeout=_ANSWERS_S)
    except HfHubHTTPError:  # an answer, if not the one hoped for
        return True
    except Exception:  # noqa: BLE001  # the client's transport has its own family of errors
        return False
    return True


def check_reach(repository: str, model: str) -> None:
    """Raises ExportError where transformers would ask in vain for what describes a text tower."""
    import huggingface_hub

    described = huggingface_hub.try_to_load_from_cache(repository, _ANY)
    if not isinstance(described, str) and not hub_answers(repository):
        raise ExportError(
            f"the text tower of {model} is described by {repository}, and no hub answers from "
            "here; export it on a machine that can reach one"
        )


def _cached(repository: str, filename: str) -> Path | None:
    """What an earlier download left; open_clip prefers safetensors as well."""
    import huggingface_hub

    names = (
        (filename,) if filename else ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    )
    for name in names:
        found = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    return None
