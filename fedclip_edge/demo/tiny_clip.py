"""The folder of the tiny CLIP, an open_clip model made for the drawn world.

Law: no large library is imported here; callers that only need the model's path stay fast.
"""

from __future__ import annotations

from pathlib import Path

# open_clip_config.json, open_clip_model.safetensors, merges.txt.gz, figures.json, MODEL_CARD.md
FOLDER = Path(__file__).resolve().parent / "tiny"


def tokenizer_options(folder: Path = FOLDER) -> dict[str, str]:
    """Return the keyword arguments for `open_clip.get_tokenizer(f"local-dir:{folder}", ...)`.

    The folder's configuration names its merges by a relative path, which open_clip resolves against
    the working directory. Without the absolute path it fails or, worse, returns token ids outside
    this model's vocabulary.
    """
    return {"bpe_path": str(folder.resolve() / "merges.txt.gz")}
