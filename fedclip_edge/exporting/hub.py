"""Download of weights from the Hugging Face hub, and a quick check that the hub is reachable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedclip_edge.errors import ExportError, reason_of

_ANSWERS_S = 5.0
_ANY = "config.json"  # any file name gets an answer


def repository_of(config: Mapping[str, Any]) -> str:
    """`org/name` of a tag's `hf_hub` entry, which is `org/name/` or `org/name/file`.

    Empty if the tag has no such entry.
    """
    return str(config.get("hf_hub", "")).rpartition("/")[0]


def download(model: str, tag: str, config: Mapping[str, Any]) -> Path:
    """Download a tag's weights by open_clip's own code; returns the file in the hub's cache.

    `config` is open_clip's configuration of `tag`. Without a connection, an earlier download is
    used. Raises ExportError if there is no connection and no earlier download, or if the download
    fails.
    """
    import open_clip

    repository = repository_of(config)
    if not hub_answers(repository):
        cached = _cached(repository, str(config["hf_hub"]).rpartition("/")[2])
        if cached:
            return cached
        raise ExportError(
            f"the weights {tag} of {model} cannot be downloaded: the Hugging Face hub does not "
            f"answer; download them from {repository} on another machine and give --pretrained FILE"
        )
    try:
        return Path(open_clip.download_pretrained(dict(config)))
    except Exception as error:  # from urllib, httpx or the hub's client
        raise ExportError(
            f"the weights {tag} of {model} cannot be downloaded: {reason_of(error)}; try again, "
            f"or download them from {repository} yourself and give --pretrained FILE"
        ) from error


def hub_answers(repository: str) -> bool:
    """True if the hub answers within 5 seconds, with any status.

    One request is sent; the hub's own client would retry for most of a minute.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    url = huggingface_hub.hf_hub_url(repository, _ANY)
    try:
        huggingface_hub.get_hf_file_metadata(url, timeout=_ANSWERS_S)
    except HfHubHTTPError:  # an error status is also an answer
        return True
    except Exception:  # noqa: BLE001  # the client's transport has errors of its own
        return False
    return True


def check_reach(repository: str, model: str) -> None:
    """Raise ExportError if a text tower's configuration is not cached and the hub does not answer.

    Without this check, transformers would retry for minutes. `model` appears in the message.
    """
    import huggingface_hub

    described = huggingface_hub.try_to_load_from_cache(repository, _ANY)
    if not isinstance(described, str) and not hub_answers(repository):
        raise ExportError(
            f"the text tower of {model} needs the configuration of {repository}, and the Hugging "
            "Face hub does not answer; export on a machine that can reach the hub"
        )


def _cached(repository: str, filename: str) -> Path | None:
    """File of an earlier download, or None; prefers safetensors, as open_clip does."""
    import huggingface_hub

    names = (
        (filename,) if filename else ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    )
    for name in names:
        found = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    return None
