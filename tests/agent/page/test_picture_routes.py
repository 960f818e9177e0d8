"""The pages that show pictures: the newest ones with filters, and one picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from filled_box import OURS, FilledBox
from starlette.testclient import TestClient

from fedclip_edge.agent.page.catalogue import Catalogue
from fedclip_edge.agent.page.picture_routes import AT_ONCE, NewestPiece
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.web.app import Pages

HOSTILE = '<img src=x onerror="alert(1)">&.jpg'


@pytest.fixture
def scene(tmp_path: Path, random_bundle: Bundle) -> FilledBox:
    return FilledBox(tmp_path, random_bundle, labelled=30, unlabelled=60).write()


@pytest.fixture
def client(scene: FilledBox) -> Iterator[TestClient]:
    with scene.opened() as made:
        yield made


def shown(page: str) -> list[int]:
    """Numbers of the pictures on a page, in their order."""
    return [int(one) for one in re.findall(r'class="file">img-(\d+)\.jpg<', page)]


def test_the_newest_pictures_come_first_and_older_ones_are_linked(client: TestClient) -> None:
    page = client.get("/").text
    assert shown(page) == list(range(89, 29, -1))
    assert 'id="newest"' in page
    assert "90 pictures" in page
    assert 'href="/?page=2"' in page
    second = client.get("/?page=2").text
    assert shown(second) == list(range(29, -1, -1))
    assert 'id="newest"' not in second  # a live piece would replace it with the first page
    assert len(shown(page)) == AT_ONCE


def test_a_card_says_answer_probability_and_label(client: TestClient) -> None:
    page = client.get("/").text
    cards = dict(re.findall(r"<li>(?:(?!</li>).)*?(img-\d+)(.*?)</li>", page, re.DOTALL))
    assert "no label" in cards["img-00089"]
    whole = re.findall(r"<li>.*?</li>", page, re.DOTALL)
    by_name = {re.search(r"img-(\d+)", one)[1]: one for one in whole}  # type: ignore[index]
    assert "triangle" in by_name["00089"]
    assert "93.0 %" in by_name["00089"]
    assert 'class="what unknown">unknown' in by_name["00088"]
    assert "%" not in by_name["00088"]
    assert "unsure</span>" in by_name["00085"]


def test_filters_are_an_address(client: TestClient) -> None:
    assert shown(client.get("/?show=unknown").text) == [88, 77, 66, 55, 44, 33, 22, 11, 0]
    unsure = shown(client.get("/?show=unsure").text)
    assert unsure == [n for n in range(89, -1, -1) if n % 5 == 0 and n % 11]
    squares = shown(client.get("/?class=square&show=unlabelled").text)
    assert squares == [n for n in range(89, 29, -1) if n % 3 == 1 and n % 11]
    assert "There is no such picture." in client.get("/?class=none").text


def test_one_picture_has_its_bars_and_its_label(client: TestClient, scene: FilledBox) -> None:
    (old, new) = scene.learn([scene.path(4), scene.path(40)])
    page = client.get(f"/pictures/{old[:20]}").text
    assert "<b>square</b>, given by the folder." in page
    assert "Correct the label" in page
    assert "Take the label back" not in page
    assert re.search(r'square</span> <span class="share">93.0 %', page)
    assert 'width="93.00"' in page
    assert "By the fleet&#39;s model of run-1" in page or "By the fleet's model of run-1" in page
    assert "so no run uses it" in client.get(f"/pictures/{new[:20]}").text
    data = {"picture": new[:20], "class": "circle", "back": f"/pictures/{new[:20]}"}
    assert client.post("/label", data=data, headers=OURS).status_code == 303
    page = client.get(f"/pictures/{new[:20]}").text
    assert "<b>circle</b>, given by a person." in page
    assert "1 picture labelled as circle by anna." in page
    assert "Take the label back" in page
    for wrong in ("0" * 20, old, old[:19], "..%2f..%2fagent.toml", "%00"):
        assert client.get(f"/pictures/{wrong}").status_code == 404


def test_a_file_name_cannot_become_markup(client: TestClient, scene: FilledBox) -> None:
    path = scene.folder / "inbox" / HOSTILE
    path.write_bytes(scene.path(40).read_bytes() + b"hostile")
    (found,) = scene.learn([path])
    for address in ("/", "/label?tab=all", f"/pictures/{found[:20]}"):
        page = client.get(address).text
        assert "<img src=x" not in page
        assert "&lt;img src=x" in page


def test_the_live_piece_is_rendered_when_a_picture_came(scene: FilledBox) -> None:
    catalogue = Catalogue(scene.config, lambda: scene.bundle)
    folder = Path(__file__).parents[3] / "fedclip_edge" / "agent" / "page" / "templates"
    piece = NewestPiece(catalogue, Pages(folder, "box", {}, name_for="log").environment)
    first = piece.render()
    assert shown(first["newest"])[0] == 89
    assert piece.render() is first
    scene.add([90])
    catalogue.refresh()
    assert shown(piece.render()["newest"])[0] == 90


def test_a_picture_is_shown_before_the_index_is_saved(client: TestClient, scene: FilledBox) -> None:
    (index,) = scene.state.glob("pictures.sqlite")
    before = index.read_bytes()
    (new,) = scene.add([90])
    index.write_bytes(before)
    assert shown(client.get("/").text)[0] == 90
    answer = client.get(f"/pictures/{new[:20]}.jpg")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
