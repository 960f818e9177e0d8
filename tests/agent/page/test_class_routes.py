"""The page of the classes."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from filled_box import FilledBox

from fedclip_edge.agent.page.class_routes import HEIGHT_PX, WIDTH_PX, curve
from fedclip_edge.agent.review import ClassNeed
from fedclip_edge.vision.bundle import Bundle

DEADLINE_S = 60.0


def test_every_class_has_its_pictures_accuracy_and_advice(
    tmp_path: Path, random_bundle: Bundle
) -> None:
    scene = FilledBox(tmp_path, random_bundle, labelled=40, unlabelled=33).write()
    for number in range(2, 40, 3):
        scene.path(number).unlink()
    scene.add([200])
    with scene.opened() as client:
        first = client.get("/classes").text
        names = re.findall(r'href="/\?class=(\w+)"', first)
        assert sorted(names) == sorted(random_bundle.classes.names)
        deadline = time.monotonic() + DEADLINE_S
        while "are being computed" in (page := client.get("/classes").text):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", page, re.DOTALL)
    assert "triangle" in rows[0]  # the neediest is first
    assert "too few pictures" in rows[0]
    assert rows[0].count("–") == 3
    circle = next(row for row in rows if "circle" in row)
    assert "<td>14</td><td>10</td>" in circle  # with a label, and without one but named so
    assert circle.count("<circle") == 2
    assert "hardly gains from more" in circle or "more pictures would help" in circle


@pytest.mark.parametrize(("half", "most"), [(0.0, 1.0), (1.0, 1.0), (0.5, 0.25)])
def test_a_curve_goes_up_with_the_accuracy_and_stays_inside(half: float, most: float) -> None:
    placed = curve(ClassNeed("a", 9, half, most, "more"))
    assert placed is not None
    (x, y), (to_x, to_y) = placed
    assert 0 < x < to_x < WIDTH_PX
    assert (to_y < y) == (most > half)
    assert all(2.5 < value < HEIGHT_PX - 2.5 for value in (y, to_y))
    assert curve(ClassNeed("a", 0, None, None, "too few")) is None
