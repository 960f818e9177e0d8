"""The values of `--methods`."""

from __future__ import annotations

import pytest

from fedclip_edge.errors import ConfigError
from fedclip_edge.simulating.settings import parse_settings


def test_methods_lines_and_settings_stand_side_by_side() -> None:
    text = "zeroshot, fedclip,fedclip@lr=1e-3,loss=cross-entropy,rounds=7,fedclip:local,fedclip:pooled@codec_up=fp16"
    found = parse_settings(text, 20)
    assert [one.label for one in found] == [
        "zeroshot",
        "fedclip",
        "fedclip@lr=1e-3,loss=cross-entropy,rounds=7",
        "fedclip:local",
        "fedclip:pooled@codec_up=fp16",
    ]
    assert [one.line for one in found] == ["federated"] * 3 + ["local", "pooled"]
    assert [one.plan.rounds for one in found] == [1, 20, 7, 20, 20]
    assert found[2].plan.options == {"lr": 0.001, "loss": "cross-entropy"}
    assert found[4].plan.codec_up == "fp16"
    assert found[4].plan.options == {}


def test_a_strategy_and_its_options_stand_in_a_setting() -> None:
    text = "linear@lr=1e-3,strategy=fedadam,strategy.lr=0.01,personal_epochs=3,proximal_mu=0.1"
    (found,) = parse_settings(text, 20)
    assert found.plan.options == {"lr": 0.001, "proximal_mu": 0.1}
    assert (found.plan.strategy, found.plan.strategy_options) == ("fedadam", {"lr": 0.01})
    assert found.plan.personal_epochs == 3


def test_each_method_has_its_own_number_of_rounds() -> None:
    assert [one.plan.rounds for one in parse_settings("zeroshot,fedclip", None)] == [1, 30]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fedclipp", "unknown method 'fedclipp'; did you mean 'fedclip'"),
        ("fedclip,", "'' has no method name"),
        ("lr=1,fedclip", "unknown method 'lr=1'"),
        ("fedclip:locale", "unknown suffix 'locale'; did you mean 'local'"),
        ("fedclip@lr", "'lr' is not NAME=VALUE"),
        ("fedclip@", "'' is not NAME=VALUE"),
        ("fedclip@lrr=1", "unknown key 'lrr'; did you mean 'lr'"),
        ("fedclip@lr=2", "lr: expected above 0 and at most 1"),
        ("fedclip@codec_up=int9", "codec_up"),
        ("fedclip@strategy=fedadm", "unknown strategy 'fedadm'; did you mean 'fedadam'"),
        ("fedclip@strategy.lr=1", "fedavg options: unknown key 'lr'"),
        ("fedclip@strategy_options=1", "unknown key 'strategy_options'"),
        ("fedclip@seed=3", "unknown key 'seed'"),
        ("fedclip,fedclip", "contains 'fedclip' twice"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_settings(text, 3)
