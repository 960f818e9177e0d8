"""Small copies of pictures on the box's page: by id only, and only of what the agent has read."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from opened_box import BoxScene
from PIL import Image
from starlette.testclient import TestClient

from fedclip_edge.agent.page.thumbnails import Memory
from fedclip_edge.vision.picture_index import FileState, state_of


@pytest.fixture
def box(tmp_path: Path) -> BoxScene:
    return BoxScene(tmp_path)


@pytest.fixture
def client(box: BoxScene) -> Iterator[TestClient]:
    with box.opened() as made:
        yield made


def test_a_picture_is_sent_small_in_two_sizes(box: BoxScene, client: TestClient) -> None:
    picture = box.add_picture("a.jpg", (1600, 800))
    for size, width in (("s", 256), ("l", 1024)):
        answer = client.get(f"/pictures/{picture}.jpg?size={size}")
        assert answer.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(answer.content)).size == (width, width // 2)
        assert answer.headers["cache-control"] == "private, max-age=3600"
        known = {"If-None-Match": answer.headers["etag"]}
        again = client.get(f"/pictures/{picture}.jpg?size={size}", headers=known)
        assert (again.status_code, again.content) == (304, b"")


def test_nothing_is_sent_but_pictures_of_the_index(box: BoxScene, client: TestClient) -> None:
    picture = box.add_picture("a.jpg")
    other = box.folder / "pictures" / "new.jpg"
    other.write_bytes((box.folder / "pictures" / "a.jpg").read_bytes() + b"another")
    for name in (
        "0" * 20,
        picture[:19],
        f"{picture}0",
        "..%2F..%2Fagent",
        "%2Fetc%2Fpasswd",
        "pictures%2Fa",
        "%00",
    ):
        assert client.get(f"/pictures/{name}.jpg").status_code == 404, name
    assert client.get(f"/pictures/{picture}.jpg?size=xl").status_code == 404


def test_a_picture_that_came_later_is_found(box: BoxScene, client: TestClient) -> None:
    box.add_picture("a.jpg")
    assert client.get(f"/pictures/{'0' * 20}.jpg").status_code == 404
    picture = box.add_picture("b.jpg")
    assert client.get(f"/pictures/{picture}.jpg").status_code == 200


def test_without_a_session_there_is_no_picture(box: BoxScene) -> None:
    picture = box.add_picture("a.jpg")
    with box.opened(logs_in=False) as stranger:
        answer = stranger.get(f"/pictures/{picture}.jpg")
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")


def test_a_file_that_changed_or_is_gone_gives_a_drawing(box: BoxScene, client: TestClient) -> None:
    changed, gone, link = (box.add_picture(f"{name}.jpg") for name in ("a", "b", "c"))
    address = "/pictures/{}.jpg"
    assert client.get(address.format(changed)).headers["content-type"] == "image/jpeg"
    pictures = box.folder / "pictures"
    Image.new("RGB", (50, 50), "red").save(pictures / "a.jpg")
    (pictures / "b.jpg").unlink()
    (pictures / "c.jpg").unlink()
    (pictures / "c.jpg").symlink_to(box.token_file)
    for name in (changed, gone, link):
        answer = client.get(address.format(name))
        assert answer.headers["content-type"] == "image/svg+xml"
        assert "no longer there" in answer.text
        assert answer.headers["cache-control"] == "no-store"


def test_a_file_that_was_only_touched_is_still_the_picture(
    box: BoxScene, client: TestClient
) -> None:
    picture = box.add_picture("a.jpg")
    os.utime(box.folder / "pictures" / "a.jpg", (1, 1))
    answer = client.get(f"/pictures/{picture}.jpg")
    assert answer.headers["content-type"] == "image/jpeg"


def test_what_cannot_be_decoded_gives_a_drawing(box: BoxScene, client: TestClient) -> None:
    picture = box.add_file("a.jpg", b"no picture")
    assert "cannot be shown" in client.get(f"/pictures/{picture}.jpg").text


def test_the_memory_is_limited_and_keeps_what_is_used(tmp_path: Path) -> None:
    memory, state = Memory(most_bytes=100), state_of(tmp_path)
    memory.keep("a", "s", state, b"a" * 40)
    memory.keep("b", "s", state, b"b" * 40)
    assert memory.find("a", "s", state) == b"a" * 40
    memory.keep("c", "s", state, b"c" * 40)
    assert memory.find("b", "s", state) is None
    assert memory.find("a", "s", state) is not None
    assert memory.find("a", "s", FileState(1, 2, 3, 4)) is None
    memory.keep("a", "s", state, b"A" * 60)
    assert memory.find("a", "s", state) == b"A" * 60
    assert memory.find("c", "s", state) is not None
    memory.keep("d", "s", state, b"d" * 101)
    assert memory.find("d", "s", state) is None
