"""The pages of the manual as a whole: each can be found, and begins in the same way."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from checkout import ROOT

from fedclip_edge.agent import (
    answering,
    features,
    label_store,
    model_in_use,
    now_file,
    rescan,
    review_files,
)
from fedclip_edge.vision import provider_choice

pytestmark = pytest.mark.one_python
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS) for path in DOCS.rglob("*.md"))
GUIDES = sorted((DOCS / "how-to").glob("*.md"))
# A newcomer decides by these lines: they fit on one screen.
FIRST_SCREEN = 30


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_each_page_is_in_the_list_on_the_first_page(page: Path) -> None:
    if page.name != "index.md":
        assert f"]({page})" in (DOCS / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_a_guide_says_who_needs_it_and_what_there_is_at_its_end(path: Path) -> None:
    _title, need, end = path.read_text(encoding="utf-8").split("\n\n")[:3]
    assert need.startswith("**You need this** ")
    assert end.startswith("**At the end** ")


@pytest.mark.parametrize("guide", ["predictions", "label-next", "runs"])
def test_the_first_screen_of_the_readme_leads_to_the_main_uses(guide: str) -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert f"(docs/how-to/{guide}.md)" in "\n".join(lines[:FIRST_SCREEN])


@pytest.mark.parametrize(
    "name",
    [
        features.CACHE,
        rescan.INDEX,
        label_store.LABELS,
        provider_choice.FILE,
        answering.FILE,
        model_in_use.FLEET,
        model_in_use.CLASSES,
        model_in_use.OWN,
        now_file.NOW,
        "page.token",
        f"{review_files.FOLDER}/",
        "bundles/",
        "parked.sqlite",
        "predictions.csv",
        "device.key",
        "lock",
    ],
)
def test_the_page_of_the_box_explains_each_file_of_its_state(name: str) -> None:
    rows = re.findall(r"(?m)^ *\| ([^|]+) \|", (ROOT / "device/README.md").read_text("utf-8"))
    assert any(f"`{name}`" in row for row in rows)
