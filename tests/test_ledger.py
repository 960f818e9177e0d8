"""The books of a run: on disk first, and the same again after whatever was killed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from in_memory import ENCODER, class_texts

from fedclip_edge import ledger, model_file
from fedclip_edge.config import FleetConfig
from fedclip_edge.errors import ConfigError, PeerError, StoreError
from fedclip_edge.messaging import transfer, wire
from fedclip_edge.records import Contribution, Plan, Update
from fedclip_edge.store import Store, open_store

CLASSES, D = class_texts(), 8
PLAN = Plan(rounds=3)


def config(folder: Path, plan: Plan = PLAN) -> FleetConfig:
    return FleetConfig("lab", bundle=folder, journal=folder / "journal.sqlite", plan=plan)


def open_books(folder: Path) -> ledger.Ledger:
    """As a process does that has just started."""
    settings = config(folder)
    store = open_store(settings.journal)
    run = ledger.begin(settings, CLASSES, D, ENCODER, store)
    shapes = {"0.weight": (D, D), "0.bias": (D,), "2.weight": (D, D), "2.bias": (D,)}
    return ledger.open_ledger(run, store, shapes)


def contribution(books: ledger.Ledger, device: str, seed: int) -> tuple[Contribution, str, bytes]:
    random = np.random.default_rng(seed)
    terms = {
        name: random.normal(size=shape).astype(np.float32) for name, shape in books.shapes.items()
    }
    made = Contribution(
        run=books.run.id,
        round=books.model.round + 1,
        device=device,
        base=books.version,
        encoder_id=ENCODER,
        classes_digest=CLASSES.digest,
        update=Update("sum", 1, terms),
    )
    body = wire.pack_contribution(made, "fp32")
    return made, transfer.parcel_of(body).sha256, body


def test_a_process_that_starts_again_comes_to_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "once").mkdir()
    (tmp_path / "again").mkdir()
    undisturbed = open_books(tmp_path / "once")
    restarted = open_books(tmp_path / "again")
    for number in range(PLAN.rounds):
        for device in ("cam-0", "cam-1", "cam-2"):
            seed = 10 * number + int(device[-1])
            undisturbed.keep(*contribution(undisturbed, device, seed))
            restarted.keep(*contribution(restarted, device, seed))
            restarted = open_books(tmp_path / "again")  # killed after each one
        assert list(restarted.kept()) == ["cam-0", "cam-1", "cam-2"]
        undisturbed.close_round()
        restarted.close_round()
        restarted = open_books(tmp_path / "again")
        assert restarted.stored.body == undisturbed.stored.body
        assert restarted.kept() == {}
    assert restarted.model.round == PLAN.rounds


def test_what_the_disk_refuses_is_not_in_the_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = open_books(tmp_path)

    def full(*_: object) -> None:
        raise StoreError("full")

    monkeypatch.setattr(Store, "keep", full)
    with pytest.raises(StoreError):
        books.keep(*contribution(books, "cam-0", 0))
    assert books.total.weight == 0
    assert books.kept() == {}


def test_an_update_out_of_bounds_is_refused_before_it_is_kept(tmp_path: Path) -> None:
    books = open_books(tmp_path)
    made, _, _ = contribution(books, "cam-0", 0)
    huge = {name: term * np.float32(1e6) for name, term in made.update.terms.items()}
    with pytest.raises(PeerError, match="max_norm"):
        books.check(Update("sum", 1, huge))
    books.check(made.update)


def test_an_unfinished_run_with_other_settings_is_not_continued(tmp_path: Path) -> None:
    run = open_books(tmp_path).run
    store = open_store(tmp_path / "journal.sqlite")
    store.pin_key(run.id, "cam-0", "a" * 64)
    other = config(tmp_path, dataclasses.replace(PLAN, seed=1))
    with pytest.raises(ConfigError, match=run.id):
        ledger.begin(other, CLASSES, D, ENCODER, store)
    with pytest.raises(ConfigError, match="encoder"):
        ledger.begin(config(tmp_path), CLASSES, D, "f" * 64, store)
    assert ledger.begin(config(tmp_path), CLASSES, D, ENCODER, store) == run
    store.finish(run.id)
    assert ledger.begin(config(tmp_path), CLASSES, D, ENCODER, store) != run


def test_a_run_that_no_device_ever_joined_makes_way_for_other_settings(tmp_path: Path) -> None:
    run = open_books(tmp_path).run
    store = open_store(tmp_path / "journal.sqlite")
    other = config(tmp_path, dataclasses.replace(PLAN, seed=1))
    begun = ledger.begin(other, CLASSES, D, ENCODER, store)
    assert begun.id != run.id
    assert begun.plan.seed == 1
    assert store.unfinished_run() == begun


def test_a_run_is_finished_with_its_model_in_a_file(tmp_path: Path) -> None:
    books = open_books(tmp_path)
    books.keep(*contribution(books, "cam-0", 1))
    books.close_round()
    path = books.finish()
    assert path == tmp_path / "models" / f"{books.run.id}.safetensors"
    found = model_file.read(path)
    assert (found.run, found.plan, found.model.round) == (books.run.id, PLAN, 1)
    for name, term in books.model.terms.items():
        np.testing.assert_array_equal(found.model.terms[name], term)
    assert books.store.unfinished_run() is None


def test_a_run_whose_model_cannot_be_written_stays_unfinished(tmp_path: Path) -> None:
    books = open_books(tmp_path)
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(StoreError, match=r"the model .* cannot be written .*start again"):
        books.finish()
    assert books.store.unfinished_run() == books.run
    (tmp_path / "models").unlink()
    again = open_books(tmp_path)
    assert again.run == books.run
    assert again.finish().is_file()
