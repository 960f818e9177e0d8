"""The files of a device as its agent leaves them: pictures, index, features, answers, labels."""

from __future__ import annotations

import contextlib
import io
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from opened_box import ADDRESS
from PIL import Image, ImageDraw
from starlette.testclient import TestClient

from fedclip_edge.agent.answers import line_of, utc
from fedclip_edge.agent.features import CACHE
from fedclip_edge.agent.page import process
from fedclip_edge.agent.rescan import INDEX
from fedclip_edge.config.agent import AgentConfig, load_agent
from fedclip_edge.records import F32
from fedclip_edge.vision.bundle import Bundle, key_of
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.picture_index import PictureIndex
from fedclip_edge.web.live import Pieces
from fedclip_edge.web.token_file import read_token

OURS = {"Origin": ADDRESS}
NEWEST_S = 1_780_000_000.0  # Unix time of the newest picture
EVERY_S = 60.0  # between two pictures
_DRAWN = 24  # different drawings of each class


def drawing(name: str, number: int, side: int = 160) -> bytes:
    """A JPEG of the shape that the class is named after."""
    rng = random.Random(f"{name} {number}")
    ground, ink = (tuple(rng.randrange(low, low + 100) for _ in range(3)) for low in (150, 20))
    image = Image.new("RGB", (side, side), ground)
    draw = ImageDraw.Draw(image)
    x, y, r = rng.randrange(50, 110), rng.randrange(50, 110), rng.randrange(25, 45)
    if name == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    elif name == "square":
        draw.rectangle((x - r, y - r, x + r, y + r), fill=ink)
    else:
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=ink)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()


@dataclass
class FilledBox:
    """One device; picture number n shows class n modulo the number of classes."""

    folder: Path
    bundle: Bundle
    labelled: int = 30
    unlabelled: int = 60
    port: int = 8080
    draw: Callable[[str, int], bytes] = drawing  # a JPEG of a class, by number

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def settings(self) -> Path:
        return self.folder / "agent.toml"

    @property
    def config(self) -> AgentConfig:
        return load_agent(self.settings)

    @property
    def classes(self) -> Sequence[str]:
        return self.bundle.classes.names

    def path(self, number: int) -> Path:
        """File of a picture: the labelled ones come first."""
        name = f"img-{number:05d}.jpg"
        if number < self.labelled:
            return self.folder / "pictures" / self.classes[number % len(self.classes)] / name
        return self.folder / "inbox" / name

    def write(self, extra: str = "") -> FilledBox:
        """Write all files, as after a first start with all answers."""
        for part in ("state", "inbox", "pictures"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        self.settings.write_text(
            f'id = "cam-07"\nfleet = "lab"\nbundle = "{self.bundle.folder}"\n'
            f'state_dir = "state"\n{extra}\n[data]\nfolder = "pictures"\n'
            f'[inbox]\nfolder = "inbox"\n[page]\nlisten = "127.0.0.1:{self.port}"\n'
        )
        self.add(range(self.labelled + self.unlabelled))
        return self

    def add(self, numbers: Sequence[int], *, answered: bool = True) -> list[str]:
        """Write more pictures, and what the agent knows about them; returns their hashes."""
        count = len(self.classes)
        shapes = [
            [self.draw(name, i) for i in range(min(_DRAWN, len(numbers)))] for name in self.classes
        ]
        paths = [self.path(number) for number in numbers]
        for number, path in zip(numbers, paths, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn = shapes[number % count]
            # Bytes after the end of a JPEG change its hash and nothing else.
            path.write_bytes(drawn[number // count % len(drawn)] + number.to_bytes(4, "big"))
            os.utime(path, (self.at(number), self.at(number)))
        hashes = self.learn(paths)
        vectors = self.features(numbers)
        with FeatureCache(self.state / CACHE) as cache:
            key = key_of(self.bundle, self.config.encoder)
            cache.put(dict(zip(hashes, vectors, strict=True)), key)
        if answered:
            with (self.state / "answers.jsonl").open("ab") as file:
                for number, picture in zip(numbers, hashes, strict=True):
                    file.write(self.answer(number, picture))
        return hashes

    @contextlib.contextmanager
    def opened(self, name: str = "anna") -> Iterator[TestClient]:
        """A client of the page in this process, logged in by this name."""
        token = read_token(self.config.page_token)
        app = process.application(self.config, self.settings, token, Pieces())
        with TestClient(app, base_url=ADDRESS, follow_redirects=False) as client:
            answer = client.post("/login", data={"token": token, "name": name}, headers=OURS)
            assert answer.status_code == 303
            yield client

    def learn(self, paths: Sequence[Path]) -> list[str]:
        """Add files to the index; returns their hashes."""
        # An hour later, so that the files are not taken for ones that are being written.
        index = PictureIndex(clock=lambda: time.time() + 3600, file=self.state / INDEX)
        index.open()
        with contextlib.closing(index):
            hashes = [index.hash_of(path) for path in paths]
            index.save()
        return hashes

    def give_feature(self, picture: str, number: int) -> None:
        """Give a picture, by hash, the feature of the picture with this number."""
        with FeatureCache(self.state / CACHE) as cache:
            cache.put(
                {picture: self.features([number])[0]}, key_of(self.bundle, self.config.encoder)
            )

    def forget_features(self, numbers: Sequence[int]) -> None:
        """Delete the features of these pictures."""
        with FeatureCache(self.state / CACHE) as cache:
            cache.forget(self.learn([self.path(number) for number in numbers]))

    def at(self, number: int) -> float:
        """Unix time of a picture; a larger number is newer."""
        return NEWEST_S - EVERY_S * (self.labelled + self.unlabelled - number)

    def features(self, numbers: Sequence[int]) -> F32:
        """Raw features near the text of each picture's class, float32 (N, D)."""
        texts, count = self.bundle.classes.vectors, len(self.classes)
        found = []
        for number in numbers:
            rng = np.random.default_rng(number)
            own, other = texts[number % count], texts[(number + 1) % count]
            # Where the answer is unsure, the model is unsure too.
            is_unsure = number % 5 == 0 and number >= self.labelled
            mean = 0.51 * own + 0.5 * other if is_unsure else own
            found.append(mean + rng.normal(0, 0.12, own.shape))
        return np.array(found, np.float32).reshape(len(found), texts.shape[1])

    def answer(self, number: int, picture: str) -> bytes:
        """The line of an answer: every fifth is unsure, every eleventh unknown."""
        label = self.classes[number % len(self.classes)]
        other = self.classes[(number + 1) % len(self.classes)]
        share = 0.48 if number % 5 == 0 else 0.93
        return line_of(
            {
                "time": utc(self.at(number)),
                "device": "cam-07",
                "picture": str(self.path(number)),
                "hash": picture,
                "label": label,
                "probability": share,
                "unknown": number % 11 == 0,
                "score": 0.2,
                "top": {label: share, other: round(0.98 - share, 6)},
                "model": "fleet",
                "run": "run-1",
            }
        )
