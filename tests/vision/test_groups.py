"""Pictures of one event on one side of the split."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.config.agent import DataConfig
from fedclip_edge.vision.datasets import Picture, side_of
from fedclip_edge.vision.groups import SIDES, groups_by_name, groups_by_time, largest

FOLDER = Path("/pictures")
CLASSES = ("cat", "dog")
BY_TIME = DataConfig(FOLDER, group_by="seconds", group_seconds=10)


def digest(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def pictures(*files: str) -> list[Picture]:
    """Pictures of different content; `=x` at the end of a name gives the content."""
    found = []
    for file in files:
        name, _, content = file.partition("=")
        found.append(Picture(FOLDER / name, 0, digest(content or name)))
    return found


def together(groups: Mapping[str, str]) -> list[int]:
    counts: dict[str, int] = defaultdict(int)
    for key in groups.values():
        counts[key] += 1
    return sorted(counts.values())


def sides(groups: Mapping[str, str], config: DataConfig) -> dict[str, str]:
    return {picture: side_of(key, config) for picture, key in groups.items()}


def test_a_folder_below_the_class_folder_is_an_event() -> None:
    some = pictures(
        "cat/e1/1.jpg", "cat/e1/2.jpg", "dog/e1/3.jpg", "cat/e2/1.jpg", "cat/4.jpg", "cat/5.jpg"
    )
    assert together(groups_by_name(some, DataConfig(FOLDER, group_by="folder"), CLASSES)) == [
        1,
        1,
        1,
        3,
    ]


@pytest.mark.parametrize(
    ("pattern", "sizes"), [(r"(.*)[_-]", [1, 2, 2]), (r"(cam\d)", [1, 4]), (r"x()", [1] * 5)]
)
def test_a_prefix_of_the_file_name_is_an_event(pattern: str, sizes: list[int]) -> None:
    config = DataConfig(FOLDER, group_by="prefix", group_pattern=pattern)
    some = pictures("cat/cam1_a-1.jpg", "dog/cam1_a-2.jpg", "cam1_b_1.jpg", "cam1_b_2.png", "p.jpg")
    assert together(groups_by_name(some, config, CLASSES)) == sizes


def test_pictures_that_follow_each_other_are_an_event() -> None:
    taken = {digest(n): t for n, t in enumerate((0.0, 9, 18, 30, 40, 1000))}
    groups = groups_by_time(taken, BY_TIME, {})
    assert together(groups) == [1, 2, 3]
    assert largest(groups) == 0.5


def test_the_side_stays_when_the_first_picture_is_deleted_or_an_earlier_one_comes() -> None:
    taken = {digest(n): 10.0 * n for n in range(1, 6)}
    before = groups_by_time(taken, BY_TIME, {})
    del taken[digest(1)]
    taken[digest("earlier")] = 12.0
    taken[digest("last")] = 55.0
    after = groups_by_time(taken, BY_TIME, before)
    assert set(after.values()) == set(before.values())
    del taken[digest(3)]  # in the middle: 20 seconds apart now
    assert len(set(groups_by_time(taken, BY_TIME, after).values())) == 1


def test_a_picture_between_two_groups_never_moves_training_to_the_test_side() -> None:
    moved = set()
    for number in range(200):
        taken = {digest((number, "a")): 0.0, digest((number, "b")): 18.0}
        before = groups_by_time(taken, BY_TIME, {})
        taken[digest((number, "between"))] = 9.0
        after = groups_by_time(taken, BY_TIME, before)
        assert len(set(after.values())) == 1
        was = {SIDES.index(side) for side in sides(before, BY_TIME).values()}
        (now,) = {SIDES.index(side) for side in sides(after, BY_TIME).values()}
        assert now == min(was)
        moved.add((max(was), now))
    assert (2, 0) in moved


NAMES = st.lists(
    st.tuples(
        st.sampled_from(["cat", "dog", "new", "."]),
        st.sampled_from(["", "e1/", "e2/", "a/b/"]),
        st.sampled_from(["e1_1", "e1_2", "e2_1", "e2-7", "x", "y"]),
        st.integers(0, 12),  # content
    ),
    max_size=30,
)


@given(names=NAMES, more=NAMES, by=st.sampled_from(["folder", "prefix"]))
def test_a_group_is_on_one_side_and_stays_there(
    names: list[tuple[str, str, str, int]], more: list[tuple[str, str, str, int]], by: str
) -> None:
    config = DataConfig(FOLDER, group_by=by)  # type: ignore[arg-type]

    def listed(parts: list[tuple[str, str, str, int]], shift: int = 0) -> list[Picture]:
        return pictures(*(f"{c}/{e}{n}.jpg={content + shift}" for c, e, n, content in parts))

    some = listed(names)
    groups = groups_by_name(some, config, CLASSES)
    on: dict[tuple[str, str], set[str]] = defaultdict(set)
    for picture in some:
        parts = picture.path.relative_to(FOLDER).parts[:-1]
        event = parts[1:] if parts and parts[0] in CLASSES else parts
        named = "/".join(event) if by == "folder" else picture.path.stem.rpartition("_")[0]
        on["copy", picture.hash].add(side_of(groups[picture.hash], config))
        if named:
            on["event", named].add(side_of(groups[picture.hash], config))
    assert all(len(found) == 1 for found in on.values())
    # Further pictures, without copies of the first ones, change nothing.
    after = groups_by_name([*some, *listed(more, 100)], config, CLASSES)
    joined = {digest(str(content + 100)) for _, _, _, content in more}
    if len(joined) == len(more):  # no picture joins two groups
        assert {picture: after[picture] for picture in groups} == groups


@given(
    times=st.lists(st.integers(0, 300), max_size=25),
    order=st.randoms(use_true_random=False),
    gone=st.sets(st.integers(0, 24)),
)
def test_frames_within_the_time_are_on_one_side_in_whatever_order_they_come(
    times: list[int], order: object, gone: set[int]
) -> None:
    frames = list(enumerate(times))
    order.shuffle(frames)  # type: ignore[attr-defined]
    taken: dict[str, float] = {}
    known: dict[str, str] = {}
    for number, at in frames:
        taken[digest(number)] = float(at)
        before = {p: SIDES.index(side) for p, side in sides(known, BY_TIME).items()}
        known = groups_by_time(taken, BY_TIME, known)
        for picture, side in sides(known, BY_TIME).items():
            assert SIDES.index(side) <= before.get(picture, 2)
        if number in gone:
            taken.pop(digest(number))
    now = sides(known, BY_TIME)
    in_time = sorted(taken, key=lambda picture: taken[picture])
    for one, other in pairwise(in_time):
        if taken[other] - taken[one] <= 10:
            assert now[one] == now[other]
