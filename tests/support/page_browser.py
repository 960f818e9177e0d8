"""A real browser that looks at a page: Debian's chromium, driven by Playwright."""

from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import CHROMIUM

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAITS_MS = 30_000
# An accessibility checker; it is used in these tests alone.
_AXE = "axe-core@4"


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start chromium; skip the test if it or Playwright is not installed."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        try:
            yield started
        finally:
            started.close()


def logged_in(context: BrowserContext, address: str, token: str, name: str = "anna") -> Page:
    """Open a page and log in, as a person does; the page is the one after the login."""
    page = context.new_page()
    page.set_default_timeout(WAITS_MS)
    page.goto(address)
    page.fill("[name=token]", token)
    page.fill("[name=name]", name)
    page.click("main button")
    page.wait_for_selector("#now")
    return page


@functools.cache
def axe() -> str:
    """The source of axe-core, from npm; skip the test if it cannot be fetched."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        try:
            packed = subprocess.run(
                [npm, "pack", "--silent", _AXE],
                cwd=folder, capture_output=True, text=True, timeout=60, check=True,
            ).stdout.split()  # fmt: skip
        except (subprocess.SubprocessError, OSError):
            pytest.skip("axe-core cannot be fetched with npm")
        with tarfile.open(Path(folder) / packed[-1]) as archive:
            found = archive.extractfile("package/axe.min.js")
            assert found is not None
            return found.read().decode()


def violations(page: Page) -> list[str]:
    """Serious and critical faults of accessibility, each with its element."""
    page.evaluate(axe())
    found: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {node['html'][:120]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
