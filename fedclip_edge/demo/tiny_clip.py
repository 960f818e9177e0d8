"""Where the tiny CLIP lies and how it is asked: an open_clip folder made for the drawn world.

Law: nothing heavy is imported here; a path is enough for whoever does.
"""

from __future__ import annotations

from pathlib import Path

# open_clip_config.json, open_clip_model.safetensors, merges.txt.gz, figures.json, MODEL_CARD.md
FOLDER = Path(__file__).resolve().parent / "tiny"


def tokenizer_options(folder: Path = FOLDER) -> dict[str, str]:
    """Keyword arguments for open_clip.get_tokenizer(f"local-dir:{folder}", ...).

    The folder's configuration names its merges by a relative path, which open_clip takes from
    the working directory. Without the right path it fails, or, worse, numbers the tokens beyond
    the vocabulary of this model.
    """
    return {"bpe_path": str(folder.resolve() / "merges.txt.gz")}
