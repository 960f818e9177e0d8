"""The fleet's page of a real fleet, in a real browser."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import page_browser
import pytest
from brokers import MOSQUITTO, free_port
from status_scene import SceneFleet, device_row, fleet_of, status
from system import Site, command, commands, process_of, running, wait_until

from fedclip_edge.coordinator.journal import open_journal_to_read

pytestmark = pytest.mark.one_python
RED_MS = 10_000  # after which a killed agent must be red


@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
def test_a_live_run_moves_the_page_and_its_buttons_work(site: Site) -> None:
    port = free_port()
    fleet = site.write_fleet(2, 2, f'[page]\nlisten = "127.0.0.1:{port}"\n')
    agents = [site.write_agent(name) for name in ("cam-01", "camera-02")]
    site.start("serve", fleet, "--json", log="serve")

    def said(event: str) -> bool:
        return any(one["event"] == event for one in site.events("serve"))

    wait_until(lambda: said("page_served"), "the page")
    assert not any(f"main page {fleet}" in line for line in commands().values())
    token = (site.folder / "journal.token").read_text().strip()
    address = f"http://127.0.0.1:{port}"
    with page_browser.browser() as browser:
        page = page_browser.logged_in(browser.new_context(), address, token)
        page.get_by_text("0 of 2 devices that it needs are online").wait_for()
        site.start("agent", agents[0], "--json", log="cam-01")
        page.wait_for_selector("#device-cam-01.well")
        page.get_by_role("link", name="Pause …").click()
        page.get_by_role("button", name="Yes").click()
        page.get_by_text("who gave it: anna").wait_for()
        with page.expect_response("**/events*"):
            page.goto(address)

        # The browser asks again, which starts another process of the page. Its numbers are others,
        # so the browser gets everything anew.
        os.kill(process_of(f"main page {fleet}"), signal.SIGKILL)
        page.wait_for_selector("#lost:not([hidden])")
        second = site.start("agent", agents[1], "--json", log="camera-02")
        page.wait_for_selector("#device-camera-02.well")
        page.wait_for_selector("#lost", state="hidden")
        page.get_by_role("link", name="Resume …").click()
        page.get_by_role("button", name="Yes").click()
        page.goto(address)
        page.get_by_text("done after").wait_for()
        page.wait_for_selector("#charts svg")

        second.kill()
        page.wait_for_selector("#device-camera-02.bad", timeout=RED_MS)
        page.get_by_role("link", name="Runs").click()
        with page.expect_download() as download:
            page.get_by_role("link", name="model", exact=True).click()
        model = site.folder / "models" / download.value.suggested_filename
        assert Path(download.value.path()).read_bytes() == model.read_bytes()
        assert page_browser.violations(page) == []
        page.get_by_role("link", name="report", exact=True).click()
        page.get_by_role("heading", name="Accuracy by round").wait_for()
    with contextlib.closing(open_journal_to_read(site.folder / "journal.sqlite")) as journal:
        acts = journal.actions.all()
    assert [one.command for one in acts] == ["pause", "resume"]
    assert all(one.user.endswith(" via page (anna)") for one in acts)
    assert "Traceback" not in site.text("serve")


@contextlib.contextmanager
def served(drawn: SceneFleet) -> Iterator[tuple[str, str]]:
    """The page of a fleet that exists only as answers; yields its address and token."""
    port = free_port()
    log = drawn.folder / "page.log"
    with (
        drawn.serving(),
        log.open("w") as file,
        running(command("page", drawn.write_settings(port)), stdout=file, stderr=file) as process,
    ):
        wait_until(lambda: "page_served" in log.read_text(), "the page")
        yield f"http://127.0.0.1:{port}", (drawn.folder / "journal.token").read_text().strip()
        process.terminate()
        assert process.wait(30) == 0, log.read_text()
        assert "Traceback" not in log.read_text()


def test_a_thousand_devices_are_sorted_filtered_and_followed(tmp_path: Path) -> None:
    drawn = SceneFleet(tmp_path, status(fleet_of(1000)))
    with served(drawn) as (address, token), page_browser.browser() as browser:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = page_browser.logged_in(context, address, token)
        rows = page.locator("table[data-live] tbody tr")
        assert rows.count() == 1000
        assert rows.first.locator(".state").text_content() == "refused"
        page.locator("thead th:first-child button").click()
        assert (rows.first.get_attribute("id"), page.locator("th[aria-sort]").count()) == (
            "device-cam-0000",
            1,
        )
        page.locator("thead th:first-child button").click()
        assert rows.first.get_attribute("id") == "device-cam-0999"
        page.get_by_role("searchbox").fill("refused")
        page.get_by_text("8 of 1000").wait_for()
        changed = device_row(500, "offline", part="missing")
        drawn.status = status(
            [changed, *drawn.status["devices"][:500], *drawn.status["devices"][501:]]
        )
        page.wait_for_selector("#device-cam-0500.bad", state="attached", timeout=RED_MS)
        gone = [row for row in drawn.status["devices"] if row["id"] != "cam-0501"]
        drawn.status = status([*gone, device_row(1000)])
        page.wait_for_selector("#device-cam-0501", state="detached")
        page.wait_for_selector("#device-cam-1000", state="attached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_and_a_keyboard_are_enough(tmp_path: Path, scheme: str) -> None:
    drawn = SceneFleet(tmp_path, status(fleet_of(40)))
    with served(drawn) as (address, token), page_browser.browser() as browser:
        context = browser.new_context(
            viewport={"width": 390, "height": 844},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        page = page_browser.logged_in(context, address, token)
        for path in ("/", "/runs", "/classes", "/devices/cam-0001", "/actions/forget"):
            page.goto(f"{address}{path}")
            assert page.evaluate("document.documentElement.scrollWidth") == 390, path
            assert page_browser.violations(page) == []
        page.goto(address)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        reached = []
        while "Pause …" not in reached:
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.textContent"))
            assert len(reached) < 30
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Yes").wait_for()


def test_without_scripts_the_page_can_be_read(tmp_path: Path) -> None:
    drawn = SceneFleet(tmp_path, status(fleet_of(40)))
    with served(drawn) as (address, token), page_browser.browser() as browser:
        context = browser.new_context(java_script_enabled=False)
        page = page_browser.logged_in(context, address, token)
        assert page.locator("table[data-live] tbody tr").count() == 40
        page.get_by_text("round 1 of 3 open").wait_for()
