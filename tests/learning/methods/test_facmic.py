"""FACMIC: the reference's gate, and its loss that aligns the classes of two batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from averaged import CLASSES, SIZES, D, shifted
from in_memory import nothing
from plain_attention import assert_same, federated, rendered
from torch import Tensor, nn

from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import methods
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.methods import facmic
from fedclip_edge.records import Plan, Scalar

VALIDATION = shifted(45, 31)


def plain_discrepancy(x: Tensor, y: Tensor, labels: Tensor, shares: Tensor) -> Tensor:
    """The formula of the module's docstring, with one kernel value after the other."""
    both = torch.cat([x, y])
    n = len(both)
    far = torch.stack([torch.stack([(a - b).square().sum() for b in both]) for a in both])
    width = float(far.detach().sum()) / (n * (n - 1))
    k = sum(torch.exp(-far / (width * 2.0**power)) for power in range(-2, 3))
    assert isinstance(k, Tensor)
    guesses = shares.argmax(dim=1)
    parts = []
    for c in range(shares.shape[1]):
        if not (labels == c).any() or not (guesses == c).any():
            continue
        s = (labels == c).float() / (labels == c).sum()
        u = (shares[:, c] / shares[:, c].sum()).detach()
        b = len(x)
        parts.append(s @ k[:b, :b] @ s + u @ k[b:, b:] @ u - 2 * s @ k[:b, b:] @ u)
    return torch.stack(parts).mean() if parts else torch.zeros(())


def drawn(count: int, seed: int) -> Tensor:
    rows = torch.randn((count, 6), generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(rows)


@pytest.mark.parametrize("seed", range(5))
def test_the_discrepancy_is_the_papers(seed: int) -> None:
    x, y = drawn(9, seed).requires_grad_(), drawn(7, seed + 50)
    labels = torch.randint(0, 4, (9,), generator=torch.Generator().manual_seed(seed))
    shares = torch.softmax(3 * drawn(7, seed + 90)[:, :4], dim=1)
    found, expected = (
        function(x, y, labels, shares) for function in (facmic.discrepancy, plain_discrepancy)
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(value, x)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_equal_batches_have_no_discrepancy() -> None:
    x, labels = drawn(8, 1), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    shares = nn.functional.one_hot(labels, 3).float()
    assert abs(float(facmic.discrepancy(x, x, labels, shares))) < 1e-5
    assert float(facmic.discrepancy(x, -x, labels, shares)) > 0.1


def test_batches_without_a_common_class_have_none() -> None:
    shares = torch.tensor([[0.1, 0.9]] * 4)
    x = drawn(4, 1).requires_grad_()
    found = facmic.discrepancy(x, drawn(4, 2), torch.zeros(4, dtype=torch.int64), shares)
    assert float(found.detach()) == 0
    assert not torch.autograd.grad(found, x)[0].any()


def aligned(gate: nn.Module, gated: Tensor, labels: Tensor, unlabelled: Iterator[Tensor]) -> Tensor:
    others = next(unlabelled)
    with torch.no_grad():
        adapted = nn.functional.normalize(gate(others) * others)
        shares = torch.softmax(100 * adapted @ torch.tensor(CLASSES.vectors).t(), dim=1)
    x, y = nn.functional.normalize(gated), nn.functional.normalize(others)
    return plain_discrepancy(x, y, labels, shares)


@pytest.mark.one_python
def test_it_is_the_reference_in_plain_pytorch() -> None:
    first, last = federated(Plan("facmic", rounds=2, seed=3), VALIDATION)
    assert_same(last, rendered(first, 2, SIZES, VALIDATION, aligned), first)


def test_without_validation_pictures_only_the_alignment_is_missing() -> None:
    first, last = federated(Plan("facmic", rounds=2, seed=3))
    assert_same(last, rendered(first, 2, SIZES), first)
    switched_off = federated(Plan("facmic", {"transfer": 0.0}, rounds=2, seed=3), VALIDATION)[1]
    for name, term in last.parameters.items():
        np.testing.assert_array_equal(switched_off.parameters[name], term)


def test_labels_of_validation_pictures_are_not_used() -> None:
    plan = Plan("facmic")
    model = methods.initial(plan, CLASSES, D)

    def sent(labels: np.ndarray[tuple[int], np.dtype[np.int64]]) -> bytes:
        held = replace(VALIDATION, labels=labels)
        update = methods.fit(LocalTask(plan, model, shifted(40, 1), held, CLASSES, 0))
        return b"".join(term.tobytes() for term in update.delta.values())

    none = methods.fit(LocalTask(plan, model, shifted(40, 1), nothing(D), CLASSES, 0))
    assert sent(VALIDATION.labels) == sent(0 * VALIDATION.labels)
    assert sent(VALIDATION.labels) != b"".join(term.tobytes() for term in none.delta.values())


def test_it_leaves_no_picture_that_could_choose_a_personal_model() -> None:
    with pytest.raises(ConfigError, match="facmic learns from validation pictures too"):
        methods.with_defaults(Plan("facmic", personal_epochs=1))


def test_a_strategy_without_weights_says_how_to_use_it() -> None:
    with pytest.raises(ConfigError, match='write weighting = "uniform" under'):
        methods.with_defaults(Plan("facmic", strategy="median"))
    methods.with_defaults(Plan("facmic", {"weighting": "uniform"}, strategy="median"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"transfer": -1.0}, "transfer: expected 0 to 1e3"), ({"lmmd": 1.0}, "unknown key 'lmmd'")],
)
def test_what_is_wrong_with_an_option(options: dict[str, Scalar], message: str) -> None:
    with pytest.raises(ConfigError, match=f"facmic options: {message}"):
        facmic.METHOD.check_options(options)
