"""The choice of a provider: the fastest that agrees, made once, in child processes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_openvino import FakeOpenvino

from fedclip_edge import log
from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import BundleError, ConfigError, DiskError
from fedclip_edge.processes.children import Children
from fedclip_edge.vision import provider_choice, provider_trial, providers
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.provider_choice import FILE, choose_provider
from fedclip_edge.vision.provider_trial import Tried

AUTO = EncoderConfig()
CPU, OPENVINO, BF16 = "cpu", "openvino", "openvino-bf16"


class Box:
    """A device that starts again and again; its providers have the given speeds."""

    def __init__(self, bundle: Bundle, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bundle, self.state_dir = bundle, state_dir
        self.speeds = {CPU: 20.0, OPENVINO: 30.0, BF16: 120.0}  # 0: refused
        self.installed = [CPU, OPENVINO]
        self.version = "1.0"
        self.tried: list[str] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        monkeypatch.setattr(provider_choice, "try_each", self._try_each)
        monkeypatch.setattr(providers, "installed", lambda: tuple(self.installed))
        monkeypatch.setattr(providers, "environment", lambda _: {"library": self.version})

    def start(self, settings: EncoderConfig = AUTO) -> str:
        """Start, and return the label of the choice; `tried` and `events` are of this start."""
        self.tried, self.events = [], []
        with Children() as children, log.observed(self._note):
            chosen = choose_provider(self.bundle, settings, self.state_dir, children, lambda: None)
        assert (chosen.threads, chosen.batch_size) == (settings.threads, settings.batch_size)
        return chosen.label

    def told(self, event: str) -> dict[str, Any]:
        (found,) = (fields for name, fields in self.events if name == event)
        return found

    def _note(self, event: str, fields: Any) -> None:
        self.events.append((event, dict(fields)))

    def _try_each(
        self, folder: Path, options: Sequence[EncoderConfig], *_: object
    ) -> tuple[Tried, ...]:
        self.tried += [option.label for option in options]
        refused = BundleError("on this box it gives other features")
        return tuple(
            Tried(option, self.speeds[option.label])
            if self.speeds[option.label]
            else Tried(option, error=refused)
            for option in options
        )


@pytest.fixture
def box(random_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    return Box(random_bundle, tmp_path, monkeypatch)


def test_only_the_cpu_is_taken_without_a_trial(box: Box) -> None:
    box.installed = [CPU]
    assert box.start() == CPU
    assert (box.tried, box.events) == ([], [])
    assert box.start(EncoderConfig(provider="cpu")) == CPU
    assert (box.tried, box.events) == ([], [])


def test_the_fastest_is_taken_and_the_log_has_every_figure(box: Box) -> None:
    assert box.start() == BF16
    told = box.told("encoder_provider_chosen")
    assert told["provider"] == BF16
    figures = "cpu 20.0 images/s; openvino 30.0 images/s; openvino-bf16 120.0 images/s"
    assert told["tried"] == figures


def test_one_that_differs_is_refused_and_the_log_says_why(box: Box) -> None:
    box.speeds[BF16] = 0
    assert box.start() == OPENVINO
    assert "openvino-bf16 refused: on this box it" in box.told("encoder_provider_chosen")["tried"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (EncoderConfig(precision="fp32"), OPENVINO),
        (EncoderConfig(precision="bf16"), BF16),
        (EncoderConfig(provider="openvino"), BF16),
        (EncoderConfig(provider="openvino", precision="fp32"), OPENVINO),
        (EncoderConfig(provider="cpu"), CPU),
    ],
)
def test_settings_limit_the_choice(box: Box, settings: EncoderConfig, expected: str) -> None:
    assert box.start(settings) == expected


def test_a_choice_stays(box: Box) -> None:
    """Also if another provider would be faster now: its features would have to be computed."""
    box.speeds[CPU] = 500
    assert box.start() == CPU
    box.speeds[CPU] = 1
    assert box.start() == CPU
    assert (box.tried, box.events) == ([], [])


def test_a_provider_that_is_installed_later_is_named_but_not_taken(box: Box) -> None:
    box.installed = [CPU]
    box.start()
    box.installed = [CPU, OPENVINO]
    for _ in range(2):
        assert box.start() == CPU
        assert box.tried == []
        told = box.told("encoder_provider_kept")
        assert told["untried"] == f"{OPENVINO}, {BF16}"
        assert f"delete {box.state_dir / FILE} to choose again" in told["hint"]
    (box.state_dir / FILE).unlink()
    assert box.start() == BF16


def test_a_provider_that_is_removed_is_replaced(box: Box) -> None:
    box.start()
    box.installed = [CPU]
    assert box.start() == CPU
    told = box.told("encoder_provider_changed")
    assert (told["before"], told["provider"]) == (BF16, CPU)
    assert told["reason"].startswith("openvino-bf16 is not installed any more")
    assert told["hint"] == "all features are computed again"
    box.installed = [CPU, OPENVINO]
    assert box.start() == CPU


def test_after_an_update_the_choice_is_checked_and_stays(box: Box) -> None:
    box.start()
    box.version, box.speeds[CPU] = "2.0", 500
    assert box.start() == BF16
    assert box.tried == [BF16]
    assert box.told("encoder_provider_checked")["result"] == "openvino-bf16 120.0 images/s"
    box.start()
    assert (box.tried, box.events) == ([], [])


def test_a_choice_that_fails_after_an_update_is_replaced(box: Box) -> None:
    box.start()
    box.version, box.speeds[BF16] = "2.0", 0
    assert box.start() == OPENVINO
    assert box.tried == [BF16, CPU, OPENVINO]  # none twice
    told = box.told("encoder_provider_changed")
    assert told["reason"].startswith("openvino-bf16 refused: on this box it gives other features")


def test_a_named_one_that_fails_after_an_update_stops_the_agent(box: Box) -> None:
    named = EncoderConfig(provider="openvino", precision="bf16")
    box.start(named)
    box.version, box.speeds[BF16] = "2.0", 0
    with pytest.raises(BundleError, match="on this box it gives other features"):
        box.start(named)
    assert box.tried == [BF16]


def test_another_encoder_is_another_choice(box: Box) -> None:
    box.speeds[CPU] = 500
    assert box.start() == CPU
    box.speeds[CPU] = 1
    files = {**box.bundle.manifest.files, "image_encoder.onnx": "1" * 64}
    first = box.bundle
    box.bundle = replace(first, manifest=replace(first.manifest, files=files))
    assert box.start() == BF16
    assert "encoder_provider_changed" not in dict(box.events)  # nothing of this encoder is cached
    box.bundle = first  # after a rollback
    assert box.start() == CPU
    assert box.tried == []


def test_a_provider_by_name_is_left_only_by_name(box: Box) -> None:
    """The features in the cache are those of the CPU, so "auto" goes on with it, and says so."""
    box.start(EncoderConfig(provider="cpu"))
    assert box.start() == CPU
    assert box.told("encoder_provider_kept")["untried"] == f"{OPENVINO}, {BF16}"
    assert box.start(EncoderConfig(provider="openvino")) == BF16
    assert box.told("encoder_provider_changed")["before"] == CPU


def test_a_named_one_that_fails_in_both_precisions_gives_its_own_error(box: Box) -> None:
    box.speeds = dict.fromkeys(box.speeds, 0.0)
    with pytest.raises(BundleError, match=r"^on this box it gives other features$"):
        box.start(EncoderConfig(provider="openvino"))
    assert box.tried == [OPENVINO, BF16]


def test_nothing_passes(box: Box) -> None:
    box.speeds = dict.fromkeys(box.speeds, 0.0)
    with pytest.raises(
        BundleError, match=r"no provider of this box can be used for .*: cpu refuse"
    ):
        box.start()
    assert not (box.state_dir / FILE).exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"ab": 1}', b"\xff\xfe\x00"])
def test_a_damaged_file_is_made_again(box: Box, content: bytes) -> None:
    (box.state_dir / FILE).write_bytes(content)
    assert box.start() == BF16
    assert box.told("encoder_choice_damaged")["file"] == box.state_dir / FILE
    ((_, kept),) = json.loads((box.state_dir / FILE).read_bytes()).items()
    assert kept["provider"] == BF16


def test_a_choice_that_cannot_be_kept(box: Box) -> None:
    (box.state_dir / FILE / "in the way").mkdir(parents=True)
    with pytest.raises(DiskError, match=rf"{FILE} cannot be written"):
        box.start()


# The trials themselves, in real child processes, with a stand-in for OpenVINO.


@pytest.fixture
def openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeOpenvino:
    return FakeOpenvino(tmp_path / "packages", monkeypatch)


def try_openvino(bundle: Bundle, precision: Any) -> Tried:
    option = EncoderConfig(provider="openvino", precision=precision)
    with Children() as children:
        (tried,) = provider_trial.try_each(bundle.folder, [option], children)
    return tried


def test_a_trial_measures(random_bundle: Bundle, openvino: FakeOpenvino) -> None:
    tried = try_openvino(random_bundle, "fp32")
    assert tried.error is None
    assert tried.images_per_s > 0
    assert tried.differs == 0


@pytest.mark.parametrize(
    ("act", "error", "said"),
    [
        ("wrong", BundleError, "gives other features than on the machine that exported it"),
        ("crash", ConfigError, "'openvino' was killed by SIGSEGV while it checked"),
        ("fail", BundleError, "OpenVINO said: no such kernel"),
    ],
)
def test_a_trial_reports_a_fault(
    random_bundle: Bundle, openvino: FakeOpenvino, act: str, error: type[Exception], said: str
) -> None:
    openvino.act(f32=act)
    tried = try_openvino(random_bundle, "fp32")
    assert isinstance(tried.error, error)
    assert said in str(tried.error)
    assert "\n" not in str(tried.error)


def test_a_trial_that_does_not_return_is_ended(
    random_bundle: Bundle, openvino: FakeOpenvino, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino.act(bf16="hang")
    monkeypatch.setattr(provider_trial, "_TRIAL_S", 2.0)
    turns: list[int] = []
    option = EncoderConfig(provider="openvino", precision="bf16")
    with Children() as children:
        (tried,) = provider_trial.try_each(
            random_bundle.folder, [option], children, lambda: turns.append(1)
        )
        ((child, _),) = children._children
        assert child.poll() is not None
    assert isinstance(tried.error, ConfigError)
    assert "'openvino-bf16' took longer than 2 s to check" in str(tried.error)
    assert len(turns) > 3  # the agent had time for its watchdog


@pytest.mark.parametrize(
    ("acts", "said"),
    [
        ({"processor": "no bf16"}, "this processor has no bf16 instructions; choose precision"),
        ({"bf16": "falls back"}, "'openvino' computes in f32 and not in bf16; choose another"),
    ],
)
def test_bf16_or_an_error(
    random_bundle: Bundle, openvino: FakeOpenvino, acts: dict[str, str], said: str
) -> None:
    openvino.act(**acts)
    tried = try_openvino(random_bundle, "bf16")
    assert isinstance(tried.error, ConfigError)
    assert said in str(tried.error)


def test_a_slow_provider_is_not_chosen(
    random_bundle: Bundle, openvino: FakeOpenvino, tmp_path: Path
) -> None:
    openvino.act(f32="slow", bf16="wrong")
    with Children() as children:
        chosen = choose_provider(random_bundle, AUTO, tmp_path, children, lambda: None)
    assert chosen.label == CPU
    ((_, kept),) = json.loads((tmp_path / FILE).read_text()).items()
    assert kept["tried"] == [CPU, OPENVINO, BF16]
    assert kept["environment"]["onnxruntime"]


@pytest.mark.usefixtures("openvino")
def test_the_version_of_a_library_is_read_without_loading_it() -> None:
    option = EncoderConfig(provider="openvino", precision="fp32")
    here = providers.environment(option)
    assert here["openvino"] == "1.0"
    assert here["processor"].startswith(os.uname().machine)
    assert providers.installed()[:2] == (CPU, OPENVINO)
