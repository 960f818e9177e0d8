"""A fleet of ten virtual devices with drawn features, for own_method.py and own_strategy.py.

`compare` runs the functions of `fedclip-edge simulate` in this process, on features drawn from a
seed: random class texts, and pictures round their class text. All pictures are moved by one offset,
as image features of CLIP are, so zero-shot CLIP prefers some classes.
"""

from __future__ import annotations

import numpy as np

from fedclip_edge import log
from fedclip_edge.learning.training import use_one_thread
from fedclip_edge.records import F32, ClassTexts
from fedclip_edge.simulating import comparison
from fedclip_edge.simulating.pool import TEST, TRAIN, VALIDATION, Pool
from fedclip_edge.simulating.settings import parse_settings
from fedclip_edge.simulating.splits import parse_split
from fedclip_edge.simulating.workers import Here

CLASSES, DIM, PICTURES = ("ant", "bee", "cat", "dog", "elk", "fox"), 32, 3000
NOISE, OFFSET, NORM = 0.25, 1.6, 10.0


def compare(methods: str, rounds: int, *, noisy: float = 0.0) -> None:
    """Run the settings that `methods` names, as in `simulate --methods`, and print a row for each.

    `noisy` is the share of the devices that send noise instead of their update.
    """
    log.mute()  # a coordinator's events would stand between the rows
    use_one_thread()  # the same seed gives the same bytes
    pool = drawn()
    choices = comparison.Choices(
        parse_settings(methods, rounds), parse_split("dirichlet:1"), devices=10, noisy=noisy
    )
    print(f"{'setting':<34} zero-shot % federated % kB up")
    for step in comparison.compare(choices, pool, Here(pool), print):
        for outcome in step.outcomes:
            assert outcome.fleet is not None
            assert outcome.zero_shot is not None
            before, after = 100 * outcome.zero_shot.weighted, 100 * outcome.fleet.weighted
            kilobytes = outcome.up_bytes / 1000
            print(f"{outcome.run.setting.label:<34} {before:11.1f} {after:11.1f} {kilobytes:5.0f}")


def drawn() -> Pool:
    """Draw the features, always the same ones: three of five for training, one for validation."""
    random = np.random.default_rng(0)
    texts = unit(random.normal(size=(len(CLASSES), DIM)))  # (C, D)
    labels = random.integers(0, len(CLASSES), PICTURES)
    offset = OFFSET * unit(random.normal(size=(1, DIM)))  # (1, D)
    spread = NOISE * random.normal(size=(PICTURES, DIM))
    vectors = NORM * (texts[labels] + offset + spread)  # (N, D)
    sides = np.array([TRAIN, TRAIN, TRAIN, VALIDATION, TEST], np.uint8)
    return Pool(
        classes=ClassTexts(CLASSES, texts, 100.0, "unknown"),
        encoder_id="e" * 64,
        vectors=vectors.astype(np.float32),
        labels=labels,
        sides=np.resize(sides, PICTURES),
        domains=(),
        domain_of=np.zeros(PICTURES, np.int64),
    )


def unit(rows: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> F32:
    """Scale rows to length 1."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
