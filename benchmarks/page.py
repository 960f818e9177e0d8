"""The fleet's page with a thousand devices: first paint, bytes per second, memory.

The devices exist only as answers on the control socket. Each second a fiftieth of them changes,
as in a round that takes 50 s. Needs playwright and chromium.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import page_browser
from brokers import free_port
from status_scene import SceneFleet, fleet_of, status
from system import command, running, wait_until

DEVICES = 1000
SECONDS = 20
_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
# Counts the characters of each live update, which are the bytes but for a few headers.
_COUNT = """() => {
  window.count = 0;
  const source = new EventSource("/events?since=" + document.body.dataset.since);
  source.onmessage = (message) => { window.count += message.data.length; };
}"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = fleet_of(DEVICES)
        scene, port = SceneFleet(Path(folder), status(rows)), free_port()
        log = Path(folder) / "page.log"
        words = command("page", scene.write_settings(port))
        with (
            scene.serving(),
            log.open("w") as file,
            running(words, stdout=file, stderr=file) as process,
            page_browser.browser() as browser,
        ):
            wait_until(lambda: "page_served" in log.read_text(), "the page")
            token = (scene.folder / "journal.token").read_text().strip()
            page = page_browser.logged_in(browser.new_context(), f"http://127.0.0.1:{port}", token)
            paints = []
            for _ in range(5):
                page.reload()
                paints.append(page.evaluate(_PAINT))
            page.evaluate(_COUNT)
            for second in range(SECONDS):
                for row in rows[second % 50 :: 50]:
                    row["contributions"] += 1
                    row["part"] = "done" if row["part"] != "done" else "at work"
                scene.status = status(rows)
                time.sleep(1.0)
            sent = page.evaluate("window.count") / SECONDS
            memory = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            private = sum(int(line.split()[1]) for line in memory if line.startswith("Private_"))
    print(f"{DEVICES} devices")
    print(f"first paint: {statistics.median(paints):.0f} ms (median of {len(paints)})")
    print(f"live updates: {sent / 1000:.1f} kB/s for each browser")
    print(f"memory of the page's process, not shared with others: {private / 1000:.0f} MB")


if __name__ == "__main__":
    main()
