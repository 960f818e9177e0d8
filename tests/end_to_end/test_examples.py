"""The report's examples: selection by the seed, and thumbnails without metadata."""

from __future__ import annotations

import base64
import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedclip_edge.demo.examples import (
    KINDS,
    THUMBNAIL_BYTES,
    THUMBNAIL_PX,
    Example,
    choose_examples,
    thumbnail,
)
from fedclip_edge.errors import DataError

_GUESSES = {"fixed": "no", "broken": "on", "right": "oo", "still wrong": "nn"}  # "o" is the label


def table(path: Path, counts: Mapping[str, int], *, backwards: bool = False) -> Path:
    rows = [
        [f"{kind}-{i}.png", "o", _GUESSES[kind][0], _GUESSES[kind][1], "o"]
        for kind, count in counts.items()
        for i in range(count)
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["picture", "label", "zero_shot", "federated", "local"])
        out.writerows(reversed(rows) if backwards else rows)
    return path


def kinds(examples: Sequence[Example]) -> dict[str, int]:
    return dict(Counter(str(example.kind) for example in examples))


@pytest.mark.parametrize(
    ("counts", "seats", "shares"),
    [
        ((10, 5, 70, 15), 20, (2, 1, 14, 3)),
        ((1, 1, 997, 1), 12, (1, 1, 9, 1)),  # at least one of each kind
        ((0, 2, 98, 0), 10, (0, 1, 9, 0)),
        ((10, 20, 60, 10), 3, (0, 1, 2, 0)),  # too few for one of each kind: the most frequent ones
        ((1, 0, 2, 0), 10, (1, 0, 2, 0)),  # fewer than requested
        ((3, 3, 3, 3), 0, (0, 0, 0, 0)),
        ((0, 0, 0, 0), 5, (0, 0, 0, 0)),
    ],
)
def test_examples_are_in_proportion(
    tmp_path: Path, counts: tuple[int, ...], seats: int, shares: tuple[int, ...]
) -> None:
    path = table(tmp_path / "p.csv", dict(zip(KINDS, counts, strict=True)))
    chosen = choose_examples({"cam-01": path}, seats, seed=0)
    wanted = {kind: share for kind, share in zip(KINDS, shares, strict=True) if share}
    assert kinds(chosen) == wanted
    assert len({example.picture for example in chosen}) == len(chosen)
    assert [example.kind for example in chosen] == sorted(
        (example.kind for example in chosen), key=KINDS.index
    )


@given(st.tuples(*[st.integers(0, 60)] * 4), st.integers(4, 40))
def test_no_kind_is_favoured(
    tmp_path_factory: pytest.TempPathFactory, counts: tuple[int, ...], seats: int
) -> None:
    path = table(tmp_path_factory.mktemp("p") / "p.csv", dict(zip(KINDS, counts, strict=True)))
    shown = kinds(choose_examples({"d": path}, seats, seed=0))
    total = sum(counts)
    assert sum(shown.values()) == min(seats, total)
    for kind, count in zip(KINDS, counts, strict=True):
        due = min(seats, total) * count / max(total, 1)
        assert shown.get(kind, 0) == 0 if count == 0 else shown[kind] >= 1
        assert shown.get(kind, 0) <= max(1, due + 1)


def test_examples_follow_the_seed_alone(tmp_path: Path) -> None:
    counts = {"fixed": 30, "broken": 30, "right": 30, "still wrong": 30}
    one = {"a": table(tmp_path / "a.csv", counts), "b": table(tmp_path / "b.csv", counts)}
    chosen = choose_examples(one, 12, seed=1)
    assert choose_examples(one, 12, seed=1) == chosen
    assert choose_examples(one, 12, seed=2) != chosen
    table(tmp_path / "a.csv", counts, backwards=True)
    again = choose_examples(dict(reversed(one.items())), 12, seed=1)
    assert [e for d in "ab" for e in again if e.device == d] == chosen
    of = {d: {e.picture for e in chosen if e.device == d} for d in "ab"}
    assert of["a"] != of["b"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no column 'picture'"),
        (b"picture,label,zero_shot\na,b,c\n", "no column 'federated'"),
        (b"picture,label,zero_shot,federated\na,b,c\n", "line 2 is incomplete"),
        (b"picture,label,zero_shot,federated\na,b,\xff,d\n", "is not a table of predictions"),
        (b'picture,label,zero_shot,federated\n"a,b,c,d\n', "is not a table of predictions"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "predictions.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        choose_examples({"cam-01": path}, 3, seed=0)
    assert str(path) in str(caught.value)


def test_a_thumbnail_is_small_and_keeps_nothing_of_the_camera(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "where-I-live"
    noise = Image.effect_noise((1600, 1200), 80).convert("RGB")
    path = tmp_path / "big.jpg"
    noise.save(
        path, quality=95, exif=exif, comment=b"where-I-live", icc_profile=b"where-I-live" * 9
    )
    assert b"where-I-live" in path.read_bytes()
    head, _, text = (thumbnail(path) or "").partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    data = base64.b64decode(text, validate=True)
    assert b"where" not in data
    assert len(data) <= THUMBNAIL_BYTES
    assert Image.open(io.BytesIO(data)).size == (THUMBNAIL_PX, THUMBNAIL_PX * 3 // 4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_every_mode_have_a_thumbnail(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.tif"
    Image.new(mode, (300, 2)).save(path)
    assert (thumbnail(path) or "").startswith("data:image/")
