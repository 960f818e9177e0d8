"""A bundle, pictures, and a model trained on them for one round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.learning import methods
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.model_file import TrainedModel
from fedclip_edge.prediction import find_pictures
from fedclip_edge.records import Features, Plan, Scalar
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.encoder import open_encoder
from fedclip_edge.vision.pictures import load

# One round moves the model far enough that many labels differ from the zero-shot ones.
OPTIONS: dict[str, Scalar] = {"loss": "cross-entropy", "weight_decay": 0.0, "epochs": 40}
OPTIONS_OF: dict[str, dict[str, Scalar]] = {
    "fedclip": OPTIONS,
    "linear": {"epochs": 40},
    "clip-adapter": {"epochs": 40},
    "faa-clip": OPTIONS,
    "facmic": OPTIONS,
    "fedot": {"epochs": 40},
    "lowrank": {"epochs": 40},
    "gda": {"share": 50.0},
    "ridge": {},
    "tip-adapter": {"alpha": 200.0},
    "tofa": {},
    "zeroshot": {},
}


def write_mixed(folder: Path, classes: tuple[str, ...], per_class: int = 5) -> None:
    """Write noise pictures of many sizes and modes, in one folder per class."""
    random = np.random.default_rng(5)
    modes = ("RGB", "L", "P", "RGBA", "CMYK")
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            height, width = random.integers(20, 150, 2)
            pixels = random.integers(0, 160, (height, width, 3))
            pixels[..., number % 3] += 90
            mode = modes[index % len(modes)]
            picture = Image.fromarray(pixels.astype(np.uint8)).convert(mode)
            picture.save(folder / name / f"{index}.{'jpg' if mode == 'CMYK' else 'png'}")


def train(
    bundle: Bundle, pictures: Path, lr: float = 2e-2, method: str = "fedclip"
) -> TrainedModel:
    """Train one device for one round; a personal method gives the device's own model."""
    asked, _ = find_pictures([pictures], bundle.classes.names)
    encoder = open_encoder(bundle, EncoderConfig())
    pixels = [load(one.path, bundle.manifest.preprocessing) for one in asked]
    features = Features(
        encoder.embed(np.stack(pixels)),
        np.array([one.truth for one in asked], np.int64),
        bundle.manifest.encoder_id,
    )
    options = OPTIONS_OF[method]
    plan = Plan(
        method,
        {**options, "lr": lr} if "epochs" in options else options,
        rounds=1,
        seed=3,
        vote="off",
    )
    model = methods.initial(plan, bundle.classes, bundle.manifest.dim)
    empty = Features(features.vectors[:0], features.labels[:0], features.encoder_id)
    update = methods.fit(LocalTask(plan, model, features, empty, bundle.classes, 1))
    total = ExactSum(replace(plan, max_norm=1e6))
    total.add(update)
    model, _ = methods.combine(model, total, {})
    model = methods.personal(LocalTask(plan, model, features, empty, bundle.classes, 0)) or model
    return TrainedModel(
        model, "run-1234abcd", plan, bundle.manifest.encoder_id, bundle.classes.digest
    )
