"""The text of the tiny CLIP's model card."""

from __future__ import annotations

from typing import Any

from fedclip_edge.demo.world import CLASSES, SEEN

_CARD = """# The tiny CLIP of the drawn world

A CLIP model with {parameters:,} parameters that recognises drawings of ten things. It is a
**toy**: with it, the demo can run the same export, agents and coordinator as with a real CLIP,
without a download. It is useless on real pictures.

## The model

- An [open_clip](https://github.com/mlfoundations/open_clip) model with its own configuration
  (`open_clip_config.json`), which open_clip loads by the name `local-dir:FOLDER`. Image encoder: a
  modified ResNet, layers [1, 1, 2, 1], width 16, pictures of 64 x 64 pixels. Text encoder: a
  transformer with two layers, width 64, two heads, 24 tokens. Both give 128 numbers.
- `open_clip_model.safetensors`: the weights in fp16, {weights_bytes:,} bytes.
- `merges.txt.gz`: {merges} byte-pair merges, learned from the captions. The configuration names
  the file without a folder, so open_clip would look for it in the working directory. Pass it the
  full path from `fedclip_edge.demo.tiny_clip.tokenizer_options()`.
- Logit scale {logit_scale}; mean norm of the raw image features {raw_feature_norm}.

## Training

- Classes: {classes}.
- {training_pictures:,} pictures drawn by `fedclip_edge.demo.world`, in the styles {seen}. Each has
  a caption, which always names the class and sometimes the style, the size and the colour. The
  model has seen no other style and no word for another style. No pictures or texts from elsewhere
  were used.
- The symmetric contrastive loss of CLIP, AdamW, {epochs} epochs, seed {seed};
  {training_minutes} minutes on two busy cores, including the drawing, with PyTorch {torch} and
  Pillow {pillow}.
- No setting was chosen on the test pictures below. The line widths of the sketches and cartoons
  were set after the training, on other pictures, so that the model's accuracy on these styles is
  well below that on the trained styles and well above chance.

## Zero-shot accuracy

Accuracy without further training, with the prompt "a picture of a ...", on {tested} pictures of
each style, drawn from seeds that were not used in the training. The last column is the difference
to the mean of the trained styles, in percentage points.

| style | trained on | accuracy, % | points lower |
|---|---|---|---|
{rows}

A fleet in the demo can adapt the model to the styles that it was not trained on.

## Reproduce

```
python -m fedclip_edge.demo.train_tiny_clip --out DIR --seed {seed}
```

Another machine or other library versions give slightly different weights. A different training
seed alone changes the accuracy on the styles not trained on by several percentage points, so one
fixed set of weights is shipped. The figures above are also in `figures.json`.
"""


def card(figures: dict[str, Any]) -> str:
    """Make the model card; all figures in it come from `figures`, the content of figures.json."""
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
