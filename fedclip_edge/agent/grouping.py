"""The groups of a device's pictures for its split, and a warning if it should have some."""

from __future__ import annotations

from fedclip_edge import log
from fedclip_edge.config.agent import DataConfig
from fedclip_edge.records import F32
from fedclip_edge.vision.datasets import Dataset, side_of
from fedclip_edge.vision.groups import groups_by_name, groups_by_time, largest
from fedclip_edge.vision.near_copies import near_copies
from fedclip_edge.vision.picture_index import Event, PictureIndex
from fedclip_edge.vision.taken import taken_at

_LARGE_GROUP = 0.5  # share of all pictures; then a side is easily empty
_MANY = 20  # of fewer pictures, a large group is no surprise
_LOOKED_AT = 1000  # test pictures that are compared with all training pictures
_FEW = 3  # fewer near-copies are an accident
_NEAR_COPIES = 0.15  # share of them; among different pictures it is lower (near_copies.py)


def groups_of(data: DataConfig, dataset: Dataset, index: PictureIndex) -> dict[str, str] | None:
    """The group of each picture, labelled or not: a label that comes later changes no side."""
    pictures = (*dataset.pictures, *dataset.unlabelled)
    if data.group_by == "none":
        return None
    if data.group_by == "seconds":
        taken = {
            picture.hash: index.events[picture.hash].taken_s
            if picture.hash in index.events
            else taken_at(picture.path)
            for picture in pictures
        }
        known = {picture: event.key for picture, event in index.events.items()}
        groups = groups_by_time(taken, data, known)
        index.keep_events({one: Event(taken[one], key) for one, key in groups.items()})
    else:
        groups = groups_by_name(pictures, data, dataset.classes)
    if largest(groups) > _LARGE_GROUP and len(pictures) >= _MANY:
        log.event("group_too_large", share=largest(groups), group_by=data.group_by)
    return groups


def known_sides(data: DataConfig, dataset: Dataset, index: PictureIndex) -> dict[str, str]:
    """The side of each picture by hash, labelled or not; no file is read.

    With `group_by = "seconds"`, a picture that the agent has not divided yet is left out.
    """
    pictures = (*dataset.pictures, *dataset.unlabelled)
    if data.group_by == "none":
        groups = {picture.hash: picture.hash for picture in pictures}
    elif data.group_by == "seconds":
        groups = {
            picture.hash: index.events[picture.hash].key
            for picture in pictures
            if picture.hash in index.events
        }
    else:
        groups = groups_by_name(pictures, data, dataset.classes)
    return {picture: side_of(key, data) for picture, key in groups.items()}


def warn_of_near_copies(train: F32, test: F32) -> None:
    """Log how many test pictures look like a training picture, as frames of one event do.

    `train` (N, D) and `test` (M, D) are the features.
    """
    some = test[:_LOOKED_AT]
    count, looked_at = near_copies(some, train), len(some)
    if count >= max(_FEW, _NEAR_COPIES * looked_at):
        log.event(
            "near_copies",
            test_pictures=count,
            of=looked_at,
            hint="set group_by under [data], so that pictures of one event are on one side",
        )
