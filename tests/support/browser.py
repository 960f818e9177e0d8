"""Measurements of an HTML page in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# Writes into the page's title: the width of the page, the elements outside of it (those inside a
# box that scrolls count as the box), the number of tables, the pixels of each scrolling box that
# are out of sight, and the texts outside of their chart.
_SCRIPT = """
const wide = document.documentElement.clientWidth;
const scrolls = element => element.closest(".scroll");
const outside = [...document.body.querySelectorAll("*")].filter(element => {
  const box = element.getBoundingClientRect();
  return box.width && (!scrolls(element) || scrolls(element) === element)
    && (box.right > wide + 1 || box.left < -1);
});
const boxes = [...document.querySelectorAll(".scroll")];
const hidden = boxes.map(box => box.scrollWidth - box.clientWidth);
const cut = [...document.querySelectorAll("figure > svg text")].filter(text => {
  const box = text.getBoundingClientRect(), all = text.closest("svg").getBoundingClientRect();
  return box.width && (box.right > all.right + 1 || box.left < all.left - 1
    || box.top < all.top - 1 || box.bottom > all.bottom + 1);
});
document.title = JSON.stringify({
  width: document.documentElement.scrollWidth,
  wide: outside.map(element => element.outerHTML.slice(0, 100)),
  tables: document.querySelectorAll("table").length,
  hidden, cut: cut.map(text => text.textContent),
});
"""


def measured(page: Path, width_px: int) -> dict[str, Any]:
    """Open the page in a window of this width and return what the script above finds.

    The page is in a frame, because a window of the browser has a smallest width.
    """
    assert CHROMIUM is not None
    text = page.read_text(encoding="utf-8")
    policy = r'<meta http-equiv="Content-Security-Policy"[^>]*>'  # it would forbid the script
    text = re.sub(policy, "", text).replace("</body>", f"<script>{_SCRIPT}</script></body>")
    with tempfile.TemporaryDirectory() as folder:
        outer = Path(folder) / "outer.html"
        outer.write_text(
            f'<iframe style="width:{width_px}px;height:2000px;border:0" srcdoc="'
            f'{html.escape(text)}" onload="document.title=this.contentDocument.title"></iframe>',
            encoding="utf-8",
        )
        ended = subprocess.run(
            [
                CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
                "--no-first-run", "--disable-background-networking", "--disable-component-update",
                "--disable-sync", "--hide-scrollbars", f"--user-data-dir={folder}/profile",
                "--window-size=1400,2000", "--dump-dom", outer.as_uri(),
            ],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", ended.stdout, re.DOTALL)
    assert title, ended.stderr[-2000:]
    found: dict[str, Any] = json.loads(html.unescape(title[1]))
    return found
