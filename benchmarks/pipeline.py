"""Speed from picture files to features: this program's pipeline against what a user would write.

Contenders alternate in one process, in an order that is reversed after each round, and each figure
is a median. Ours is `embed_pictures` with an empty cache on disk, exact and `fast`, with an fp32
and an int8 encoder, and with other providers if they are named. The other side is open_clip's
transform, a DataLoader and PyTorch in fp32, with every number of workers and threads that is
sensible here; the best one counts.

The bound is what the cores would give without any loss: cores / (d + e), where d and e are the
CPU seconds of one thread that decodes, and that encodes, one picture, measured in the same rounds.
On a machine with other work, pictures per second are far below it. CPU seconds are not disturbed as
much: the last column is (d + e) as a share of the CPU seconds that our pipeline took for a picture.

The pictures are JPEGs of 1920 x 1080, quality 90, with edges, smooth areas and noise. Weights are
random. Pictures and encoders are kept in --folder for the next call.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from encoder import machine, worst_centred_cosine
from PIL import Image, ImageDraw

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting.golden import noise_pixels
from fedclip_edge.exporting.image_tower import export_image_tower
from fedclip_edge.exporting.onnx_file import serialise
from fedclip_edge.exporting.open_clip_model import ClipModel, load_open_clip
from fedclip_edge.exporting.precision import convert
from fedclip_edge.exporting.recipe import Precision, Source
from fedclip_edge.processes.cores import usable_cores
from fedclip_edge.records import F32
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.datasets import Picture
from fedclip_edge.vision.embedding import embed_pictures
from fedclip_edge.vision.encoder import Encoder, open_onnx
from fedclip_edge.vision.pictures import Preprocessing, decode, picture_hash

_SIDES_PX = (1920, 1080)
_BATCH = 8
_PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
OPEN_CLIP = "open_clip, best"
_KEPT: list[object] = []  # a DataLoader that ends in a process with OpenVINO crashes this process


@dataclass(frozen=True)
class Row:
    contender: str
    pictures_per_s: float
    of_bound: float  # a share; 0 if no bound was measured
    against_open_clip: float  # times as fast as its best split
    cpu_share: float  # of decoding and encoding in all CPU time; 0 if it was not measured


def draw(seed: int) -> Image.Image:
    """A picture whose JPEG has the size of a camera's."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (9, 16, 3), dtype=np.uint8))
    picture = coarse.resize(_SIDES_PX, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for _ in range(60):
        left, top = (int(random.integers(0, side)) for side in _SIDES_PX)
        size = int(random.integers(20, 300))
        shape = pen.ellipse if random.random() < 0.5 else pen.rectangle
        colour = tuple(int(value) for value in random.integers(0, 256, 3))
        shape((left, top, left + size, top + size), fill=colour)
    noise = random.normal(0, 5, (*_SIDES_PX[::-1], 1))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def pictures_in(folder: Path, count: int) -> list[Picture]:
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(count):
        path = folder / f"{number:04d}.jpg"
        if not path.exists():
            draw(number).save(path, quality=90)
        found.append(Picture(path, 0, picture_hash(path.read_bytes())))
    return found


def encoder_files(folder: Path, model: ClipModel) -> dict[str, Path]:
    files = {precision: folder / f"{precision}.onnx" for precision in _PRECISIONS}
    if not all(file.exists() for file in files.values()):
        graph = export_image_tower(model.image_tower, model.preprocessing.image_size)
        batches = np.split(noise_pixels(32, model.preprocessing, seed=1), 4)
        for precision in _PRECISIONS:
            files[precision].write_bytes(serialise(convert(graph, precision, batches)))
    return {str(precision): file for precision, file in files.items()}


class Loader(torch.utils.data.Dataset[torch.Tensor]):
    """Pictures as a user of open_clip would read them."""

    def __init__(
        self, pictures: Sequence[Picture], transform: Callable[[Image.Image], Any]
    ) -> None:
        self._pictures, self._transform = pictures, transform

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self._pictures[index].path) as picture:
            return cast("torch.Tensor", self._transform(picture))


def embed_with_torch(tower: torch.nn.Module, batches: Iterable[Any], threads: int) -> None:
    torch.set_num_threads(threads)
    with torch.no_grad():
        for pixels in batches:
            tower(pixels)


def open_clip_runs(
    model: ClipModel, pictures: Sequence[Picture], cores: int
) -> dict[str, Callable[[], None]]:
    from open_clip.transform import image_transform

    about = model.preprocessing
    transform = image_transform(
        about.image_size,
        is_train=False,
        mean=about.mean,
        std=about.std,
        resize_mode=about.resize,
        interpolation=about.interpolation,
    )
    runs: dict[str, Callable[[], None]] = {}
    for workers in range(cores + 1):
        batches = torch.utils.data.DataLoader(
            Loader(pictures, transform),
            batch_size=_BATCH,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        for threads in range(1, cores + 1):
            name = f"open_clip, {workers} workers, {threads} threads"
            runs[name] = partial(embed_with_torch, model.image_tower, batches, threads)
    return runs


def our_run(
    encoder: Encoder,
    pictures: Sequence[Picture],
    preprocessing: Preprocessing,
    config: EncoderConfig,
) -> Callable[[], None]:
    def run() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            FeatureCache(Path(folder) / "features.sqlite") as cache,
        ):
            done = embed_pictures(pictures, encoder, cache, preprocessing, config)
        if done.encoded != len(pictures):
            raise AssertionError(f"{done.encoded} of {len(pictures)} pictures were encoded")

    return run


def decode_all(data: Sequence[bytes], preprocessing: Preprocessing, fast: bool) -> None:
    for one in data:
        decode(one, preprocessing, fast=fast)


def embed_all(encoder: Encoder, pixels: F32, times: int) -> None:
    for _ in range(times):
        encoder.embed(pixels)


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def fast_differences(
    encoder: Encoder, pictures: Sequence[Picture], preprocessing: Preprocessing
) -> dict[str, float]:
    """Differences that `fast` makes on these pictures, in grey levels and in features."""
    data = [picture.path.read_bytes() for picture in pictures]
    both = [
        np.stack([decode(one, preprocessing, fast=fast) for one in data]) for fast in (False, True)
    ]
    levels = 255 * np.asarray(preprocessing.std, np.float32)[:, None, None]
    difference = np.abs(both[1] - both[0]) * levels
    features: list[F32] = [encoder.embed(pixels) for pixels in both]
    return {
        "mean_levels": float(difference.mean()),
        "largest_levels": float(difference.max()),
        "worst_centred_cosine": worst_centred_cosine(features[1], features[0]),
    }


def measure(
    model: ClipModel, pictures: Sequence[Picture], options: argparse.Namespace
) -> tuple[list[Row], dict[str, float], dict[str, float]]:
    about, cores = model.preprocessing, options.cores
    files = encoder_files(options.folder, model)
    data = [picture.path.read_bytes() for picture in pictures]
    pixels = np.stack([decode(one, about) for one in data[:_BATCH]])
    runs: dict[str, Callable[[], None]] = {}
    costs: dict[str, Callable[[], object]] = {}  # CPU seconds of all pictures
    bound_of: dict[str, tuple[str, str]] = {}
    for precision, file in files.items():
        one = open_onnx(file, EncoderConfig(threads=1), image_size=about.image_size)
        costs[precision] = partial(embed_all, one, pixels, len(data) // _BATCH)
    for decoding in ("exact", "fast"):
        fast = decoding == "fast"
        costs[decoding] = partial(decode_all, data, about, fast)
        for provider in options.providers:
            for precision, file in files.items():
                where, _, bf16 = provider.partition("-")  # as EncoderConfig.label
                if bf16 and precision != "fp32":
                    continue
                config = EncoderConfig(where, "bf16" if bf16 else "fp32", cores, fast=fast)
                name = f"ours, {provider} {precision}, {decoding}"
                try:
                    encoder = open_onnx(file, config, image_size=about.image_size, key=name)
                except (ConfigError, KeyError) as error:
                    print(f"{name}: not here ({error})")
                    continue
                runs[name] = our_run(encoder, pictures, about, config)
                if provider == "cpu":
                    bound_of[name] = (decoding, precision)
    theirs = open_clip_runs(model, pictures, cores)
    runs |= theirs
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    spent: dict[str, list[float]] = {name: [] for name in (*costs, *runs)}
    order = list(runs)
    for round_number in range(options.rounds + 1):  # the first one starts workers and is dropped
        for name in order:
            began = time.perf_counter()
            spent[name].append(cpu_seconds(runs[name]) / len(data))
            seconds[name].append(time.perf_counter() - began)
        for name, cost in costs.items():
            spent[name].append(cpu_seconds(cost) / len(data))
        order.reverse()
        print(f"round {round_number} of {options.rounds}", flush=True)
    speed = {name: len(data) / statistics.median(times[1:]) for name, times in seconds.items()}
    core_s = {name: statistics.median(times[1:]) for name, times in spent.items()}
    best = max(theirs, key=lambda name: speed[name])
    speed[f"{OPEN_CLIP}: {best.partition(', ')[2]}"] = speed[best]
    rows = []
    for name, rate in speed.items():
        needed = sum(core_s[part] for part in bound_of.get(name, ()))
        share = needed / core_s[name] if needed else 0.0
        rows.append(Row(name, rate, rate * needed / cores, rate / speed[best], share))
    encoder = open_onnx(files["fp32"], EncoderConfig(threads=cores), image_size=about.image_size)
    parts = {name: core_s[name] for name in costs}
    _KEPT.append(runs)
    return rows, parts, fast_differences(encoder, pictures[: 2 * _BATCH], about)


def show(rows: Sequence[Row], core_s: Mapping[str, float], changed: Mapping[str, float]) -> None:
    for name, seconds in core_s.items():
        print(f"  {name:8} {1e3 * seconds:6.1f} ms of one core for a picture")
    for row in rows:
        of_bound = f"{100 * row.of_bound:4.0f} % of the bound" if row.of_bound else ""
        of_bound += f", {100 * row.cpu_share:.0f} % of CPU time" if row.cpu_share else ""
        print(
            f"  {row.contender:42} {row.pictures_per_s:7.2f} pictures/s "
            f"{row.against_open_clip:5.2f}x open_clip  {of_bound}"
        )
    print(
        f"fast: {changed['mean_levels']:.2f} grey levels on average, at most "
        f"{changed['largest_levels']:.0f}; centred cosine at least "
        f"{changed['worst_centred_cosine']:.6f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("build/pipeline"))
    parser.add_argument("--model", default="ViT-B-32", help="the name of an open_clip model")
    parser.add_argument("--pictures", type=int, default=32, help="a multiple of 8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=usable_cores())
    parser.add_argument(
        "--providers",
        nargs="+",
        default=["cpu"],
        help="values of [encoder] provider, and openvino-bf16",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object as the last line")
    options = parser.parse_args()
    if options.pictures % _BATCH or options.pictures < 2 * _BATCH:
        parser.error(f"--pictures: expected a multiple of {_BATCH}, at least {2 * _BATCH}")
    described = machine()
    print(f"{described['cpu']}, {options.cores} cores, {' '.join(described['flags'])}")
    print(f"load {described['load']}, {described['versions']}")
    options.folder.mkdir(parents=True, exist_ok=True)
    pictures = pictures_in(options.folder / "pictures", options.pictures)
    sizes = [picture.path.stat().st_size for picture in pictures]
    print(f"{len(pictures)} JPEGs of {min(sizes) / 1e3:.0f} to {max(sizes) / 1e3:.0f} kB")
    model = load_open_clip(Source(options.model, random_weights=True))
    rows, core_s, changed = measure(model, pictures, options)
    show(rows, core_s, changed)
    if options.json:
        described |= {"load_after": machine()["load"]}
        print(
            json.dumps(
                {
                    "machine": described,
                    "model": options.model,
                    "cores": options.cores,
                    "core_seconds": core_s,
                    "fast": changed,
                    "rows": [asdict(row) for row in rows],
                }
            )
        )


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # see _KEPT
