"""Weights from a hub: downloaded once, and a clear error if no hub answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_models

from fedclip_edge.errors import ExportError
from fedclip_edge.exporting.hub import check_reach, hub_answers
from fedclip_edge.exporting.recipe import Source
from fedclip_edge.exporting.sources import find


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with small_models.registered(tmp_path_factory.mktemp("configs")):
        yield


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_hub(monkeypatch, tmp_path, "http://127.0.0.1:9")


def use_hub(monkeypatch: pytest.MonkeyPatch, cache: Path, address: str) -> None:
    """Set the hub's address; huggingface_hub reads its environment only on import."""
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", _TEMPLATE.replace("HUB", address))
    for module in (constants, file_download):
        if hasattr(module, "HF_HUB_CACHE"):
            monkeypatch.setattr(module, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


_TEMPLATE = "HUB/{repo_id}/resolve/{revision}/{filename}"


@pytest.mark.usefixtures("no_hub")
def test_without_a_hub_one_sentence_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(
        ExportError, match=r"the Hugging Face hub does not answer; .* --pretrained FILE"
    ):
        find(Source("ViT-B-32", "laion2b_s34b_b79k"))
    assert waits == []  # no second attempt


def test_a_tag_is_downloaded_once_and_then_taken_from_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = {"org/small.plain_e1/open_clip_model.safetensors": b"weights"}
    with small_models.hub(files) as address:
        use_hub(monkeypatch, tmp_path, address)
        found = find(Source("small", "Plain-E1"))
    assert found.label == "plain_e1"
    assert found.file is not None
    assert found.file.read_bytes() == b"weights"
    assert find(Source("small", "plain_e1")).file == found.file  # the hub no longer runs


def test_a_hub_without_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with small_models.hub({}) as address:
        use_hub(monkeypatch, tmp_path, address)
        with pytest.raises(ExportError, match="cannot be downloaded: Failed to download file"):
            find(Source("small", "plain_e1"))


def test_whether_a_text_tower_can_be_described(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with small_models.hub({}) as address:
        use_hub(monkeypatch, tmp_path, address)
        assert hub_answers("org/tower")  # an answer of "not found" counts
        check_reach("org/tower", "small")
    assert not hub_answers("org/tower")
    with pytest.raises(
        ExportError, match="text tower of small needs the configuration of org/tower, and"
    ):
        check_reach("org/tower", "small")
    described = tmp_path / "models--org--tower" / "snapshots" / ("0" * 40) / "config.json"
    described.parent.mkdir(parents=True)
    described.write_text("{}")
    refs = tmp_path / "models--org--tower" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    check_reach("org/tower", "small")
