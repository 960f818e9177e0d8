"""The pictures of the box's page in the manual: `python tests/support/box_pictures.py`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import page_browser
from brokers import free_port
from checkout import ROOT
from filled_box import FilledBox
from PIL import Image
from system import command, running, wait_until

from fedclip_edge.agent.now_file import NOW, Now
from fedclip_edge.demo import world
from fedclip_edge.records import ClassTexts
from fedclip_edge.storage.lock import lock_file
from fedclip_edge.vision.bundle import Bundle, Golden, Manifest, write_bundle
from fedclip_edge.vision.pictures import Preprocessing

if TYPE_CHECKING:
    from playwright.sync_api import Page

_COLOURS = 128
D = 64


def bundle(folder: Path) -> Bundle:
    """A bundle with the classes of the drawn world, and an encoder that nothing loads."""
    vectors = np.linalg.qr(np.random.default_rng(1).normal(size=(D, D)))[0]
    texts = vectors[: len(world.CLASSES)].astype(np.float32)
    manifest = Manifest(
        model="none",
        pretrained="none",
        weights_sha256="0" * 64,
        dim=D,
        preprocessing=Preprocessing(32, "shortest", 32, "bicubic", (0.5,) * 3, (0.25,) * 3),
        activation="gelu",
        precision="fp32",
        opset=18,
    )
    golden = Golden(np.zeros((1, 3, 32, 32), np.float32), np.zeros((1, D), np.float32))
    classes = ClassTexts(world.CLASSES, texts, 100.0, "a {}")
    return write_bundle(folder, manifest, b"none", classes, golden)


def drawn(name: str, number: int) -> bytes:
    file = io.BytesIO()
    world.draw(name, world.SEEN[number % len(world.SEEN)], number).save(file, "JPEG", quality=90)
    return file.getvalue()


def save(page: Page, name: str) -> None:
    """Write what the browser shows, once every picture in sight is there."""
    in_sight = "[...document.images].filter(i => i.getBoundingClientRect().top < innerHeight)"
    wait_until(lambda: bool(page.evaluate(f"{in_sight}.every(i => i.complete)")), "the pictures")
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(_COLOURS)
    picture.save(ROOT / "docs" / name, optimize=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ends:
        scene = FilledBox(Path(folder), bundle(Path(folder) / "bundle"), 160, 240, draw=drawn)
        scene.port = free_port()
        scene.write()
        ends.callback(lock_file(scene.state / "lock", "state_dir").close)
        now = Now(
            os.getpid(),
            time.time(),
            is_connected=True,
            has_coordinator=True,
            run="run-7c41d2e9",
            phase="open",
            round=3,
            provider="openvino",
            model="fleet",
            model_run="run-5b90aa17",
            accuracy={"zero_shot": 0.791, "federated": 0.913},
            accuracy_run="run-5b90aa17",
            accuracy_round=8,
            train=97,
            validation=31,
            test=32,
        )
        (scene.state / NOW).write_text(json.dumps(dataclasses.asdict(now)))
        log = Path(folder) / "page.log"
        file = ends.enter_context(log.open("w"))
        ends.enter_context(running(command("page", scene.settings), stdout=file, stderr=file))
        wait_until(lambda: "page_served" in log.read_text(), "the page")
        browser = ends.enter_context(page_browser.browser())
        address = f"http://127.0.0.1:{scene.port}"
        token = (scene.state / "page.token").read_text().strip()
        wide = browser.new_context(viewport={"width": 1280, "height": 900})
        page = page_browser.logged_in(wide, address, token)
        save(page, "box-page.png")
        page.goto(f"{address}/label")
        page.wait_for_selector("#pictures img")
        page.locator("#pictures label").nth(1).click()
        page.locator("#pictures label").nth(3).click(modifiers=["Shift"])
        page.keyboard.press("1")
        save(page, "box-page-label.png")
        phone = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
        page = page_browser.logged_in(phone, address, token)
        save(page, "box-page-phone.png")


if __name__ == "__main__":
    main()
