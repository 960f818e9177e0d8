"""The page on which a person labels: lists, one POST for all selected pictures, and undo."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filled_box import OURS, FilledBox
from starlette.testclient import TestClient

from fedclip_edge.agent.label_store import labels_in, set_labels
from fedclip_edge.agent.page.label_routes import KEYS
from fedclip_edge.vision.bundle import Bundle

DEADLINE_S = 60.0


@pytest.fixture
def scene(tmp_path: Path, random_bundle: Bundle) -> FilledBox:
    made = FilledBox(tmp_path, random_bundle, labelled=30, unlabelled=130).write()
    # A circle in the folder of the squares.
    wrong = made.folder / "pictures" / "square" / "img-00900.jpg"
    wrong.write_bytes(made.path(0).read_bytes() + b"copy")
    made.give_feature(made.learn([wrong])[0], 3)
    return made


@pytest.fixture
def client(scene: FilledBox) -> Iterator[TestClient]:
    with scene.opened() as made:
        yield made


def ids(page: str) -> list[str]:
    return re.findall(r'name="picture" value="([0-9a-f]{20})"', page)


def listed(client: TestClient, tab: str) -> list[str]:
    """The ids of a list, once it is computed."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        page = client.get(f"/label?tab={tab}").text
        if "are being computed" not in page:
            return ids(page)
        time.sleep(0.02)
    raise AssertionError("still computing")


def post(client: TestClient, pictures: list[str], **fields: str) -> int:
    data = {"picture": pictures, "back": "/label?tab=all", **fields}
    answer = client.post("/label", data=data, headers=OURS)
    if answer.status_code == 303:
        assert answer.headers["location"] == "/label?tab=all#pictures"
    return answer.status_code


def undo(client: TestClient) -> str:
    """Undo the step that the page offers, and return its words."""
    page = client.get("/label?tab=all").text
    words = re.search(r'role="status"><span>(.*?)</span>', page)
    step = re.search(r'name="step" value="(\w+)"', page)
    assert words
    assert step
    fields = {"step": step[1], "back": "/label?tab=all"}
    assert client.post("/label/undo", data=fields, headers=OURS).status_code == 303
    return words[1]


def test_a_hundred_pictures_are_labelled_in_one_post_and_undone(
    client: TestClient, scene: FilledBox
) -> None:
    before = ids(client.get("/label?tab=all").text)
    assert len(before) == 120
    assert "page 1 of 2" in client.get("/label?tab=all").text
    chosen = before[10:110]
    assert post(client, chosen, typed="Circle") == 409  # no such class
    assert post(client, chosen, typed="circle") == 303
    labels = labels_in(scene.state)
    assert {one[:20] for one in labels} == set(chosen)
    assert set(labels.values()) == {"circle"}
    assert not set(chosen) & set(ids(client.get("/label?tab=all").text))
    assert post(client, chosen[:1], **{"class": "square"}) == 303
    assert post(client, chosen[1:3], action="take") == 303
    assert undo(client) == "The label of 2 pictures taken back by anna."
    assert undo(client) == "1 picture labelled as square by anna."
    assert labels_in(scene.state) == labels
    assert undo(client) == "100 pictures labelled as circle by anna."
    assert labels_in(scene.state) == {}
    assert 'id="undo"' not in client.get("/label?tab=all").text
    assert ids(client.get("/label?tab=all").text) == before


def test_what_is_worth_a_label_is_listed_until_it_has_one(
    client: TestClient, scene: FilledBox
) -> None:
    worth = listed(client, "worth")
    assert worth
    assert post(client, worth[:2], **{"class": "circle"}) == 303
    assert not set(worth[:2]) & set(ids(client.get("/label").text))  # also before the next review
    again = listed(client, "worth")
    assert not set(worth[:2]) & set(again)


def test_a_doubtful_label_is_corrected_or_confirmed_and_listed_no_more(
    client: TestClient, scene: FilledBox
) -> None:
    (wrong,) = listed(client, "doubtful")
    page = client.get("/label?tab=doubtful").text
    assert "but the label is square" in page
    assert "Their labels are right" in page
    assert post(client, [wrong], action="keep") == 303
    assert labels_in(scene.state) == {}  # the label stays that of the folder
    assert ids(client.get("/label?tab=doubtful").text) == []
    assert listed(client, "doubtful") == []
    assert undo(client) == "The label of 1 picture confirmed by anna."
    assert listed(client, "doubtful") == [wrong]
    assert post(client, [wrong], **{"class": "circle"}) == 303
    assert listed(client, "doubtful") == []


def test_a_step_is_undone_once_and_only_the_newest(client: TestClient, scene: FilledBox) -> None:
    (one, two, *_) = ids(client.get("/label?tab=all").text)
    post(client, [one], typed="circle")
    step = re.search(r'name="step" value="(\w+)"', client.get("/label").text)
    assert step
    post(client, [two], typed="square")
    fields = {"step": step[1], "back": "/label"}
    refused = client.post("/label/undo", data=fields, headers=OURS)
    assert (refused.status_code, len(labels_in(scene.state))) == (409, 2)
    assert "another one followed" in refused.text


def test_a_form_that_says_nothing_useful_changes_nothing(
    client: TestClient, scene: FilledBox
) -> None:
    (one, *_) = ids(client.get("/label?tab=all").text)
    assert post(client, []) == 409
    assert post(client, [one]) == 409
    assert post(client, ["f" * 20], typed="circle") == 409
    data = {"picture": "f" * 20, "typed": "circle"}
    assert "not on this device any more" in client.post("/label", data=data, headers=OURS).text
    assert post(client, [one], typed="<b>") == 409
    assert post(client, [one] * 3000, typed="circle") == 413
    for foreign in ({}, {"Origin": "http://evil.example"}):
        data = {"picture": one, "typed": "circle"}
        assert client.post("/label", data=data, headers=foreign).status_code == 403
    assert labels_in(scene.state) == {}


@pytest.mark.parametrize(
    "back", ["//evil.example", "https://evil.example/label", "/label?x=//e", "/logout", ""]
)
def test_the_way_back_stays_on_the_page(client: TestClient, back: str) -> None:
    (one, *_) = ids(client.get("/label?tab=all").text)
    data = {"picture": one, "typed": "circle", "back": back}
    answer = client.post("/label", data=data, headers=OURS)
    assert answer.headers["location"] == "/label#pictures"
    answer = client.post("/label", data={**data, "back": f"/pictures/{one}"}, headers=OURS)
    assert answer.headers["location"] == f"/pictures/{one}"


def test_each_class_has_a_key_that_does_nothing_else(client: TestClient) -> None:
    page = client.get("/label?tab=all").text
    assert re.findall(r'value="(\w+)" data-key="(.)"', page) == [
        ("circle", "1"),
        ("square", "2"),
        ("triangle", "3"),
    ]
    assert not {"a", "n", "u"} & set(KEYS)
    assert client.get("/label?tab=none").status_code == 404


def test_labels_from_elsewhere_are_seen(client: TestClient, scene: FilledBox) -> None:
    (picture,) = scene.learn([scene.path(100)])
    assert picture[:20] in ids(client.get("/label?tab=all").text)
    set_labels(scene.state, {picture: "circle"})
    deadline = time.monotonic() + DEADLINE_S
    while picture[:20] in ids(client.get("/label?tab=all").text):
        assert time.monotonic() < deadline
        time.sleep(0.02)
