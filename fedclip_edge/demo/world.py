"""The drawn world: pictures of ten things in several styles, for a demo that needs no download.

Laws:
- a picture depends on its class, its style and its seed only, in every process. This holds for one
  version of Pillow. Another version may round pixels differently: across machines compare
  accuracies, never picture hashes;
- the tiny CLIP was trained on the styles in SEEN and on none of those in UNSEEN.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import PIL
from PIL import Image

from fedclip_edge.demo import filled, lined
from fedclip_edge.demo.scenes import Scene, compose
from fedclip_edge.demo.shapes import SHAPES
from fedclip_edge.errors import ConfigError

CLASSES: tuple[str, ...] = tuple(sorted(SHAPES))  # in the order in which folders are listed
SEEN: tuple[str, ...] = ("photo", "painting", "poster")
UNSEEN: tuple[str, ...] = ("sketch", "cartoon", "chalk", "neon")
STYLES: tuple[str, ...] = SEEN + UNSEEN

_PAINTERS: dict[str, Callable[[Scene, random.Random], Image.Image]] = {
    "photo": filled.photo,
    "painting": filled.painting,
    "poster": filled.poster,
    "sketch": lined.sketch,
    "cartoon": filled.cartoon,
    "chalk": lined.chalk,
    "neon": lined.neon,
}

# Increase it when the drawings change, so that folders drawn before are not reused.
VERSION = 1
_MARKER = ".world.json"

# Words for a style in captions; some captions have none of them. No word names an unseen style, so
# that the tiny CLIP is not trained on those words either.
_STYLE_WORDS: dict[str, tuple[str, ...]] = {
    "photo": ("photo", "photograph"),
    "painting": ("painting", "oil painting"),
    "poster": ("poster", "print"),
}


def draw(class_name: str, style: str, seed: int) -> Image.Image:
    """Draw one picture, 64 x 64 pixels, mode RGB; a seed shows the same thing in every style.

    Raises ConfigError for an unknown class or style.
    """
    scene = _scene(class_name, seed)
    painter = _PAINTERS[_known("style", style, STYLES)]
    return painter(scene, random.Random(f"style/{style}/{class_name}/{seed}"))


def adjectives(class_name: str, seed: int) -> tuple[str, ...]:
    """Return the words for the thing in the picture of `draw`: a size, a colour, both or none.

    Raises ConfigError for an unknown class.
    """
    return _scene(class_name, seed).words


def caption(class_name: str, style: str, rng: random.Random, words: Sequence[str] = ()) -> str:
    """Make a training caption: it always names the class, sometimes the style and `words`.

    Raises ConfigError for an unknown class or style.
    """
    _known("class", class_name, CLASSES)
    _known("style", style, STYLES)
    said = [word for word in words if rng.random() < 0.5]
    thing = " ".join((*said, class_name))
    kind = "picture"
    if rng.random() < 0.5:
        kind = rng.choice(_STYLE_WORDS.get(style, (style,)))
    form = rng.randrange(4)
    if form == 0:
        return f"{_article(kind)} {kind} of {_article(thing)} {thing}"
    if form == 1:
        return f"{_article(thing)} {thing} in {_article(kind)} {kind}"
    if form == 2:
        return f"this {kind} shows {_article(thing)} {thing}"
    return f"{_article(kind)} {kind} of a {thing}"  # the form of a prompt template


def write_pictures(folder: Path, style: str, per_class: int, seed: int) -> None:
    """Draw `per_class` pictures of every class into folder/CLASS/0001.png and so on.

    They are drawn in a temporary folder, which is then renamed, so that a half-written folder never
    appears. A folder that already holds exactly these pictures is left as it is. Pictures of
    different styles or seeds show different things.

    Raises ConfigError for an unknown style, for a `per_class` below 1, and if the folder exists and
    holds anything else.
    """
    _known("style", style, STYLES)
    if per_class < 1:
        raise ConfigError(f"per_class is {per_class}; it must be 1 or more pictures per class")
    marker = {
        "style": style,
        "per_class": per_class,
        "seed": seed,
        "version": VERSION,
        "pillow": PIL.__version__,
    }
    if folder.exists():
        _check_marker(folder, marker)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for class_name in CLASSES:
            (draft / class_name).mkdir()
            for i in range(per_class):
                picture = draw(class_name, style, picture_seed(style, seed, i))
                picture.save(draft / class_name / f"{i + 1:04d}.png")
        (draft / _MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")
        draft.chmod(0o755)  # mkdtemp makes it private
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def picture_seed(style: str, seed: int, index: int) -> int:
    """Derive the 48-bit seed of picture `index` of the data set `seed` in the style `style`."""
    return random.Random(f"pictures/{style}/{seed}/{index}").getrandbits(48)


def _check_marker(folder: Path, marker: dict[str, object]) -> None:
    try:
        found = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            f"{folder} exists and is not a complete folder of drawn pictures; "
            "choose another folder, or move this one away"
        ) from None
    if found != marker:
        raise ConfigError(
            f"{folder} holds drawn pictures with other settings ({found}) than requested "
            f"({marker}); choose another folder, or remove this one to draw its pictures again"
        )


def _scene(class_name: str, seed: int) -> Scene:
    return compose(_known("class", class_name, CLASSES), seed)


def _known(what: str, name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise ConfigError(
            f"the drawn pictures have no {what} {name!r}; use one of: {', '.join(names)}"
        )
    return name


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


if __name__ == "__main__":  # FOLDER STYLE PER_CLASS SEED; stage.py starts a process for each style
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # removes the draft
    write_pictures(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
