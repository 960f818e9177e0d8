"""Zero-shot CLIP: the cosine to each class text, with no trainable parameters."""

from __future__ import annotations

import numpy as np
import pytest
from in_memory import class_texts, features, nothing

from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import methods
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.records import ClassTexts, Plan

D = 16
CLASSES = class_texts(dim=D)


def test_logits_are_scaled_cosines() -> None:
    data = features(30, 1, CLASSES)
    model = zeroshot.METHOD.initial(CLASSES, D, 0)
    norms = np.linalg.norm(data.vectors.astype(np.float64), axis=1, keepdims=True)
    expected = 100 * (data.vectors / norms) @ CLASSES.vectors.astype(np.float64).T
    np.testing.assert_allclose(
        methods.predict(model, data.vectors, CLASSES), expected, rtol=0, atol=1e-3
    )


def test_a_text_is_its_own_class() -> None:
    """Computed by hand: three texts on the axes and two features between them."""
    classes = ClassTexts(("x", "y", "z"), np.eye(3, dtype=np.float32), 10.0, "{}")
    vectors = np.array([[3, 4, 0], [0, 0, 7]], np.float32)
    logits = methods.predict(zeroshot.METHOD.initial(classes, 3, 0), vectors, classes)
    np.testing.assert_allclose(logits, [[6, 8, 0], [0, 0, 10]], atol=1e-5)


def test_nothing_is_trained_and_nothing_travels() -> None:
    plan, model = Plan("zeroshot"), zeroshot.METHOD.initial(CLASSES, D, 0)
    data = features(30, 1, CLASSES)
    total = ExactSum(plan)
    for seed in (1, 2):
        update = methods.fit(LocalTask(plan, model, data, nothing(D), CLASSES, seed))
        assert (update.kind, update.weight, dict(update.delta)) == ("sum", 1, {})
        total.add(update)
    following, state = methods.combine(model, total, {})
    assert (following.method, following.round, dict(following.parameters)) == ("zeroshot", 1, {})
    assert dict(state) == {}
    np.testing.assert_array_equal(
        methods.predict(following, data.vectors, CLASSES),
        methods.predict(model, data.vectors, CLASSES),
    )


def test_it_has_no_options() -> None:
    with pytest.raises(ConfigError, match="zeroshot options: unknown key 'lr'"):
        zeroshot.METHOD.check_options({"lr": 1e-3})
