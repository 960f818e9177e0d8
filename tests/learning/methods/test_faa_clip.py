"""FAA-CLIP: the reference's gate, loss and optimizer, without its adversarial part."""

from __future__ import annotations

from averaged import CLASSES, SIZES, D
from plain_attention import assert_same, federated, rendered

from fedclip_edge.learning import methods
from fedclip_edge.learning.methods import faa_clip
from fedclip_edge.records import Plan


def test_it_is_the_reference_in_plain_pytorch() -> None:
    first, last = federated(Plan("faa-clip", rounds=3, seed=3))
    assert_same(last, rendered(first, 3, (1,) * len(SIZES)), first)


def test_its_defaults_are_the_references() -> None:
    options = faa_clip.METHOD.check_options({})
    assert (options.lr, options.beta1, options.beta2, options.eps) == (5e-5, 0.9, 0.98, 1e-6)
    assert (options.weight_decay, options.batch_size, options.epochs) == (0.02, 32, 1)
    assert (options.loss, options.optimizer, options.weighting) == (
        "contrastive",
        "adam",
        "uniform",
    )


def test_the_running_statistics_are_sent() -> None:
    layout = methods.plan_layout(Plan("faa-clip"), CLASSES, D)
    assert layout.delta == layout.parameters
    assert {"1.running_mean", "1.running_var"} < layout.delta.keys()
