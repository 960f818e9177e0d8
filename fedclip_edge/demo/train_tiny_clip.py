"""The training of the tiny CLIP on drawn pictures and their captions.

    python -m fedclip_edge.demo.train_tiny_clip --out DIR [--seed N]

The symmetric contrastive loss is that of CLIP (Radford et al. 2021, arXiv 2103.00020).

Laws:
- only the styles in SEEN are trained on;
- no setting is chosen on the test pictures;
- the vocabulary is learned from the captions, so that the folder holds no third-party file;
- the same seed gives the same weights on one machine with the same library versions.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import logging
import math
import multiprocessing
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import PIL
import torch
from torch.nn import functional

from fedclip_edge.demo import tiny_clip
from fedclip_edge.demo.model_card import card
from fedclip_edge.demo.vocabulary import learn_merges, write_merges
from fedclip_edge.demo.world import CLASSES, SEEN, STYLES, adjectives, caption, draw, picture_seed
from fedclip_edge.exporting.recipe import PROMPT
from fedclip_edge.exporting.torchvision_ops import declare_missing

TRAIN_PER_CLASS = 800  # of each seen style: 24,000 pictures
EPOCHS = 10  # after 6, accuracy on the seen styles is still below 85 %
BATCH = 256
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.1
WARM_UP_STEPS = 100
THREADS = 2  # fixed, because the last bits of sums depend on it
VOCABULARY_CAPTIONS = 9_000  # enough to hold every word that a caption can have
MERGES = 400  # upper limit; the captions hold fewer
MAX_LOGIT_SCALE = math.log(100)  # as in CLIP
TEST_PER_CLASS = 30
TEST_SEED = 1
_TRAIN_SEEDS_FROM = 10_000  # so that no training seed equals the test seed

MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)

Tokenizer = Callable[[list[str]], torch.Tensor]  # texts -> token ids int64 (N, 24)

log = logging.getLogger(__name__)


def write_vocabulary(folder: Path) -> int:
    """Learn merges from captions, write merges.txt.gz, and return the number of merges.

    The file does not depend on the training's seed.
    """
    rng = random.Random("vocabulary")
    corpus = []
    for one in range(VOCABULARY_CAPTIONS // (len(SEEN) * len(CLASSES))):
        words = {class_name: adjectives(class_name, one) for class_name in CLASSES}
        corpus += [caption(c, style, rng, words[c]) for style in SEEN for c in CLASSES]
    merges = learn_merges(corpus, MERGES)
    write_merges(merges, folder / "merges.txt.gz")
    return len(merges)


def configuration(merges: int) -> dict[str, Any]:
    """The content of open_clip_config.json, for a vocabulary with `merges` merges."""
    return {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {
                "image_size": 64,
                "layers": [1, 1, 2, 1],  # a modified ResNet: trains four times as fast as a ViT
                "width": 16,
                "patch_size": None,
            },
            "text_cfg": {
                "context_length": 24,
                "vocab_size": 512 + merges + 2,  # bytes, merges, start and end of text
                "width": 64,
                "heads": 2,
                "layers": 2,
                "tokenizer_kwargs": {"bpe_path": "merges.txt.gz"},
            },
        },
        "preprocess_cfg": {
            "size": 64,
            "mode": "RGB",
            "mean": list(MEAN),
            "std": list(STD),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def load(folder: Path, *, weights: bool = True) -> tuple[Any, Tokenizer]:
    """Load the model, in float32 and evaluation mode, and its tokenizer with open_clip.

    Without `weights` the model is freshly initialised from torch's random state.
    """
    declare_missing()
    # Elsewhere only exporting/ imports open_clip.
    import open_clip

    name = f"local-dir:{folder}"
    model = open_clip.create_model(name, load_weights=weights)
    tokenizer = open_clip.get_tokenizer(name, **tiny_clip.tokenizer_options(folder))
    return model.eval(), tokenizer


def picture_bytes(style: str, class_name: str, seed: int, count: int) -> bytes:
    """The first `count` pictures of the data set `seed`: uint8 (count, 64, 64, 3) as bytes."""
    return b"".join(
        draw(class_name, style, picture_seed(style, seed, i)).tobytes() for i in range(count)
    )


def pictures(
    styles: Sequence[str], seed: int, per_class: int, workers: int = 1
) -> tuple[torch.Tensor, list[tuple[str, str, int]]]:
    """Draw a data set: pixels uint8 (N, 3, 64, 64), and (class, style, picture seed) of each.

    It has `per_class` pictures of every class in every style, ordered by style and then by class.
    They are drawn in `workers` processes.
    """
    groups = [(style, class_name) for style in styles for class_name in CLASSES]
    tasks = [(*group, seed, per_class) for group in groups]
    if workers > 1:
        # The default of Python 3.14; a process that has loaded torch should not be forked.
        context = multiprocessing.get_context("forkserver")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
            drawn = list(pool.map(picture_bytes, *zip(*tasks, strict=True)))
    else:
        drawn = [picture_bytes(*task) for task in tasks]
    flat = torch.frombuffer(bytearray(b"".join(drawn)), dtype=torch.uint8)
    pixels = flat.reshape(-1, 64, 64, 3).permute(0, 3, 1, 2).contiguous()
    labels = [
        (class_name, style, picture_seed(style, seed, i))
        for style, class_name in groups
        for i in range(per_class)
    ]
    return pixels, labels


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels uint8 (N, 3, 64, 64) as float32 of the same shape, normalised by MEAN and STD."""
    mean, std = torch.tensor(MEAN).reshape(3, 1, 1), torch.tensor(STD).reshape(3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def image_features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Raw features float32 (N, 128) of pixels uint8 (N, 3, 64, 64)."""
    with torch.inference_mode():
        parts = [model.encode_image(normalised(part)) for part in torch.split(pixels, BATCH)]
    return torch.cat(parts)


def text_features(model: Any, tokenizer: Tokenizer) -> torch.Tensor:
    """Unit text features float32 (C, 128) of the prompt of every class, in CLASSES' order."""
    with torch.inference_mode():
        texts = model.encode_text(tokenizer([PROMPT.format(c) for c in CLASSES]))
    return functional.normalize(texts, dim=-1)


def zero_shot_percent(
    model: Any,
    tokenizer: Tokenizer,
    *,
    seed: int,
    per_class: int,
    workers: int = 1,
) -> dict[str, float]:
    """Zero-shot accuracy on each style, in percent and rounded to one digit.

    It is measured on `per_class` newly drawn pictures of every class.
    """
    texts = text_features(model, tokenizer)
    accuracy = {}
    for style in STYLES:
        pixels, labels = pictures([style], seed, per_class, workers)
        truth = torch.tensor([CLASSES.index(class_name) for class_name, _, _ in labels])
        guess = (image_features(model, pixels) @ texts.T).argmax(dim=1)
        accuracy[style] = round(100 * (guess == truth).float().mean().item(), 1)
    return accuracy


def _train(folder: Path, seed: int, epochs: int) -> None:
    """Train from scratch and write open_clip_model.safetensors in fp16."""
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    model, tokenizer = load(folder, weights=False)
    model = model.to(memory_format=torch.channels_last)  # a third faster on a CPU
    pixels, labels = pictures(SEEN, _TRAIN_SEEDS_FROM + seed, TRAIN_PER_CLASS, THREADS)
    words = [adjectives(class_name, one) for class_name, _, one in labels]
    log.info("drawn pictures=%d", len(labels))
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0}],
        lr=LEARNING_RATE,
    )
    steps = epochs * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / WARM_UP_STEPS, (1 + math.cos(math.pi * step / steps)) / 2),
    )
    rng = random.Random(f"captions/{seed}")
    truth = torch.arange(BATCH)
    model.train()
    for epoch in range(epochs):
        captions = [
            caption(class_name, style, rng, said)
            for (class_name, style, _), said in zip(labels, words, strict=True)
        ]
        tokens = tokenizer(captions)
        order = torch.randperm(len(labels))
        total = 0.0
        batches = torch.split(order, BATCH)[: len(labels) // BATCH]
        for rows in batches:
            batch = normalised(pixels[rows]).contiguous(memory_format=torch.channels_last)
            image, text, scale = model(batch, tokens[rows])
            logits = scale * image @ text.T  # (256, 256)
            loss = functional.cross_entropy(logits, truth) + functional.cross_entropy(
                logits.T, truth
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
            total += loss.item() / 2
        log.info("trained epoch=%d loss=%.3f", epoch + 1, total / len(batches))
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(state, folder / "open_clip_model.safetensors")


def build(out: Path, seed: int, epochs: int = EPOCHS) -> dict[str, Any]:
    """Train and measure the model, write the folder `out` and return the figures.

    An existing `out` is replaced, but only after training and measuring have succeeded.
    """
    torch.set_num_threads(THREADS)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        merges = write_vocabulary(draft)
        text = json.dumps(configuration(merges), indent=2) + "\n"
        (draft / "open_clip_config.json").write_text(text, encoding="utf-8")
        start = time.monotonic()
        _train(draft, seed, epochs)
        minutes = (time.monotonic() - start) / 60
        figures = measure(
            draft,
            {
                "seed": seed,
                "epochs": epochs,
                "training_pictures": TRAIN_PER_CLASS * len(CLASSES) * len(SEEN),
                "training_minutes": round(minutes, 1),
                "merges": merges,
                "torch": torch.__version__.partition("+")[0],
                "pillow": PIL.__version__,
            },
        )
        for path in draft.iterdir():
            path.chmod(0o644)  # safetensors writes files that only the owner can read
        draft.chmod(0o755)
        shutil.rmtree(out, ignore_errors=True)
        draft.rename(out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return figures


def measure(folder: Path, training: dict[str, Any]) -> dict[str, Any]:
    """Measure the weights in `folder` and write figures.json and MODEL_CARD.md next to them.

    `training` holds the figures of the training itself. Returns them together with the measured
    figures; the model card and the test of the weights use no others.
    """
    model, tokenizer = load(folder)
    pixels, _ = pictures(SEEN, TEST_SEED, 10)
    figures = training | {
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_bytes": (folder / "open_clip_model.safetensors").stat().st_size,
        "logit_scale": round(model.logit_scale.exp().item(), 2),
        "raw_feature_norm": round(image_features(model, pixels).norm(dim=1).mean().item(), 1),
        "test_seed": TEST_SEED,
        "test_per_class": TEST_PER_CLASS,
        "zero_shot_percent": zero_shot_percent(
            model, tokenizer, seed=TEST_SEED, per_class=TEST_PER_CLASS, workers=THREADS
        ),
    }
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (folder / "MODEL_CARD.md").write_text(card(figures), encoding="utf-8")
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(
        description="Train the tiny CLIP of the demo on drawn pictures and their captions."
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write; an existing one is replaced"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of the training (default: %(default)s)"
    )
    parser.add_argument(
        "--epochs", type=int, default=EPOCHS, help="number of epochs (default: %(default)s)"
    )
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    figures = build(chosen.out, chosen.seed, chosen.epochs)
    log.info("wrote out=%s %s", chosen.out, json.dumps(figures["zero_shot_percent"]))


if __name__ == "__main__":
    main()
