"""The text of the tiny CLIP's model card."""

from __future__ import annotations

from typing import Any

from fedclip_edge.demo.world import CLASSES, SEEN

_CARD = """# The tiny CLIP of the drawn world

A CLIP of {parameters:,} parameters that knows ten drawn things. It is a **toy**: it lets
the demo run the same export, agents and coordinator as a real CLIP, with nothing to
download. It is of no use on real pictures.

## What it is

- An [open_clip](https://github.com/mlfoundations/open_clip) model of its own configuration
  (`open_clip_config.json`), for the `local-dir:` form of a model name. Image side: a modified
  ResNet, layers [1, 1, 2, 1], width 16, pictures of 64 x 64. Text side: a transformer of two
  layers, width 64, two heads, 24 tokens. Both end in 128 numbers.
- `open_clip_model.safetensors`: the weights in fp16, {weights_bytes:,} bytes.
- `merges.txt.gz`: {merges} byte-pair merges, learned from the captions. The configuration names
  the file without a folder, which open_clip would look for in the working directory:
  `fedclip_edge.demo.tiny_clip.tokenizer_options()` gives the whole path.
- Logit scale {logit_scale}; mean norm of the raw image features {raw_feature_norm}.

## Training

- Classes: {classes}.
- {training_pictures:,} pictures drawn by `fedclip_edge.demo.world`, in the styles {seen}, with
  captions that name the class always, and the style, the size and the colour sometimes. It
  has seen no other style, and no word for one. No picture and no text from anywhere else.
- The symmetric contrastive loss of CLIP, AdamW, {epochs} epochs, seed {seed};
  {training_minutes} minutes on two busy cores, drawing included, with PyTorch {torch} and
  Pillow {pillow}.
- Nothing was chosen by the test pictures below. How heavy the lines of the sketches and of
  the cartoons are was set on other pictures, after the training, so that the model is well
  below its best on them and well above chance.

## Zero-shot accuracy

Prompt "a picture of a ..."; {tested} pictures a style, of seeds never trained on. The last column
is how many points a style lies below the mean of the trained ones.

| style | trained on | accuracy, % | points lower |
|---|---|---|---|
{rows}

The styles not trained on are what a fleet can adapt to.

## Reproduce

```
python -m fedclip_edge.demo.train_tiny_clip --out DIR --seed {seed}
```

Another machine, or other versions of the libraries, give slightly other weights: accuracy on
the styles not trained on moves by several points with the training seed alone, which is why
one fixed checkpoint is shipped. The figures above are in `figures.json` as well.
"""


def card(figures: dict[str, Any]) -> str:
    """The model card; every figure in it comes from `figures`, the content of figures.json."""
    accuracy: dict[str, float] = figures["zero_shot_percent"]
    seen = sum(accuracy[style] for style in SEEN) / len(SEEN)
    rows = "\n".join(
        f"| {style} | {'yes' if style in SEEN else 'no'} | {percent:.1f} |"
        + ("" if style in SEEN else f" {seen - percent:.1f}")
        + " |"
        for style, percent in accuracy.items()
    )
    return _CARD.format(
        rows=rows,
        classes=", ".join(CLASSES),
        seen=", ".join(SEEN),
        tested=figures["test_per_class"] * len(CLASSES),
        **figures,
    )
