"""The books of a run: on disk first, and the same again after whatever was killed."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_memory import ENCODER, class_texts
from opened import opened

from fedclip_edge import ledger, model_file
from fedclip_edge.config import FleetConfig
from fedclip_edge.errors import ConfigError, PeerError, StoreError
from fedclip_edge.messaging import transfer, wire
from fedclip_edge.records import Contribution, Layout, Plan, Update
from fedclip_edge.store import Store, open_store

CLASSES, D = class_texts(), 8
PLAN = Plan(rounds=3)


def config(folder: Path, plan: Plan = PLAN) -> FleetConfig:
    return FleetConfig("lab", bundle=folder, journal=folder / "journal.sqlite", plan=plan)


def open_books(folder: Path) -> ledger.Ledger:
    """As a process does that has just started."""
    settings = config(folder)
    store = opened(open_store(settings.journal))
    run = ledger.begin(settings, CLASSES, D, ENCODER, store)
    shapes = {"0.weight": (D, D), "0.bias": (D,), "2.weight": (D, D), "2.bias": (D,)}
    return ledger.open_ledger(run, store, Layout(shapes, shapes))


def contribution(books: ledger.Ledger, device: str, seed: int) -> tuple[Contribution, str, bytes]:
    random = np.random.default_rng(seed)
    terms = {
        name: random.normal(size=shape).astype(np.float32)
        for name, shape in books.layout.model.items()
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
    body = wire.pack_contribution(made, PLAN.codec_up)
    made = wire.unpack_contribution(body, PLAN.codec_up, books.layout.model)
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
        assert restarted.stored.master == undisturbed.stored.master
        assert restarted.kept() == {}
    assert restarted.model.round == PLAN.rounds


def test_the_model_is_kept_in_float32_whatever_it_is_published_in(tmp_path: Path) -> None:
    """Else what a round moves by less than half a step of the codec would be lost for ever."""
    books = open_books(tmp_path)
    published = wire.unpack_model(books.stored.body, PLAN.codec_down, books.layout.model)
    assert any((published.terms[n] != t).any() for n, t in books.model.terms.items())
    assert books.version == hashlib.sha256(books.stored.body).hexdigest()
    tiny = {name: np.full(shape, 1e-7, np.float32) for name, shape in books.layout.model.items()}
    before = books.model
    for _ in range(PLAN.rounds):
        base, number = books.version, books.model.round + 1
        update = Update("sum", 1, tiny)
        made = Contribution(books.run.id, number, "cam-0", base, ENCODER, CLASSES.digest, update)
        body = wire.pack_contribution(made, PLAN.codec_up)
        made = wire.unpack_contribution(body, PLAN.codec_up, books.layout.model)
        books.keep(made, transfer.parcel_of(body).sha256, body)
        books.close_round()
        books = open_books(tmp_path)
    for name, term in before.terms.items():
        moved = books.model.terms[name].astype(np.float64) - term
        assert moved.mean() == pytest.approx(PLAN.rounds * 1e-7, rel=0.1)


@pytest.mark.parametrize(("name", "stored_twice"), [("fp32", False), ("fp16", True)])
def test_only_a_lossy_codec_costs_a_second_copy_and_of_the_newest_model_alone(
    tmp_path: Path, name: Any, stored_twice: bool
) -> None:
    settings = config(tmp_path, dataclasses.replace(PLAN, codec_up="fp32", codec_down=name))
    store = opened(open_store(settings.journal))
    run = ledger.begin(settings, CLASSES, D, ENCODER, store)
    shapes = {"0.weight": (D, D), "0.bias": (D,), "2.weight": (D, D), "2.bias": (D,)}
    books = ledger.open_ledger(run, store, Layout(shapes, shapes))
    assert (books.stored.master is not None) == stored_twice
    ones = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    books.total.add(Update("sum", 1, ones))
    books.close_round()
    sizes = store._rows("SELECT LENGTH(body), master IS NOT NULL FROM model ORDER BY round")
    assert [bool(master) for _, master in sizes] == [stored_twice] * 2
    assert (sizes[0][0] == 0) == stored_twice
    assert sizes[1][0] == len(books.stored.body)


def test_what_was_kept_is_known_after_its_round_closed(tmp_path: Path) -> None:
    books = open_books(tmp_path)
    made, sha256, body = contribution(books, "cam-0", 1)
    assert not books.was_kept("cam-0", 1, sha256)
    books.keep(made, sha256, body)
    books.close_round()
    books = open_books(tmp_path)
    assert books.was_kept("cam-0", 1, sha256)
    assert not books.was_kept("cam-0", 2, sha256)
    assert not books.was_kept("cam-1", 1, sha256)
    assert not books.was_kept("cam-0", 1, "a" * 64)
    assert books.store.kept_bytes(books.run.id, 1) == len(body)
    assert books.store.kept_bytes(books.run.id, 2) == 0


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
        books.check("cam-0", 1, dataclasses.replace(made, update=Update("sum", 1, huge)))
    books.check("cam-0", 1, made)


def test_what_is_not_for_this_device_round_and_model_is_refused(tmp_path: Path) -> None:
    books = open_books(tmp_path)
    made, _, _ = contribution(books, "cam-0", 0)
    for name, other in (("device", "cam-1"), ("round", 2), ("base", "0" * 64), ("run", "run-0")):
        with pytest.raises(PeerError, match=f"contribution: {name} is"):
            books.check("cam-0", 1, dataclasses.replace(made, **{name: other}))  # type: ignore[arg-type]


def test_an_unfinished_run_with_other_settings_is_not_continued(tmp_path: Path) -> None:
    run = open_books(tmp_path).run
    store = opened(open_store(tmp_path / "journal.sqlite"))
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
    store = opened(open_store(tmp_path / "journal.sqlite"))
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
