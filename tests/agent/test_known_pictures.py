"""The pictures of a device by the bytes of their files: new, renamed, copied, gone."""

from __future__ import annotations

from fedclip_edge.agent.known_pictures import GONE_S, KnownPictures


def test_a_copy_and_a_renamed_file_are_not_new() -> None:
    known = KnownPictures()
    assert known.add("a", "1", 0.0)
    assert not known.add("b", "1", 0.0)
    known.remove("a", None, 0.0)
    known.remove("b", None, 1.0)
    assert not known.add("c", "1", 1.0 + GONE_S / 2)
    assert known.gone(100.0) == ()
    assert list(known.names) == ["c"]


def test_it_is_gone_when_no_file_has_had_it_for_long_enough() -> None:
    known = KnownPictures()
    known.add("a", "1", 0.0)
    known.add("b", "1", 0.0)
    known.remove("a", None, 5.0)
    assert known.gone(100.0) == ()
    known.remove("b", None, 200.0)
    assert known.gone(200.0 + GONE_S / 2) == ()
    assert known.gone(200.0 + GONE_S) == ("1",)
    known.forget(["1"])
    assert known.gone(300.0) == ()
    assert known.add("a", "1", 300.0)


def test_other_bytes_are_a_new_picture_and_the_earlier_one_goes() -> None:
    known = KnownPictures()
    known.add("a", "1", 0.0)
    assert known.add("a", "2", 1.0)
    assert known.has("a", "2")
    assert known.gone(1.0 + GONE_S) == ("1",)


def test_pictures_of_an_earlier_time_are_not_new_and_are_gone_unless_found() -> None:
    known = KnownPictures()
    known.begin(["1", "2"], ["2", "3", "4"], 0.0)
    assert not known.add("a", "1", 1.0)
    assert known.add("b", "4", 1.0)  # it is not settled
    assert sorted(known.gone(GONE_S)) == ["2", "3"]


def test_a_file_that_only_another_reading_has_met_is_gone_with_its_hash() -> None:
    known = KnownPictures()
    known.begin(["1"], [], 0.0)
    known.add("a", "1", 0.0)
    known.remove("other", "1", 1.0)
    assert known.gone(100.0) == ()  # the file `a` has these bytes
    known.remove("unknown", None, 1.0)
    known.remove("met", "3", 1.0)
    assert known.gone(1.0 + GONE_S) == ("3",)
