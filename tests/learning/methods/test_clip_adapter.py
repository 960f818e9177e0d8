"""CLIP-Adapter: the paper's bottleneck and blend, compared with training in plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from averaged import CLASSES, D, accuracy, assert_same, federated
from in_memory import features
from torch import Tensor, nn

from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import methods
from fedclip_edge.learning.methods import clip_adapter, zeroshot
from fedclip_edge.records import Plan, Scalar

pytestmark = pytest.mark.one_python


def forward(terms: Mapping[str, Tensor], f: Tensor, texts: Tensor) -> Tensor:
    x = nn.functional.relu(f @ terms["down.weight"].t())
    x = nn.functional.relu(x @ terms["up.weight"].t())
    f = 0.2 * x + (1 - 0.2) * f
    logits: Tensor = 100 * (f / f.norm(dim=-1, keepdim=True)) @ texts.t()
    return logits


def test_it_is_plain_pytorch() -> None:
    assert_same("clip-adapter", ["down.weight", "up.weight"], forward)


def test_reduction_and_ratio_are_the_options() -> None:
    plan = Plan("clip-adapter", {"reduction": 2, "ratio": 0.6})
    model = methods.initial(plan, CLASSES, D)
    assert {n: t.shape for n, t in model.parameters.items()} == {
        "down.weight": (D // 2, D),
        "up.weight": (D, D // 2),
        "ratio": (),
    }
    sent = methods.plan_layout(plan, CLASSES, D).delta
    assert set(sent) == {"down.weight", "up.weight"}  # all devices know the ratio from the plan
    wide = clip_adapter.METHOD.initial(CLASSES, 3, 0, {"reduction": 100})
    assert wide.parameters["down.weight"].shape == (1, 3)


def test_a_larger_ratio_moves_a_prediction_further() -> None:
    data = features(30, 1, CLASSES)
    zero_shot = methods.predict(zeroshot.MODEL, data.vectors, CLASSES)
    moved = []
    for ratio in (0.05, 0.2, 0.8):
        model = clip_adapter.METHOD.initial(CLASSES, D, 0, {"ratio": ratio})
        logits = methods.predict(model, data.vectors, CLASSES)
        moved.append(float(np.abs(logits - zero_shot).mean()))
    assert moved == sorted(moved)
    assert 0 < moved[0] < moved[2] / 5


def test_the_blend_is_of_the_raw_feature() -> None:
    model = clip_adapter.METHOD.initial(CLASSES, D, 0)
    terms = {name: torch.tensor(term) for name, term in model.parameters.items()}
    f = torch.tensor(features(5, 1, CLASSES).vectors)
    expected = forward(terms, f, torch.tensor(CLASSES.vectors))
    np.testing.assert_allclose(methods.predict(model, f.numpy(), CLASSES), expected, atol=1e-3)


def test_it_learns() -> None:
    last = federated("clip-adapter", {"lr": 1e-2, "ratio": 0.5}, 20)[1]
    assert accuracy(last) > accuracy(zeroshot.MODEL) + 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "ratio: expected between 0 and 1"),
        ({"reduction": 0}, "reduction: expected 1 or more"),
        ({"alpha": 0.2}, "unknown key 'alpha'"),
    ],
)
def test_what_is_wrong_with_an_option(options: dict[str, Scalar], message: str) -> None:
    with pytest.raises(ConfigError, match=f"clip-adapter options: {message}"):
        clip_adapter.METHOD.check_options(options)
