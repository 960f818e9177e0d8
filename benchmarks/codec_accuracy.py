"""The cost of the codecs in accuracy: the same federations with and without codecs, paired.

FedCLIP with the reference's settings, with one domain held out at a time and several seeds. All
models and updates pass through the functions that devices and the coordinator use. The encoder and
the pictures are arguments; features are encoded once and stored in --cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedclip_edge.agent import upload
from fedclip_edge.config.agent import DataConfig, EncoderConfig
from fedclip_edge.learning import local, methods, training
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.evaluation import top1
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.protocol import wire
from fedclip_edge.records import Arrays, ClassTexts, Codec, Contribution, Features, Model, Plan
from fedclip_edge.storage.toml_file import parse_value
from fedclip_edge.vision.bundle import Bundle, read_bundle
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.datasets import Picture, read_folder, split
from fedclip_edge.vision.embedding import embed_pictures
from fedclip_edge.vision.encoder import open_encoder

# Codecs for up and down. The first pair is the one that the others are compared with.
PAIRS: tuple[tuple[Codec, Codec], ...] = (("fp32", "fp32"), ("int8", "fp16"))


@dataclass(frozen=True, eq=False)
class Domain:
    train: Features
    validation: Features
    test: Features
    everything: Features


@dataclass(frozen=True)
class Outcome:
    """Top-1 accuracies in percent, and sizes of bodies in bytes."""

    held_out: float
    participants: float
    up_bytes: float
    down_bytes: float
    model: Model


def domains(bundle: Bundle, folder: Path, cache_path: Path) -> dict[str, Domain]:
    config = EncoderConfig(threads=1)
    encoder = open_encoder(bundle, config)
    found = {}
    with FeatureCache(cache_path) as cache:

        def features(pictures: tuple[Picture, ...]) -> Features:
            its = embed_pictures(pictures, encoder, cache, bundle.manifest.preprocessing, config)
            return Features(its.vectors, its.labels, bundle.manifest.encoder_id)

        for path in sorted(folder.iterdir()):
            dataset = read_folder(path, bundle.classes.names)
            sides = split(dataset, DataConfig(path))
            found[path.name] = Domain(
                features(sides.train),
                features(sides.validation),
                features(sides.test),
                features(dataset.pictures),
            )
    return found


def share(model: Model, features: Features, classes: ClassTexts) -> float:
    return 100 * top1(methods.predict(model, features.vectors, classes), features.labels)


def federate(
    data: Mapping[str, Domain], held_out: str, classes: ClassTexts, dim: int, plan: Plan
) -> Outcome:
    shapes = methods.shapes(plan, classes, dim)
    master = methods.initial(plan, classes, dim)
    schedule = Schedule(plan, classes, dim)
    trainers = [name for name in data if name != held_out]
    residuals: dict[str, Arrays] = {name: {} for name in trainers}
    up, down = [], []
    published = wire.pack_model(master, plan.codec_down)
    for _ in range(plan.rounds):
        model, total = wire.unpack_model(published, plan.codec_down, shapes), ExactSum(plan)
        for name in trainers:
            made = local.answer(schedule, model, data[name], name)
            sent = Contribution("r", 1, name, "b", made)
            body, residuals[name] = upload.encode(sent, plan, residuals[name], plan.max_norm)
            up.append(len(body))
            total.add(wire.unpack_contribution(body, plan.codec_up, shapes).update)
        master, _ = methods.combine(master, total, {})
        published = wire.pack_model(master, plan.codec_down)
        down.append(len(published))
    last = wire.unpack_model(published, plan.codec_down, shapes)
    return Outcome(
        share(last, data[held_out].everything, classes),
        statistics.mean(share(last, data[name].test, classes) for name in trainers),
        statistics.mean(up),
        statistics.mean(down),
        last,
    )


def apart(one: Model, other: Model) -> float:
    """The largest difference between the parameters of two models."""
    return max(
        float(np.abs(one.parameters[name] - other.parameters[name]).max())
        for name in one.parameters
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="a folder with one folder per domain"
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="the file for encoded features")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--option", action="append", default=[], help="an option of the method, as NAME=VALUE"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    named = dict(option.split("=", 1) for option in options.option)
    method_options = {name: parse_value(text) for name, text in named.items()}
    training.use_one_thread()
    bundle = read_bundle(options.bundle)
    dim, classes = bundle.manifest.dim, bundle.classes
    data = domains(bundle, options.data, options.cache)
    began, rows = time.monotonic(), []
    print("held out       seed  up/down     held out %  others %    up kB  down kB  difference")
    for held_out in data:
        zero = share(zeroshot.MODEL, data[held_out].everything, classes)
        print(f"{held_out:14}       zero-shot   {zero:10.2f}")
        for seed in range(options.seeds):
            first: Outcome | None = None
            for up, down in PAIRS:
                plan = Plan(
                    "fedclip",
                    options=method_options,
                    rounds=options.rounds,
                    vote="off",
                    seed=seed,
                    codec_up=up,
                    codec_down=down,
                )
                found = federate(data, held_out, classes, dim, plan)
                first = first or found
                row = {
                    "held_out_domain": held_out,
                    "seed": seed,
                    "up": up,
                    "down": down,
                    **{name: its for name, its in vars(found).items() if name != "model"},
                    "apart": apart(first.model, found.model),
                }
                rows.append(row)
                print(
                    f"{held_out:14} {seed:4}  {up}/{down}   {found.held_out:10.2f}"
                    f"{found.participants:10.2f} {found.up_bytes / 1e3:8.1f} "
                    f"{found.down_bytes / 1e3:8.1f}  {row['apart']:.1e}",
                    flush=True,
                )
    for up, down in PAIRS:
        its = [row for row in rows if (row["up"], row["down"]) == (up, down)]
        mean = {
            n: statistics.mean(float(row[n]) for row in its) for n in ("held_out", "participants")
        }
        print(f"{'mean':19}  {up}/{down}   {mean['held_out']:10.2f}{mean['participants']:10.2f}")
    print(f"{len(rows)} federations in {time.monotonic() - began:.0f} s")
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
