"""The low-rank residual map: starts as zero-shot CLIP, then equals training in plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from averaged import CLASSES, D, accuracy, assert_same, federated
from in_memory import features
from torch import Tensor

from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import methods
from fedclip_edge.learning.methods import lowrank, zeroshot
from fedclip_edge.records import Scalar


def forward(terms: Mapping[str, Tensor], f: Tensor, texts: Tensor) -> Tensor:
    f = f + f @ (terms["b"] @ terms["a"]).t()
    logits: Tensor = 100 * (f / f.norm(dim=-1, keepdim=True)) @ texts.t()
    return logits


def test_it_is_plain_pytorch() -> None:
    assert_same("lowrank", ["a", "b"], forward)


def test_it_begins_as_zero_shot() -> None:
    data = features(20, 1, CLASSES)
    np.testing.assert_array_equal(
        methods.predict(lowrank.METHOD.initial(CLASSES, D, 0), data.vectors, CLASSES),
        methods.predict(zeroshot.MODEL, data.vectors, CLASSES),
    )


@pytest.mark.parametrize(("rank", "kept"), [(1, 1), (5, 5), (999, D)])
def test_the_rank_is_an_option_and_never_above_the_width(rank: int, kept: int) -> None:
    model = lowrank.METHOD.initial(CLASSES, D, 0, {"rank": rank})
    assert (model.parameters["a"].shape, model.parameters["b"].shape) == ((kept, D), (D, kept))


@pytest.mark.one_python
def test_it_learns() -> None:
    assert accuracy(federated("lowrank", {"lr": 3e-3}, 20)[1]) > accuracy(zeroshot.MODEL) + 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rank": 0}, "rank: expected 1 or more"), ({"r": 4}, "unknown key 'r'")],
)
def test_what_is_wrong_with_an_option(options: dict[str, Scalar], message: str) -> None:
    with pytest.raises(ConfigError, match=f"lowrank options: {message}"):
        lowrank.METHOD.check_options(options)
