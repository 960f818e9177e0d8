"""A device without labelled pictures, with real processes: it answers, and receives models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from system import Site, wait_until, write_pictures

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.vision.bundle import Bundle


def test_it_answers_receives_models_and_trains_once_a_picture_has_a_label(
    tmp_path: Path, random_bundle: Bundle, mosquitto: BrokerAddress
) -> None:
    with Site(tmp_path, random_bundle, mosquitto, "unlabelled") as site:
        north, new = site.write_agent("north"), site.write_agent("new", per_class=0)
        new.write_text(f'{new.read_text()}[inbox]\nfolder = "inbox"\n')
        pictures, inbox = new.parent / "pictures", new.parent / "inbox"
        inbox.mkdir()
        shutil.rmtree(pictures)
        pictures.mkdir()

        def heard(log: str, event: str, **fields: Any) -> list[dict[str, Any]]:
            return [
                one
                for one in site.events(log)
                if one["event"] == event and fields.items() <= one.items()
            ]

        def answer_to(name: str) -> dict[str, Any]:
            random = np.random.default_rng(len(name))
            noise = random.integers(0, 255, (60, 60, 3)).astype(np.uint8)
            Image.fromarray(noise).save(inbox / name)
            file = new.parent / "state" / "answers.jsonl"

            def answers() -> list[dict[str, Any]]:
                lines = file.read_text().splitlines() if file.exists() else []
                return [one for one in map(json.loads, lines) if one["picture"].endswith(name)]

            wait_until(lambda: bool(answers()), name)
            return answers()[0]

        Image.fromarray(np.full((40, 40, 3), 7, np.uint8)).save(inbox / "old.png")
        site.start("agent", new, "--json", log="new")
        wait_until(lambda: bool(heard("new", "connected")), "the device without labels")
        reasons = [one["reason"] for one in heard("new", "not_training")]
        assert reasons == ["no labelled picture is on the training side"]
        assert len(heard("new", "not_evaluating")) == 1
        wait_until(lambda: bool(heard("new", "unlabelled_encoded", total=1)), "the old picture")
        assert answer_to("first.png")["model"] == "zero-shot"
        fleet = site.write_fleet(1, 1, method="ridge", extra='[schedule]\nevery = "1s"\n')
        site.start("serve", fleet, "--json", log="serve")
        site.start("agent", north, "--json", log="north")
        wait_until(lambda: bool(heard("new", "answering_with", model="fleet")), "the fleet's model")
        assert answer_to("second.png")["model"] == "fleet"
        assert heard("serve", "joined", device="new")[0].get("roles") is None
        assert not heard("new", "trained")
        assert not heard("new", "evaluated")
        assert not heard("serve", "missed")
        write_pictures(pictures, random_bundle.classes.names, 12, seed=5)
        wait_until(lambda: bool(heard("new", "trained")), "training on the first labels")
        wait_until(lambda: bool(heard("new", "evaluated")), "an evaluation on the first labels")
        assert not heard("new", "worker_died")
        assert "old.png" not in (new.parent / "state" / "answers.jsonl").read_text()
