"""Answers of a device, with real processes: a picture is dropped, and a line and a message follow."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mqtt_client import connected, next_of
from PIL import Image
from system import Site, run, wait_until

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.transport.base import Received
from fedclip_edge.vision.bundle import Bundle

FLEET = "answers"


class Box:
    """One device with an inbox, and what it has answered so far."""

    def __init__(self, site: Site, extra: str = "") -> None:
        self.site = site
        self.config = site.write_agent("cam-07", extra=extra)
        self.inbox = self.config.parent / "inbox"
        self.inbox.mkdir()
        port = site.broker.port
        self.config.write_text(
            f'{self.config.read_text()}[inbox]\nfolder = "inbox"\n'
            f'[answers.broker]\nport = {port}\ntopic = "{site.fleet}-answers"\n'
        )
        self.topic = f"{site.fleet}-answers/cam-07/answer"
        self.file = self.config.parent / "state" / "answers.jsonl"

    def start(self, log: str = "agent") -> Any:
        return self.site.start("agent", self.config, "--json", log=log)

    def drop(self, name: str) -> Path:
        """Put a new picture into the inbox, as a camera does: in several writes."""
        random = np.random.default_rng(abs(hash(name)) % 2**32)
        whole = self.inbox.parent / f"camera-{name}"
        Image.fromarray(random.integers(0, 255, (60, 60, 3)).astype(np.uint8)).save(whole)
        data, path = whole.read_bytes(), self.inbox / name
        with path.open("wb") as file:
            for begin in range(0, len(data), 4000):
                file.write(data[begin : begin + 4000])
                file.flush()
        return path

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()]

    def answered(self) -> list[str]:
        """The names of the pictures that have an answer, in order."""
        return [Path(line["picture"]).name for line in self.lines()] if self.file.exists() else []

    def answer_to(self, name: str) -> dict[str, Any]:
        """Drop a picture and wait for its answer."""
        self.drop(name)
        return self.wait_for(name)

    def wait_for(self, name: str) -> dict[str, Any]:
        wait_until(lambda: name in self.answered(), f"the answer for {name}: {self.log()[-3:]}")
        (found,) = (line for line in self.lines() if Path(line["picture"]).name == name)
        return found

    def log(self, log: str = "agent") -> list[dict[str, Any]]:
        return self.site.events(log)

    def has(self, event: str, log: str = "agent", **fields: Any) -> Callable[[], bool]:
        def is_there() -> bool:
            return any(
                one["event"] == event and fields.items() <= one.items() for one in self.log(log)
            )

        return is_there


@contextmanager
def messages(address: BrokerAddress, topic: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """Listen to a topic; the function returns the next message."""
    client = connected(address, f"listener-{time.monotonic_ns()}", [topic])
    try:
        yield lambda: json.loads(next_of(client, Received).payload)
    finally:
        client.close()


def test_a_picture_is_answered_by_the_newest_model_also_after_a_restart(
    tmp_path: Path, random_bundle: Bundle, mosquitto: BrokerAddress
) -> None:
    with Site(tmp_path, random_bundle, mosquitto, f"{FLEET}-models") as site:
        box = Box(site)
        (box.config.parent / "pictures" / "circle" / "other.png").write_bytes(
            (box.drop("old.png")).read_bytes()
        )
        with messages(mosquitto, box.topic) as heard:
            agent = box.start()
            wait_until(box.has("connected"), "the agent")
            first = box.answer_to("first.png")
            assert (first["model"], heard()) == ("zero-shot", first)
            assert first["label"] in random_bundle.classes.names
            fleet = site.write_fleet(1, rounds=2)
            site.start("serve", fleet, "--once", log="serve")
            wait_until(box.has("answering_with", model="fleet"), "the model of the run")
            second = box.answer_to("second.png")
            assert (second["model"], second["round"], heard()) == ("fleet", 2, second)
            agent.terminate()
            assert agent.wait(60) == 0
            box.drop("while it was stopped.png")
            box.start("agent2")
            third = box.wait_for("while it was stopped.png")
            assert {key: third[key] for key in ("run", "version")} == {
                key: second[key] for key in ("run", "version")
            }
            assert heard()["picture"] == third["picture"]
        assert box.answered() == ["first.png", "second.png", "while it was stopped.png"]
        said = run("predict", "--config", box.config, "--json", box.inbox / "second.png")
        by_hand = json.loads(said.stdout)
        assert (by_hand["label"], by_hand["probability"]) == (
            second["label"],
            pytest.approx(second["probability"], abs=1e-5),
        )


def test_copies_renamed_and_damaged_pictures_have_no_answer_of_their_own(
    tmp_path: Path, random_bundle: Bundle, mosquitto: BrokerAddress
) -> None:
    with Site(tmp_path, random_bundle, mosquitto, f"{FLEET}-copies") as site:
        box = Box(site)
        box.start()
        wait_until(box.has("connected"), "the agent")
        box.answer_to("first.png")
        shutil.copy(box.inbox / "first.png", box.inbox / "copy.png")
        (box.inbox / "first.png").rename(box.inbox / "renamed.png")
        (box.inbox / "damaged.png").write_bytes(b"no picture")
        (box.inbox / ".hidden.png").write_bytes((box.inbox / "copy.png").read_bytes() + b"\0")
        box.answer_to("second.png")
        labelled = box.config.parent / "pictures" / "circle" / "third.png"
        shutil.move(box.drop("to move.png"), labelled)
        wait_until(lambda: len(box.answered()) == 3, "the answer for the moved picture")
        assert box.answered()[:2] == ["first.png", "second.png"]
        assert box.answered()[2] in ("third.png", "to move.png")


def test_a_picture_is_answered_while_a_round_trains(
    tmp_path: Path, random_bundle: Bundle, mosquitto: BrokerAddress
) -> None:
    with Site(tmp_path, random_bundle, mosquitto, f"{FLEET}-training") as site:
        box = Box(site)
        box.start()
        wait_until(box.has("connected"), "the agent")
        slow = "[plan.options]\nepochs = 100000\n"  # it would take minutes
        site.start("serve", site.write_fleet(1, rounds=1, extra=slow), "--json", log="serve")
        wait_until(box.has("torch_loaded"), "the training")
        for name in ("first.png", "second.png"):
            assert box.answer_to(name)["model"] == "zero-shot"
        assert not box.has("trained")()
