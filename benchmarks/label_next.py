"""Accuracy gained by a choice of pictures to label, and the share of wrong labels that are found.

On true CLIP features (`--features FILE.npz`, as `simulate --features` reads them). Accuracies are
those of the gda head on the test pictures, in %, after labelling as many pictures as there are
classes, and twice as many; means of `--seeds` seeds, each with another four fifths of the training
pictures as the unlabelled ones. Wrong labels: one of twenty is replaced by another class.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedclip_edge import log
from fedclip_edge.agent.review import FOLDS, UNLIKELY
from fedclip_edge.learning import moments
from fedclip_edge.learning.evaluation import probabilities
from fedclip_edge.learning.held_out import held_out_logits
from fedclip_edge.learning.label_next import label_next
from fedclip_edge.learning.methods import gda
from fedclip_edge.learning.operations import NUMPY
from fedclip_edge.records import F32, Arrays, ClassTexts, Features
from fedclip_edge.reporting.table import aligned

Indices: TypeAlias = NDArray[np.int64]
# unlabelled features, labelled ones, probabilities of the unlabelled ones, how many, randomness
Rule: TypeAlias = Callable[[F32, F32, F32, int, np.random.Generator], Indices]


def at_random(free: F32, _known: F32, _shares: F32, most: int, rng: np.random.Generator) -> Indices:
    return rng.choice(len(free), most, replace=False)


def by_margin(
    _free: F32, _known: F32, shares: F32, most: int, _rng: np.random.Generator
) -> Indices:
    two = np.sort(shares, axis=1)[:, -2:]
    return np.argsort(two[:, 1] - two[:, 0], kind="stable")[:most]


def by_review(free: F32, known: F32, shares: F32, most: int, _rng: np.random.Generator) -> Indices:
    return np.array([one.index for one in label_next(free, known, shares, most)], np.int64)


RULES: dict[str, Rule] = {"random": at_random, "margin alone": by_margin, "review": by_review}


def solved(features: Features, classes: ClassTexts) -> Arrays:
    initial = gda.initial_parameters(classes, features.vectors.shape[1], 0, gda.Options())
    if not len(features):
        return initial
    sums = moments.send("train", features, len(classes.names), min_per_class=1)
    return gda.head_of(initial, moments.from_sums("train", sums))[0]


def logits(head: Arrays, vectors: F32, classes: ClassTexts) -> F32:
    found: F32 = gda.logits(NUMPY, head, vectors, classes.vectors, classes.logit_scale)
    return found


def labelled_by(
    rule: Rule, train: Features, test: Features, classes: ClassTexts, seed: int
) -> list[float]:
    rng = np.random.default_rng(seed)
    pool = rng.permutation(len(train))[: 4 * len(train) // 5]
    known = np.array([], np.int64)
    head, accuracies = solved(rows(train, known), classes), []
    for _ in range(2):
        free = np.setdiff1d(pool, known)
        shares = probabilities(logits(head, train.vectors[free], classes))
        picked = rule(train.vectors[free], train.vectors[known], shares, len(classes.names), rng)
        known = np.concatenate([known, free[picked]])
        head = solved(rows(train, known), classes)
        right = logits(head, test.vectors, classes).argmax(axis=1) == test.labels
        accuracies.append(100 * float(right.mean()))
    return accuracies


def wrong_labels(train: Features, classes: ClassTexts, seed: int) -> tuple[float, float]:
    """Shares in %: of the wrong labels, and of the others, that `review` lists."""
    rng, count = np.random.default_rng(seed), len(classes.names)
    wrong = np.zeros(len(train), bool)
    wrong[rng.choice(len(train), len(train) // 20, replace=False)] = True
    others = (train.labels + rng.integers(1, count, len(train))) % count
    said = Features(train.vectors, np.where(wrong, others, train.labels), train.encoder_id)
    likely = probabilities(held_out_logits(said, classes, rng.permutation(len(train)) % FOLDS))
    listed = likely[np.arange(len(said)), said.labels] < UNLIKELY
    return 100 * float(listed[wrong].mean()), 100 * float(listed[~wrong].mean())


def rows(features: Features, chosen: Indices) -> Features:
    return Features(features.vectors[chosen], features.labels[chosen], features.encoder_id)


def read(path: Path) -> tuple[Features, Features, ClassTexts]:
    with np.load(path) as file:
        texts = file["class_texts"].astype(np.float32)
        names = tuple(f"{i} {name}" for i, name in enumerate(file["classes"]))  # some occur twice
        sides = [
            Features(file[f"{side}_x"].astype(np.float32), file[f"{side}_y"], "clip")
            for side in ("train", "test")
        ]
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    return sides[0], sides[1], ClassTexts(names, texts, 100.0, "unknown")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=Path, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(words)
    log.mute()
    found: dict[str, dict[str, object]] = {}
    for path in asked.features:
        train, test, classes = read(path)
        seeds = range(asked.seeds)
        table = [["pictures labelled", "0", str(len(classes.names)), str(2 * len(classes.names))]]
        zero_shot = logits(
            solved(rows(train, np.array([], np.int64)), classes), test.vectors, classes
        )
        start = 100 * float((zero_shot.argmax(axis=1) == test.labels).mean())
        its: dict[str, object] = {"zero_shot": start}
        for name, rule in RULES.items():
            runs = [labelled_by(rule, train, test, classes, seed) for seed in seeds]
            means = np.mean(runs, axis=0)
            table.append([name, f"{start:.1f}", *(f"{mean:.1f}" for mean in means)])
            its[name] = means.tolist()
        shares = np.mean([wrong_labels(train, classes, seed) for seed in seeds], axis=0)
        its |= {"wrong_listed": shares[0], "others_listed": shares[1]}
        print(f"{path.stem}, {len(classes.names)} classes\n{aligned(table, gap='  ')}")
        print(
            f"listed as wrong: {shares[0]:.1f} % of the wrong labels, {shares[1]:.1f} % of the others\n"
        )
        found[path.stem] = its
    if asked.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
