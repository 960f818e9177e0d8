"""The linear probe: starts from the class texts, then equals training in plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from averaged import CLASSES, D, accuracy, assert_same, federated
from in_memory import features
from torch import Tensor

from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import methods
from fedclip_edge.learning.methods import linear, zeroshot
from fedclip_edge.records import Scalar


def forward(terms: Mapping[str, Tensor], f: Tensor, texts: Tensor) -> Tensor:
    logits: Tensor = 100 * (f / f.norm(dim=-1, keepdim=True)) @ terms["weight"].t()
    return logits


def test_it_is_plain_pytorch() -> None:
    assert_same("linear", ["weight"], forward)


def test_it_begins_as_zero_shot() -> None:
    data, model = features(20, 1, CLASSES), linear.METHOD.initial(CLASSES, D, 0)
    np.testing.assert_array_equal(
        methods.predict(model, data.vectors, CLASSES),
        methods.predict(zeroshot.MODEL, data.vectors, CLASSES),
    )
    assert not np.shares_memory(model.parameters["weight"], CLASSES.vectors)


def test_it_learns() -> None:
    assert accuracy(federated("linear", {"lr": 3e-3}, 20)[1]) > accuracy(zeroshot.MODEL) + 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": 0.0}, "lr: expected above 0"), ({"loss": "contrastive"}, "unknown key 'loss'")],
)
def test_what_is_wrong_with_an_option(options: dict[str, Scalar], message: str) -> None:
    with pytest.raises(ConfigError, match=f"linear options: {message}"):
        linear.METHOD.check_options(options)
