"""The pictures of the fleet's page in the manual: `python tests/support/page_pictures.py`."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import page_browser
from brokers import free_port
from checkout import ROOT
from PIL import Image
from status_scene import SceneFleet, fleet_of, status
from system import command, running, wait_until

_COLOURS = 48


def save(png: bytes, name: str) -> None:
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(_COLOURS)
    picture.save(ROOT / "docs" / name, optimize=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        scene, port = SceneFleet(Path(folder), status(fleet_of(1000))), free_port()
        log = Path(folder) / "page.log"
        words = command("page", scene.write_settings(port))
        with (
            scene.serving(),
            log.open("w") as file,
            running(words, stdout=file, stderr=file),
            page_browser.browser() as browser,
        ):
            wait_until(lambda: "page_served" in log.read_text(), "the page")
            address = f"http://127.0.0.1:{port}"
            token = (scene.folder / "journal.token").read_text().strip()
            wide = browser.new_context(viewport={"width": 1280, "height": 1500})
            save(page_browser.logged_in(wide, address, token).screenshot(), "fleet-page.png")
            phone = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
            page = page_browser.logged_in(phone, address, token)
            page.locator("#devices").scroll_into_view_if_needed()
            page.evaluate("document.querySelector('#devices').scrollIntoView()")
            save(page.screenshot(), "fleet-page-phone.png")


if __name__ == "__main__":
    main()
