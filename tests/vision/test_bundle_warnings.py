"""Warnings about a bundle: random weights and an accepted parity failure."""

from __future__ import annotations

from dataclasses import replace

from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.bundle_warnings import bundle_warnings
from fedclip_edge.vision.manifest import RANDOM


def test_most_bundles_need_none(random_bundle: Bundle) -> None:
    manifest = random_bundle.manifest
    assert bundle_warnings(manifest) == ()
    assert (
        bundle_warnings(replace(manifest, parity={"accepted": False, "worst_relative": 1e-7})) == ()
    )


def test_random_weights_and_an_accepted_miss_are_said(random_bundle: Bundle) -> None:
    manifest = replace(random_bundle.manifest, pretrained=RANDOM, parity={"accepted": True})
    random, accepted = bundle_warnings(manifest)
    assert "weights are random" in random
    assert "missed the parity gate" in accepted
