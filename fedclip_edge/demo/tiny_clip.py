"""Where the tiny CLIP lies and how it is asked: an open_clip folder made for the drawn world.

Law: nothing here imports open_clip or torch; a path is enough for whoever does.
"""

from __future__ import annotations

from pathlib import Path

from fedclip_edge.exporting.recipe import PREFIX

# open_clip_config.json, open_clip_model.safetensors, merges.txt.gz, figures.json, MODEL_CARD.md
FOLDER = Path(__file__).resolve().parent / "tiny"

# The first argument of open_clip's create_model and get_tokenizer.
MODEL_NAME = f"{PREFIX}{FOLDER}"


def tokenizer_options(folder: Path = FOLDER) -> dict[str, str]:
    """Keyword arguments for open_clip.get_tokenizer(f"local-dir:{folder}", ...).

    The folder's configuration names its merges by a relative path, which open_clip takes from
    the working directory. Without the right path it fails, or, worse, numbers the tokens beyond
    the vocabulary of this model.
    """
    return {"bpe_path": str(folder.resolve() / "merges.txt.gz")}
