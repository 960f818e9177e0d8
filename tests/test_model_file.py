"""Model files: written models are read back, and models that do not fit are refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import save_file

from fedclip_edge import model_file
from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator import run_state
from fedclip_edge.coordinator.journal import open_journal
from fedclip_edge.coordinator.model_lookup import find_model
from fedclip_edge.coordinator.run_choice import choose_run
from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import methods
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.model_file import TrainedModel
from fedclip_edge.records import Arrays, Model, Plan
from fedclip_edge.vision.bundle import Bundle

PLAN = Plan("fedclip", options={"lr": 1e-3}, rounds=4, seed=11)


@pytest.fixture
def trained(random_bundle: Bundle) -> TrainedModel:
    initial = methods.get("fedclip").initial(random_bundle.classes, 16, 3)
    return TrainedModel(
        replace(initial, round=4),
        "run-1234abcd",
        PLAN,
        random_bundle.manifest.encoder_id,
        random_bundle.classes.digest,
    )


def bytes_of(terms: Arrays) -> dict[str, bytes]:
    return {name: term.tobytes() for name, term in terms.items()}


def begin_run(folder: Path, bundle: Bundle, name: str = "journal.sqlite") -> str:
    """Create a journal with one unfinished run at its initial model; return the id of the run."""
    config = FleetConfig("lab", bundle.folder, journal=folder / name, plan=PLAN)
    with contextlib.closing(open_journal(config.journal)) as journal:
        identifier = bundle.manifest.encoder_id
        dim = bundle.manifest.dim
        run = choose_run(config, bundle.classes, dim, identifier, journal, once=True).begin()
        schedule = Schedule(PLAN, bundle.classes, bundle.manifest.dim)
        run_state.open_run_state(run, journal, schedule).finish()
    return run.id


def rewritten(path: Path, head: Mapping[str, Any] | None = None, **terms: Any) -> Path:
    """The file with other terms or another header."""
    with safe_open(path, framework="np") as file:
        found = json.loads(file.metadata()["fedclip_edge"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    arrays |= terms
    kept = {name: array for name, array in arrays.items() if array is not None}
    found["parameters"] = model_file._digest(kept)
    save_file(kept, path, metadata={"fedclip_edge": json.dumps({**found, **(head or {})})})
    return path


# --- writing and reading -------------------------------------------------------------------------


def test_a_model_is_read_back_bit_for_bit(trained: TrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "models" / "a.safetensors"
    model_file.write(path, trained)
    found = model_file.read(path)
    assert bytes_of(found.model.parameters) == bytes_of(trained.model.parameters)
    assert (found.model.method, found.model.round, found.run) == ("fedclip", 4, "run-1234abcd")
    assert (found.plan, found.encoder_id) == (PLAN, trained.encoder_id)
    assert found.classes_digest == trained.classes_digest
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


@given(
    terms=st.dictionaries(
        st.text("abc.01", min_size=1, max_size=8),
        hnp.arrays(
            np.float32,
            hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
            elements=st.floats(-1e3, 1e3, width=32),
        ),
        max_size=4,
    ),
    round=st.integers(0, 10**6),
)
def test_any_model_is_read_back_and_gives_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, terms: Arrays, round: int
) -> None:
    folder: Path = tmp_path_factory.mktemp("any")
    some = TrainedModel(
        Model("fedclip", round, terms), "run-a", Plan("fedclip"), "e" * 64, "c" * 64
    )
    model_file.write(folder / "a", some)
    found = model_file.read(folder / "a")
    assert bytes_of(found.model.parameters) == bytes_of(terms)
    model_file.write(folder / "b", found)
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()


def test_terms_are_written_by_value_not_by_layout(tmp_path: Path) -> None:
    term = np.arange(6, dtype=np.float32).reshape(2, 3)
    for name, same in (("a", term), ("b", np.asfortranarray(term)), ("c", term.T.copy().T)):
        some = TrainedModel(
            Model("fedclip", 1, {"t": same}), "run-a", Plan("fedclip"), "e" * 64, "c" * 64
        )
        model_file.write(tmp_path / name, some)
        np.testing.assert_array_equal(model_file.read(tmp_path / name).model.parameters["t"], term)
        assert (tmp_path / name).read_bytes() == (tmp_path / "a").read_bytes()


def test_anybody_can_read_it_without_this_package(trained: TrainedModel, tmp_path: Path) -> None:
    model_file.write(tmp_path / "a", trained)
    with safe_open(tmp_path / "a", framework="np") as file:
        assert set(file.metadata()) == {"fedclip_edge"}
        head = json.loads(file.metadata()["fedclip_edge"])
        assert file.get_tensor("0.weight").shape == (16, 16)
    assert (head["run"], head["round"], head["plan"]["method"]) == ("run-1234abcd", 4, "fedclip")
    assert (head["plan"]["seed"], head["plan"]["options"]) == (11, {"lr": 1e-3})


# --- the values of --model -----------------------------------------------------------------------


def test_a_file_a_journal_and_a_run_are_one_model(random_bundle: Bundle, tmp_path: Path) -> None:
    journal = tmp_path / "journal.sqlite"
    run = begin_run(tmp_path, random_bundle)
    file = model_file.path_of(journal, run)
    assert file == tmp_path / "models" / f"{run}.safetensors"
    by_name = {
        name: find_model(name, journal, random_bundle) for name in (str(file), str(journal), run)
    }
    for found in by_name.values():
        assert (found.run, found.plan, found.model.round) == (run, PLAN, 0)
        assert bytes_of(found.model.parameters) == bytes_of(by_name[run].model.parameters)


def test_a_journal_means_its_newest_run(random_bundle: Bundle, tmp_path: Path) -> None:
    first, second = (begin_run(tmp_path, random_bundle) for _ in range(2))
    journal = tmp_path / "journal.sqlite"
    assert first != second
    assert find_model(str(journal), tmp_path / "no", random_bundle).run == second
    assert find_model(first, journal, random_bundle).run == first


def test_a_run_that_is_none_names_the_nearest(random_bundle: Bundle, tmp_path: Path) -> None:
    run = begin_run(tmp_path, random_bundle)
    journal = tmp_path / "journal.sqlite"
    with pytest.raises(ConfigError, match=f"neither a file nor a run in .*did you mean '{run}'"):
        find_model(run[:-1], journal, random_bundle)
    with pytest.raises(ConfigError, match=f"its newest run is '{run}'"):
        find_model("zzz", journal, random_bundle)


def test_looking_makes_no_journal(random_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not a file, and there is no journal .*--journal"):
        find_model("run-1", tmp_path / "journal.sqlite", random_bundle)
    assert list(tmp_path.iterdir()) == []


def test_a_journal_without_a_run(random_bundle: Bundle, tmp_path: Path) -> None:
    open_journal(tmp_path / "journal.sqlite").close()
    with pytest.raises(ConfigError, match="has no run yet"):
        find_model(str(tmp_path / "journal.sqlite"), tmp_path / "no", random_bundle)


# --- refused files -------------------------------------------------------------------------------


def refused(path: Path, bundle: Bundle, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        find_model(str(path), path.parent / "journal.sqlite", bundle)
    assert str(path) in str(caught.value)


def test_what_is_no_model_file(
    random_bundle: Bundle, trained: TrainedModel, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"")
    refused(path, random_bundle, "incomplete or not a safetensors file; name a models/RUN")
    path.write_text("this is a letter, and longer than eight bytes")
    refused(path, random_bundle, "incomplete or not a safetensors")
    model_file.write(path, trained)
    path.write_bytes(path.read_bytes()[:-5])
    refused(path, random_bundle, "incomplete or not a safetensors")
    save_file({"a": np.zeros(2, np.float32)}, path)
    refused(path, random_bundle, "not the model of a run: it has no 'fedclip_edge' metadata")
    save_file({"a": np.zeros(2, np.float32)}, path, metadata={"fedclip_edge": "[]"})
    refused(path, random_bundle, "by another version")
    save_file({"a": np.zeros(2, np.float32)}, path, metadata={"fedclip_edge": "{"})
    refused(path, random_bundle, "not the model of a run")
    refused(tmp_path, random_bundle, "is a folder")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"schema": 9}, "another version of this program"),
        ({"plan": {"method": "fedclip", "rounds": -1}}, r"damaged \(plan: rounds: expected 0"),
        ({"plan": {"methot": "fedclip"}}, "damaged .*unknown key 'methot'"),
        ({"plan": 3}, "damaged"),
        ({"round": "many"}, "damaged"),
        ({"encoder_id": "f" * 64}, r"another encoder \(ffffffffffff\) than that of .*trained with"),
        ({"classes_digest": "f" * 64}, r"other classes .*\(3 classes\)"),
    ],
)
def test_a_head_that_does_not_fit(
    random_bundle: Bundle,
    trained: TrainedModel,
    tmp_path: Path,
    head: Mapping[str, Any],
    message: str,
) -> None:
    model_file.write(tmp_path / "a", trained)
    refused(rewritten(tmp_path / "a", head), random_bundle, message)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"0.bias": np.zeros(15, np.float32)}, r"parameters 0.bias \[15\], .* but fedclip with"),
        ({"0.bias": None}, r"parameters 0.weight \[16, 16\], .* but fedclip"),
        ({"more": np.zeros(1, np.float32)}, r"more \[1\], but fedclip"),
        ({"0.bias": np.full(16, np.nan, np.float32)}, "damaged .*0.bias: contains NaN"),
        ({"0.bias": np.full(16, np.inf, np.float32)}, "damaged .*NaN or infinity"),
        ({"0.bias": np.zeros(16, np.float64)}, "damaged .*expected float32"),
    ],
)
def test_terms_that_do_not_fit(
    random_bundle: Bundle,
    trained: TrainedModel,
    tmp_path: Path,
    terms: Mapping[str, Any],
    message: str,
) -> None:
    model_file.write(tmp_path / "a", trained)
    refused(rewritten(tmp_path / "a", **terms), random_bundle, message)


def test_a_run_of_another_encoder_in_the_journal(random_bundle: Bundle, tmp_path: Path) -> None:
    run = begin_run(tmp_path, random_bundle)
    coarser = replace(random_bundle.manifest, activation="relu")
    other = replace(random_bundle, manifest=coarser)
    with pytest.raises(ConfigError, match=f"{run} in .* was trained with another encoder"):
        find_model(run, tmp_path / "journal.sqlite", other)


def test_a_changed_parameter_is_found(tmp_path: Path, trained: TrainedModel) -> None:
    path = tmp_path / "model.safetensors"
    model_file.write(path, trained)
    data = bytearray(path.read_bytes())
    data[-2] ^= 0x40  # the last parameter; safetensors itself has no checksum
    path.write_bytes(bytes(data))
    with pytest.raises(ConfigError, match="its parameters have changed"):
        model_file.read(path)
