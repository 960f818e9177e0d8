"""Fixtures that several test modules use."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import brokers
import hypothesis
import numpy as np
import pytest
from brokers import MOSQUITTO, Mosquitto, StartMosquitto, free_port, wait_until_served
from onnx import TensorProto, helper, numpy_helper
from opened import UNTIL_THE_TEST_ENDS
from system import Site

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.model_file import TrainedModel
from fedclip_edge.records import ClassTexts
from fedclip_edge.vision.bundle import Bundle, Golden, Manifest, write_bundle
from fedclip_edge.vision.encoder import open_onnx
from fedclip_edge.vision.pictures import Preprocessing

# A shell that starts pytest in the background makes pytest and its child processes ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test here depends on time, and a busy machine generates examples slowly.
hypothesis.settings.register_profile(
    "fedclip-edge", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("fedclip-edge")

# Nothing here, and no program that a test starts, reads or fills the user's own feature cache.
_CACHES = tempfile.TemporaryDirectory(prefix="fedclip-edge-caches-")
os.environ["XDG_CACHE_HOME"] = _CACHES.name
_NUMBERS = itertools.count()

MakeEncoder = Callable[..., bytes]
MakeClip = Callable[[Path, Mapping[str, Any]], Path]


@pytest.fixture(autouse=True)
def _starts_without_cached_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", f"{_CACHES.name}/{next(_NUMBERS)}")


@pytest.fixture(autouse=True)
def _closes_what_was_opened() -> Iterator[None]:
    yield
    UNTIL_THE_TEST_ENDS.close()


@pytest.fixture(scope="session")
def make_encoder() -> MakeEncoder:
    """`make_encoder(side, dim, ...)`: the bytes of a small ONNX encoder with random weights."""

    def make(
        *,
        side: int = 32,
        dim: int = 16,
        batch: int | str = "batch",
        outputs: tuple[str, ...] = ("image_features",),
        scale: float = 1.0,
        channels: int = 3,
    ) -> bytes:
        rng = np.random.default_rng(0)
        step = side // 4
        weights = {
            "patch": rng.normal(size=(8, channels, step, step)) / step,
            "head": scale * rng.normal(size=(8 * 16, dim)),
        }
        floats = {name: value.astype(np.float32) for name, value in weights.items()}
        nodes = [
            helper.make_node("Conv", ["pixel_values", "patch"], ["map"], strides=[step, step]),
            helper.make_node("Tanh", ["map"], ["bent"]),
            helper.make_node("Flatten", ["bent"], ["flat"]),
            *(helper.make_node("MatMul", ["flat", "head"], [name]) for name in outputs),
        ]
        shape = [batch, channels, side, side]
        graph = helper.make_graph(
            nodes,
            "random",
            [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, dim]) for n in outputs],
            [numpy_helper.from_array(value, name) for name, value in floats.items()],
        )
        opset = [helper.make_opsetid("", 18)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=10)
        return bytes(model.SerializeToString())

    return make


@pytest.fixture(scope="session")
def random_bundle(tmp_path_factory: pytest.TempPathFactory, make_encoder: MakeEncoder) -> Bundle:
    """A bundle of a random encoder: S = 32, D = 16, classes circle, square, triangle."""
    preprocessing = Preprocessing(32, "shortest", 32, "bicubic", (0.5,) * 3, (0.25,) * 3)
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(3, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    encoder = make_encoder()
    pixels = rng.normal(size=(4, 3, 32, 32)).astype(np.float32)
    golden = Golden(pixels, open_onnx(encoder, EncoderConfig(), image_size=32).embed(pixels))
    manifest = Manifest(
        model="random",
        pretrained="none",
        weights_sha256="0" * 64,
        dim=16,
        preprocessing=preprocessing,
        activation="tanh",
        precision="fp32",
        opset=18,
    )
    folder: Path = tmp_path_factory.mktemp("bundles") / "random"
    texts = ClassTexts(("circle", "square", "triangle"), vectors, 100.0, "a {}")
    return write_bundle(folder, manifest, encoder, texts, golden)


@pytest.fixture(scope="session")
def start_mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartMosquitto]:
    """`start_mosquitto(port=0, settings="...")`: starts a broker that accepts connections."""
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed; the tests need a real broker")
    ends = contextlib.ExitStack()

    def start(port: int = 0, settings: str = "allow_anonymous true") -> Mosquitto:
        wanted = port or free_port()
        folder: Path = tmp_path_factory.mktemp("mosquitto")
        lines = [
            f"listener {wanted} 127.0.0.1",
            settings,
            "persistence false",
            "set_tcp_nodelay true",
        ]
        if os.geteuid() == 0:
            lines.append("user root")  # the user mosquitto may not read the test's folder
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        process = brokers.start(["-c", folder / "mosquitto.conf"], folder / "log")
        broker = Mosquitto(BrokerAddress(port=wanted), process)
        ends.callback(broker.stop)
        if wait_until_served(process, wanted):
            return broker
        raise AssertionError(f"mosquitto did not start: {(folder / 'log').read_text()}")

    with ends:
        yield start


@pytest.fixture(scope="session")
def mosquitto(start_mosquitto: StartMosquitto) -> BrokerAddress:
    """A shared anonymous broker; each test must use a fleet name of its own."""
    return start_mosquitto().address


@pytest.fixture(scope="session")
def make_clip() -> MakeClip:
    """`make_clip(folder, model_cfg)`: a folder in open_clip's format with random fp16 weights."""

    def make(folder: Path, model_cfg: Mapping[str, Any]) -> Path:
        from fedclip_edge.exporting.torchvision_ops import declare_missing

        declare_missing()
        import open_clip
        import torch
        from open_clip.tokenizer import default_bpe
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        with gzip.open(default_bpe()) as theirs:
            merges = b"\n".join(theirs.read().split(b"\n")[:511])  # a header and 510 merges
        with gzip.open(folder / "merges.txt.gz", "wb") as ours:
            ours.write(merges)
        text = {
            "context_length": 24,
            "vocab_size": 1024,
            "width": 64,
            "heads": 2,
            "layers": 2,
            "tokenizer_kwargs": {"bpe_path": "merges.txt.gz"},
        }
        config = {
            "model_cfg": {"embed_dim": 128, "text_cfg": text, **model_cfg},
            "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]},
        }
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        torch.manual_seed(0)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        state = model.state_dict().items()
        half = {name: t.half() if t.is_floating_point() else t for name, t in state}
        save_file(half, folder / "open_clip_model.safetensors")
        return folder

    return make


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, make_clip: MakeClip) -> Path:
    """A model with the architecture of the demo's tiny CLIP and random weights."""
    vision = {"layers": [1, 1, 2, 1], "width": 16, "image_size": 64, "patch_size": None}
    return make_clip(tmp_path_factory.mktemp("clips") / "random-clip", {"vision_cfg": vision})


@pytest.fixture(scope="session")
def clip_bundle(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path) -> Bundle:
    """`clip_folder`, exported with the classes circle and square; takes a few seconds."""
    from fedclip_edge.demo import gate_pictures
    from fedclip_edge.exporting.bundles import export_open_clip
    from fedclip_edge.exporting.recipe import Recipe

    recipe = Recipe(f"local-dir:{clip_folder}", prompts=("a {}",))
    out = tmp_path_factory.mktemp("bundles") / "clip"
    return export_open_clip(recipe, ("circle", "square"), out, draw=gate_pictures.draw)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, random_bundle: Bundle) -> Path:
    """Noise pictures in one folder per class of `random_bundle`."""
    from trained_run import write_mixed

    folder: Path = tmp_path_factory.mktemp("pictures") / "mixed"
    write_mixed(folder, random_bundle.classes.names)
    return folder


@pytest.fixture(scope="module")
def trained(random_bundle: Bundle, pictures: Path) -> TrainedModel:
    """The zero-shot model of `random_bundle` after one round on `pictures`."""
    from trained_run import train

    return train(random_bundle, pictures)


@pytest.fixture
def site(
    tmp_path: Path, random_bundle: Bundle, mosquitto: BrokerAddress, request: pytest.FixtureRequest
) -> Iterator[Site]:
    """A folder with a fleet of its own on the shared broker, named after the test."""
    fleet = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:60].strip("-")
    with Site(tmp_path, random_bundle, mosquitto, fleet) as made:
        yield made
