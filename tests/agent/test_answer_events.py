"""One answer for each event, by the votes of its pictures."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from answer_scene import made
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.agent.answer_events import LONGEST_S, EventAnswer, Events
from fedclip_edge.agent.answers import Answer
from fedclip_edge.config.answers import AnswersConfig

CONFIG = AnswersConfig(event_s=10.0)
LABELS = ("circle", "square", "triangle")


def answered(*answers: Answer, config: AnswersConfig = CONFIG) -> EventAnswer:
    events = Events(config)
    for place, one in enumerate(answers):
        events.add(one, float(place))
    (found,) = events.ended(float(len(answers)) + config.event_s, 0.0)
    return found


def test_three_of_five_agree() -> None:
    found = answered(
        *(made("circle", 0.8), made("circle", 0.6), made("square", 0.99)),
        *(made("circle", 0.7), made("triangle", 0.9)),
    )
    assert (found.label, found.is_agreed, found.agree, found.pictures) == ("circle", True, 3, 5)
    assert found.probability == pytest.approx(0.7)


@pytest.mark.parametrize(
    "labels",
    [
        ("circle", "circle"),  # too few pictures
        ("circle", "circle", "square", "square"),  # 50 %
        ("circle", "square", "triangle"),
    ],
)
def test_too_few_pictures_or_no_agreement_is_unknown(labels: tuple[str, ...]) -> None:
    found = answered(*(made(label) for label in labels))
    assert (found.label, found.probability, found.is_agreed) == (None, None, False)
    assert found.to_json()["unknown"] is True


def test_unknown_pictures_can_agree_too() -> None:
    found = answered(*(made("circle", is_unknown=True) for _ in range(3)), made("circle"))
    assert (found.label, found.is_agreed, found.agree) == (None, True, 3)
    assert found.to_json()["unknown"] is True


def test_the_numbers_are_settings() -> None:
    config = AnswersConfig(event_s=10.0, event_pictures=1, event_share=1.0)
    assert answered(made("circle"), config=config).label == "circle"
    assert answered(made("circle"), made("square"), config=config).label is None


def test_an_event_is_answered_once_when_it_is_over() -> None:
    events = Events(CONFIG)
    for now in (0.0, 9.0, 18.0):
        events.add(made("circle"), now)
        assert events.ended(now + 9.9, 0.0) == []
    (found,) = events.ended(28.0, 0.0)
    assert found.pictures == 3
    assert events.ended(100.0, 0.0) == []
    events.add(made("circle"), 101.0)
    assert [one.pictures for one in events.ended(111.0, 0.0)] == [1]


def test_an_event_without_a_pause_ends_all_the_same() -> None:
    events, now, ended = Events(CONFIG), 0.0, 0
    while now < 2 * LONGEST_S:
        events.add(made("circle"), now)
        ended += len(events.ended(now, 0.0))
        now += 1.0
    assert ended == 1


def test_events_are_apart_and_pictures_of_none_do_not_count() -> None:
    events = Events(CONFIG)
    for one in (made("circle", event="a"), made("square", event="b"), made("circle", event="")):
        events.add(one, 0.0)
    assert [one.event for one in events.ended(10.0, 0.0)] == ["a", "b"]


def test_when_the_device_stops_open_events_are_answered() -> None:
    events = Events(CONFIG)
    events.add(made("circle"), 0.0)
    assert len(events.ended(0.0, 0.0, all_of_them=True)) == 1


def test_the_json_names_the_event() -> None:
    found = answered(*(made("circle", 0.5) for _ in range(3)))
    assert found.to_json() == {
        "time": "1970-01-01T00:00:00.000+00:00",
        "device": "cam-07",
        "event": "door",
        "label": "circle",
        "probability": 0.5,
        "unknown": False,
        "agreed": True,
        "agree": 3,
        "pictures": 3,
        "last_picture": "/inbox/a.jpg",
        "model": "zero-shot",
    }


@given(
    st.lists(st.tuples(st.sampled_from(LABELS), st.booleans()), min_size=1, max_size=12),
    st.integers(0, 2**16),
)
def test_the_order_of_the_pictures_does_not_matter(
    votes: list[tuple[str, bool]], seed: int
) -> None:
    answers = [made(label, 0.5, is_unknown=unknown) for label, unknown in votes]
    mixed = random.Random(seed).sample(answers, len(answers))
    one, other = answered(*answers), answered(*mixed)
    assert replace(one, last=answers[0]) == replace(other, last=answers[0])
