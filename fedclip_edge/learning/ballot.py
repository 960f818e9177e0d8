"""The vote: devices compare candidate models on their validation pictures, without sending any.

A ballot is a mixture (mixture.py) whose members have several shares each, one for each candidate:

    logits of candidate k = sum over the members m of shares[k, m] * logits_m

So K candidates cost hardly more bytes than their members. Candidate 0 is zero-shot CLIP, candidate
DEFAULT is the one that is taken without a vote. The ballot is published like any other model, and
is evaluated as candidate DEFAULT. If that is zero-shot CLIP as well, it is evaluated as the last
candidate, the trained head alone, so that reports show what training has reached.

A device's answer has integer sums over at most MOST of its validation pictures, by candidate k and
temperature t of TEMPERATURES (the logits are multiplied by t):

    pictures   n                                                                       int64 (1,)
    correct    pictures that candidate k classifies correctly                          int64 (K,)
    differ     pictures that either candidate k or the default, but not both,
               classifies correctly                                                    int64 (K,)
    loss       sum of the cross-entropies, each at most 16 nats, in steps of 2**-16    int64 (K, T)
    squares    sum of (its loss - that of the default)**2, each rounded, same steps    int64 (K, T)
    known      counts of the pictures' scores under candidate k (unknown.py)        int64 (K, BINS)
    removed    the same, without the class of each picture                          int64 (K, BINS)

The decision: each candidate stands at its own best temperature. The default stays, unless another
candidate is better by more than chance explains:

- its mean loss is lower by more than DOUBT standard errors of the difference; or
- it classifies more pictures correctly, by more than CERTAIN standard errors of the difference,
  and its mean loss is not higher by more than DOUBT of them.

The errors are paired: both are measured on the same pictures. A smaller difference is noise, and
the default has reasons of its own. Among several such candidates the one with the most correct
pictures wins, then the one with the least loss. The loss can show a difference with fewer pictures
than the accuracy needs. But with many pictures, a head can be more accurate although its
probabilities are not better.

With fewer than ENOUGH pictures in all, the default is taken, or another candidate that the method
names (`Method.without_vote`), at temperature 1, and no picture is called unknown.

Laws:

- The sums of any partition of the same pictures add up to the same integers, if no device has more
  than MOST.
- The decision depends on the added sums only.
- Test pictures and training pictures are never used.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedclip_edge.errors import PeerError
from fedclip_edge.learning import mixture, unknown
from fedclip_edge.learning.method import Logits, scores
from fedclip_edge.learning.moments import F64
from fedclip_edge.records import (
    F32,
    I64,
    Arrays,
    ClassTexts,
    Features,
    Model,
    Shapes,
    Sums,
    Update,
)

TEMPERATURES = (0.5, 0.7, 1.0)
DEFAULT = 1  # the candidate that is taken without a vote
MOST = 500  # pictures of one device, so that no device dominates a vote
ENOUGH = 30  # pictures of all devices
DOUBT = 1.5  # standard errors of a mean loss
CERTAIN = 2.0  # standard errors of a number of correct pictures
CANDIDATES = 9  # at most: an answer to these has no more than 2 kB
_STEPS = 2**16
_BATCH = 64  # pictures
_WORST = 16.0  # nats; a single picture cannot cost more
_SHARES = "shares"
_CHOICE = "choice"
_COUNTS = frozenset({"candidate", "pictures", "correct", "zero_shot_correct"})

Shares = Mapping[str, tuple[float, ...]]  # of each member, by label: one for each candidate


@dataclass(frozen=True)
class Choice:
    """The result of a vote."""

    candidate: int = DEFAULT
    temperature: float = 1.0
    pictures: int = 0
    loss: float | None = None  # mean of the candidate, in nats; None without pictures
    zero_shot_loss: float | None = None  # at its own best temperature
    correct: int = 0
    zero_shot_correct: int = 0
    unknown_below: float = unknown.NEVER  # threshold for the scores of the candidate on the ballot
    removed_unknown: float | None = None  # share of the pictures without their class below it

    def to_state(self) -> dict[str, NDArray[Any]]:
        """Return the choice as an array for the coordinator's state; None becomes NaN."""
        values = [getattr(self, field.name) for field in fields(self)]
        return {_CHOICE: np.array([math.nan if v is None else v for v in values], np.float64)}


def choice_in(state: Mapping[str, NDArray[Any]]) -> Choice | None:
    """Return the choice in the state after a vote; None if it has none."""
    if _CHOICE not in state:
        return None
    values: dict[str, Any] = {}
    for field, value in zip(fields(Choice), state[_CHOICE].tolist(), strict=True):
        values[field.name] = int(value) if field.name in _COUNTS else value
        if math.isnan(value):
            values[field.name] = None
    return Choice(**values)


def made(method: str, round: int, members: Mapping[str, Arrays], shares: Shares) -> Model:
    """Make the ballot of some members; until the vote it predicts as described above."""
    is_trained = any(its[DEFAULT] != its[0] for its in shares.values())
    first = {label: its[DEFAULT if is_trained else -1] for label, its in shares.items()}
    lists = {f"{label}/{_SHARES}": np.array(its, np.float32) for label, its in shares.items()}
    return Model(method, round, {**mixture.parameters(members, first), **lists})


def shapes(members: Mapping[str, Shapes], shares: Shares) -> Shapes:
    """Compute the shapes of a ballot's parameters from those of its members."""
    candidates = {f"{label}/{_SHARES}": (len(its),) for label, its in shares.items()}
    return {**mixture.shapes(members), **candidates}


def members_of(model: Model) -> dict[str, Arrays]:
    """Return the parameters of the members of a ballot by label."""
    found = mixture.members_of(model)
    return {
        label: {name: term for name, term in its.items() if name != _SHARES}
        for label, its in found.items()
    }


def sum_shapes(shares: Shares) -> Shapes:
    """Names and shapes of the integer sums of an answer."""
    count = len(shares[mixture.ZERO_SHOT])
    table = (count, len(TEMPERATURES))
    counts = {name: (count, *shape) for name, shape in unknown.sum_shapes().items()}
    each = {"correct": (count,), "differ": (count,), "loss": table, "squares": table}
    return {"pictures": (1,), **each, **counts}


def answer(
    model: Model,
    validation: Features,
    classes: ClassTexts,
    least: int,
    of: Callable[[str], Logits],
) -> Update:
    """Compute a device's answer to a ballot.

    With fewer than `least` validation pictures it has none (n = 0). `of` returns the `logits` of a
    method by name.
    """
    labels = sorted(mixture.shares_of(model))
    shares = np.stack([model.parameters[f"{label}/{_SHARES}"] for label in labels])  # (M, K)
    table = (shares.shape[1], len(TEMPERATURES))
    correct, differ = np.zeros(table[0], np.int64), np.zeros(table[0], np.int64)
    loss, squares = np.zeros(table), np.zeros(table)
    chosen = _chosen(validation)
    count = len(chosen.labels) if len(validation) >= least else 0
    counts = {
        name: np.zeros((table[0], *shape), np.int64) for name, shape in unknown.sum_shapes().items()
    }
    if count:
        heads = members_of(model)
        parts = [
            _scores(of(method), Model(method, 0, heads[label]), chosen.vectors, classes)
            for label in labels
            for method in (mixture.method_of(label),)
        ]
        zero_shot = parts[labels.index(mixture.ZERO_SHOT)].astype(np.float32)  # (N, C)
        costs, hits = np.empty((*table, count)), np.empty((table[0], count), bool)
        for k in range(table[0]):
            logits = _mixed(shares[:, k], parts)
            hits[k] = logits.argmax(axis=1) == chosen.labels
            found = unknown.count(logits, zero_shot, classes.logit_scale, chosen.labels)
            for name, its in found.items():
                counts[name][k] = its
            for t, temperature in enumerate(TEMPERATURES):
                costs[k, t] = _cross_entropy(temperature * logits, chosen.labels)
        correct, differ = hits.sum(axis=1), (hits != hits[DEFAULT]).sum(axis=1)
        loss = np.rint(costs * _STEPS).sum(axis=2)
        squares = np.rint((costs - costs[DEFAULT]) ** 2 * _STEPS).sum(axis=2)
    sums = {
        "pictures": np.array([count], np.int64),
        "correct": correct.astype(np.int64),
        "differ": differ.astype(np.int64),
        "loss": loss.astype(np.int64),
        "squares": squares.astype(np.int64),
        **counts,
    }
    return Update("sum", max(1, count), {}, sums)


def check(update: Update, declared: int | None = None) -> None:
    """Raise PeerError, with the reason, for an answer that no device can give.

    `declared` is the number of pictures of the device, if it is known.
    """
    sums = update.sums
    count = int(sums["pictures"][0])
    if not 0 <= count <= MOST:
        raise PeerError(f"the answer to the vote is over {count} pictures; expected 0 to {MOST}")
    if declared is not None and count > declared:
        raise PeerError(
            f"the answer to the vote is over {count} pictures, but the device declared {declared}"
        )
    if update.weight != max(1, count):
        raise PeerError(f"the answer's weight is {update.weight}, but it is over {count} pictures")
    for name, most in (
        ("correct", count),
        ("differ", count),
        ("loss", count * _WORST * _STEPS),
        ("squares", count * _WORST**2 * _STEPS),
    ):
        low, high = int(sums[name].min()), int(sums[name].max())
        if not 0 <= low <= high <= most:
            raise PeerError(
                f"the answer's {name} are from {low} to {high}; {count} pictures give 0 to {most:g}"
            )
    for name in (unknown.KNOWN, unknown.REMOVED):
        if sums[name].min() < 0 or (sums[name].sum(axis=1) != count).any():
            raise PeerError(f"the answer's {name} do not count {count} pictures for each candidate")
    more = np.abs(sums["correct"] - sums["correct"][DEFAULT])
    if (more > sums["differ"]).any() or sums["differ"][DEFAULT]:
        raise PeerError(
            "the answer's numbers of correct pictures differ more from the default candidate's than "
            "its numbers of different pictures allow"
        )
    if sums["squares"][DEFAULT].any():
        raise PeerError("the answer's squares of the default candidate are not 0")
    # The decision trusts the squares: if they were too small, any difference would look certain.
    difference = np.abs(sums["loss"] - sums["loss"][DEFAULT]).astype(np.float64)
    rounded = np.maximum(difference - count, 0)  # each loss is rounded by half a step at most
    if (rounded**2 > (sums["squares"] + 0.5 * count + 1) * float(count * _STEPS)).any():
        raise PeerError("the answer's squares are smaller than the differences of its losses allow")


def decide(sums: Sums, without_vote: int = DEFAULT) -> Choice:
    """Choose a candidate and its temperature from the added answers.

    With fewer than ENOUGH pictures it is the candidate `without_vote`.
    """
    count = int(sums["pictures"][0]) if sums else 0
    if count < ENOUGH:
        return Choice(without_vote, pictures=count)
    losses = sums["loss"] / (_STEPS * count)  # (K, T), means in nats
    best = losses.argmin(axis=1)  # (K,)
    least = losses.min(axis=1)
    correct = sums["correct"].astype(np.float64)
    better = []
    for k in range(len(losses)):
        gain = least[DEFAULT] - least[k]
        # The difference at the candidate's temperature has nearly the same variance as `gain`.
        squares = float(sums["squares"][k, best[k]]) / (_STEPS * count)
        difference = float(losses[DEFAULT, best[k]] - losses[k, best[k]])
        doubt = DOUBT * math.sqrt(max(0.0, squares - difference**2) / (count - 1))
        more = correct[k] - correct[DEFAULT]
        is_right = more > CERTAIN * math.sqrt(max(0.0, sums["differ"][k] - more**2 / count))
        if gain > doubt or (is_right and gain >= -doubt):
            better.append(k)
    candidate = max(better, key=lambda k: (correct[k], -least[k]), default=DEFAULT)
    scored = {name: sums[name][candidate] for name in (unknown.KNOWN, unknown.REMOVED)}
    threshold = unknown.threshold(scored)
    separation = unknown.Separation(scored[unknown.KNOWN], scored[unknown.REMOVED], threshold)
    return Choice(
        candidate=candidate,
        temperature=TEMPERATURES[best[candidate]],
        pictures=count,
        loss=float(least[candidate]),
        zero_shot_loss=float(least[0]),
        correct=int(sums["correct"][candidate]),
        zero_shot_correct=int(sums["correct"][0]),
        unknown_below=threshold,
        removed_unknown=separation.others_unknown,
    )


def chosen_shares(shares: Shares, choice: Choice) -> dict[str, float]:
    """Return the share of each member in the chosen candidate, times the temperature."""
    return {label: choice.temperature * its[choice.candidate] for label, its in shares.items()}


def _scores(logits: Logits, model: Model, vectors: F32, classes: ClassTexts) -> F64:
    """Compute the logits float64 (N, C) of features (N, D), in batches of one shape.

    A product of matrices is rounded differently if it has another number of rows.
    """
    padded = np.concatenate([vectors, np.repeat(vectors[-1:], -len(vectors) % _BATCH, axis=0)])
    batches = np.split(padded, len(padded) // _BATCH)
    found = np.concatenate([scores(logits, model, batch, classes) for batch in batches])
    return found[: len(vectors)].astype(np.float64)


def _mixed(shares: F32, parts: Sequence[F64]) -> F64:
    """Add up the logits (N, C) of the members by the shares (M,) of a candidate.

    A share of 0 leaves a member out, also one whose logits are infinite or NaN.
    """
    total = np.zeros_like(parts[0])
    with np.errstate(over="ignore", invalid="ignore"):
        for share, its in zip(shares.astype(np.float64), parts, strict=True):
            if share:
                total += share * its
    return total


def _cross_entropy(logits: F64, labels: I64) -> F64:
    """Compute the cross-entropy (N,) of logits (N, C), each at most _WORST; NaN counts as that."""
    with np.errstate(over="ignore", invalid="ignore"):
        top = logits.max(axis=1, keepdims=True)
        lost = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
        lost -= logits[np.arange(len(labels)), labels]
    return np.asarray(np.clip(np.nan_to_num(lost, nan=_WORST, posinf=_WORST), 0, _WORST))


def _chosen(validation: Features) -> Features:
    """Return at most MOST pictures, those whose features have the smallest hashes."""
    if len(validation) <= MOST:
        return validation
    hashes = [hashlib.sha256(row.tobytes()).digest() for row in validation.vectors]
    rows = np.sort(np.array(sorted(range(len(hashes)), key=hashes.__getitem__)[:MOST]))
    return Features(validation.vectors[rows], validation.labels[rows], validation.encoder_id)
