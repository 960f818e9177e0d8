"""The page of a device in a real browser: pictures, labels, classes, and a run with the labels."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import page_browser
import pytest
from brokers import MOSQUITTO, free_port
from filled_box import FilledBox
from system import Site, command, run, running, wait_until, write_pictures

from fedclip_edge.agent.label_store import labels_in
from fedclip_edge.config.agent import load_agent
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.datasets import side_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, ViewportSize

pytestmark = pytest.mark.one_python
MANY = 20_000
PHONE: ViewportSize = {"width": 390, "height": 844}
WIDE: ViewportSize = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with page_browser.browser() as started:
        yield started


@dataclass
class Opened:
    """A box whose page is served by a real process."""

    scene: FilledBox
    address: str
    token: str

    def page(self, browser: Browser, **context: Any) -> Page:
        return page_browser.logged_in(browser.new_context(**context), self.address, self.token)


@contextlib.contextmanager
def served(scene: FilledBox) -> Iterator[Opened]:
    scene.port = free_port()
    scene.write()
    log = scene.folder / "page.log"
    with (
        log.open("w") as file,
        running(command("page", scene.settings), stdout=file, stderr=file) as process,
    ):
        wait_until(lambda: "page_served" in log.read_text(), "the page")
        token = (scene.state / "page.token").read_text().strip()
        yield Opened(scene, f"http://127.0.0.1:{scene.port}", token)
        process.terminate()
        assert process.wait(30) == 0, log.read_text()
        assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, random_bundle: Bundle) -> Iterator[Opened]:
    folder: Path = tmp_path_factory.mktemp("box")
    with served(FilledBox(folder, random_bundle, labelled=60, unlabelled=240)) as opened:
        yield opened


@pytest.fixture
def without_labels(box: Opened) -> Opened:
    """The box after all labels that other tests gave are gone."""
    (box.scene.state / "labels.sqlite").unlink(missing_ok=True)
    return box


def labels(box: Opened) -> dict[str, str]:
    return labels_in(box.scene.state)


def selected(page: Page) -> int:
    return page.locator("#pictures input:checked").count()


def test_keys_select_and_label_and_undo(without_labels: Opened, browser: Browser) -> None:
    box = without_labels
    page = box.page(browser, viewport=WIDE)
    page.goto(f"{box.address}/label?tab=all")
    page.locator("#pictures input").first.focus()
    press = page.keyboard.press
    press("Space")
    press("Shift+ArrowRight")
    press("Shift+ArrowRight")
    assert selected(page) == 3
    press("ArrowDown")
    press("Space")
    assert selected(page) == 4
    assert page.locator("button .selected").text_content() == "4 pictures"
    press("2")
    assert page.locator("[name=typed]").input_value() == "square"
    press("Enter")
    page.get_by_text("4 pictures labelled as square by anna.").wait_for()
    assert sorted(labels(box).values()) == ["square"] * 4
    page.wait_for_selector("#pictures input:focus")  # ready for the next ones
    press("a")
    assert selected(page) == 120
    press("n")
    page.keyboard.type("circle")
    press("Enter")
    page.get_by_text("120 pictures labelled as circle by anna.").wait_for()
    assert len(labels(box)) == 124
    page.reload()
    press("u")
    page.get_by_text("4 pictures labelled as square by anna.").wait_for()
    assert len(labels(box)) == 4
    page.wait_for_load_state()
    press("u")
    wait_until(lambda: labels(box) == {}, "the first step to be undone")


def test_the_mouse_selects_a_range_and_a_chip_labels_it(
    without_labels: Opened, browser: Browser
) -> None:
    box = without_labels
    page = box.page(browser, viewport=WIDE)
    page.goto(f"{box.address}/label?tab=all")
    items = page.locator("#pictures label")
    items.nth(0).click()
    items.nth(99).click(modifiers=["Shift"])
    assert selected(page) == 100
    items.nth(5).click()
    assert selected(page) == 99
    items.nth(5).click()
    page.get_by_role("button", name="3 triangle").click()
    page.get_by_text("100 pictures labelled as triangle by anna.").wait_for()
    assert list(labels(box).values()) == ["triangle"] * 100
    page.get_by_role("button", name="Undo").click()
    wait_until(lambda: labels(box) == {}, "the undo")


def test_one_picture_is_corrected_and_taken_back(without_labels: Opened, browser: Browser) -> None:
    box = without_labels
    page = box.page(browser, viewport=WIDE)
    page.locator("#newest a").first.click()
    page.get_by_text("It has no label").wait_for()
    page.get_by_label("Class").select_option("square")
    page.get_by_role("button", name="Give this label").click()
    page.get_by_text("given by a person").wait_for()
    page.get_by_role("button", name="Take the label back").click()
    page.get_by_text("It has no label").wait_for()
    assert labels(box) == {}


def test_a_new_picture_appears_without_a_reload(box: Opened, browser: Browser) -> None:
    page = box.page(browser, viewport=WIDE)
    page.locator("#newest a").nth(3).focus()
    before = page.evaluate("document.activeElement.id")
    box.scene.add([5000])
    page.get_by_text("img-05000.jpg").wait_for()
    assert page.evaluate("document.activeElement.id") == before


def test_without_scripts_check_boxes_and_buttons_do_it(
    without_labels: Opened, browser: Browser
) -> None:
    box = without_labels
    page = box.page(browser, java_script_enabled=False)
    page.goto(f"{box.address}/label?tab=all")
    for place in (0, 2):
        page.locator("#pictures input").nth(place).check()
    page.get_by_role("button", name="1 circle").click()
    page.get_by_text("2 pictures labelled as circle by anna.").wait_for()
    page.get_by_role("button", name="Undo").click()
    wait_until(lambda: labels(box) == {}, "the undo")
    page.goto(f"{box.address}/classes")
    assert page.locator("tbody tr").count() == 3


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_every_page_can_be_used_by_everybody(box: Opened, browser: Browser, look: str) -> None:
    shape = PHONE if look == "phone" else WIDE
    page = box.page(browser, viewport=shape, color_scheme="dark" if look == "dark" else "light")
    picture = page.locator("#newest a").first.get_attribute("href")
    lists = ("/label", "/label?tab=all", "/label?tab=doubtful")
    for path in ("/", "/?show=unsure", *lists, "/classes", str(picture)):
        page.goto(f"{box.address}{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= shape["width"], path
        assert page_browser.violations(page) == [], path


def answer_to(box: Opened, path: str, **headers: str) -> tuple[int, str]:
    """Status and text of the answer to a request that no browser would send."""
    connection = http.client.HTTPConnection("127.0.0.1", box.scene.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_strangers_get_nothing(box: Opened, browser: Browser) -> None:
    page = box.page(browser)
    (cookie,) = page.context.cookies()
    ours = f"{cookie['name']}={cookie['value']}"
    for path in ("/", "/label", "/pictures/" + "0" * 20, "/classes", "/label?tab=all"):
        status, text = answer_to(box, path)
        assert (status, text) == (303, ""), path
        status, text = answer_to(box, path, Host="evil.example", Cookie=ours)
        assert (status, "img-0" in text) == (421, False)
        status, text = answer_to(box, path, Origin="http://evil.example", Cookie=ours)
        assert (status, "img-0" in text) == (403, False)
    stranger = browser.new_context().new_page()
    stranger.goto(box.address)
    stranger.fill("[name=token]", "wrong" * 5)
    stranger.click("main button")
    stranger.get_by_text("This is not the token of this page.").wait_for()
    stranger.goto(f"{box.address}/label?tab=all")
    assert stranger.locator("#pictures").count() == 0


def test_twenty_thousand_pictures_are_shown_and_labelled(
    tmp_path: Path, random_bundle: Bundle, browser: Browser
) -> None:
    with served(FilledBox(tmp_path, random_bundle, MANY // 2, MANY // 2)) as box:
        page = box.page(browser, viewport=WIDE)
        for path in ("/", "/label?tab=all", "/?show=unsure&page=9"):
            page.goto(box.address + path)
            page.locator(".pictures img").first.wait_for()
            found = "performance.getEntriesByName('first-contentful-paint').map(e => e.startTime)"
            print(f"{path}: first paint, ms: {page.evaluate(found)}")  # noqa: T201 - for a person
        page.goto(f"{box.address}/label?tab=all")
        page.keyboard.press("a")
        page.keyboard.press("1")
        began = page.evaluate("performance.timeOrigin + performance.now()")
        page.keyboard.press("Tab")
        page.locator("#pictures input").first.focus()
        page.keyboard.press("Enter")
        page.get_by_text("120 pictures labelled as circle").wait_for()
        ended = page.evaluate("performance.timeOrigin + performance.now()")
        print(f"120 labels: {ended - began:.0f} ms")  # noqa: T201 - as above
        assert len(labels(box)) == 120
        page.goto(f"{box.address}/classes")  # the process ends well while it makes the lists


@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
def test_a_run_trains_with_labels_that_were_given_a_moment_before(
    site: Site, browser: Browser
) -> None:
    port = free_port()
    agent = site.write_agent("cam-01")
    agent.write_text(
        f'{agent.read_text()}[inbox]\nfolder = "inbox"\n[page]\nlisten = "127.0.0.1:{port}"\n'
    )
    write_pictures(agent.parent / "inbox", site.bundle.classes.names, 34, seed=77)
    fleet = site.write_fleet(1, 1, method="ridge")
    site.start("serve", fleet, "--json", log="serve")
    site.start("agent", agent, "--json", log="cam-01")

    def heard(log: str, event: str) -> list[dict[str, Any]]:
        return [one for one in site.events(log) if one["event"] == event]

    wait_until(lambda: bool(heard("serve", "run_done")), "the first run")
    wait_until(lambda: bool(heard("cam-01", "page_served")), "the page")
    (before,) = heard("cam-01", "features_ready")
    token = (agent.parent / "state" / "page.token").read_text().strip()
    page = page_browser.logged_in(
        browser.new_context(viewport=WIDE), f"http://127.0.0.1:{port}", token
    )
    page.goto(f"http://127.0.0.1:{port}/label?tab=all")
    page.locator("#pictures label").nth(0).click()
    page.locator("#pictures label").nth(99).click(modifiers=["Shift"])
    page.get_by_role("button", name="1 circle").click()
    page.get_by_text("100 pictures labelled as circle").wait_for()
    started = run("run", "start", fleet)
    assert started.returncode == 0, started.stderr
    wait_until(lambda: len(heard("serve", "run_done")) == 2, "the second run")
    after = heard("cam-01", "features_ready")[-1]
    shares = load_agent(agent).data
    new = [side_of(one, shares) for one in labels_in(agent.parent / "state")]
    assert len(new) == 100
    assert after["train"] - before["train"] == new.count("train") > 40
    assert after["test"] - before["test"] == new.count("test")
    shown = json.loads(run("run", "show", "--config", fleet, "--json").stdout)
    counts = shown["devices"]["cam-01"]["pictures"]  # as the device told the coordinator
    assert (counts["train"], counts["test"]) == (after["train"], after["test"])
