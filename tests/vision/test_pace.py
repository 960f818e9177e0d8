"""Threads and batches: chosen from the cores, in order, and never more than the limit."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from system import DEADLINE_S

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.vision import pace
from fedclip_edge.vision.pace import Pace, pace_of, threads_of


@pytest.mark.parametrize(("cores", "batch_size"), [(1, 8), (2, 8), (4, 8), (6, 5), (64, 1)])
def test_on_the_cpu_each_core_has_a_batch(
    monkeypatch: pytest.MonkeyPatch, cores: int, batch_size: int
) -> None:
    monkeypatch.setattr(pace, "usable_cores", lambda: cores)
    for provider in ("cpu", "openvino"):
        assert pace_of(EncoderConfig(provider)) == Pace(cores, batch_size, cores)
    assert threads_of(EncoderConfig()) == cores


@pytest.mark.parametrize(("cores", "batch_size"), [(1, 32), (2, 32), (6, 13), (64, 1)])
def test_an_accelerator_has_one_batch_while_all_cores_decode(
    monkeypatch: pytest.MonkeyPatch, cores: int, batch_size: int
) -> None:
    monkeypatch.setattr(pace, "usable_cores", lambda: cores)
    assert pace_of(EncoderConfig("cuda")) == Pace(cores + 1, batch_size, 1)


def test_what_is_set_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "usable_cores", lambda: 6)
    assert pace_of(EncoderConfig(threads=3, batch_size=5)) == Pace(3, 5, 3)
    assert pace_of(EncoderConfig(threads=1)) == Pace(1, 8, 1)
    assert pace_of(EncoderConfig(batch_size=1), 100) == Pace(6, 1, 6)


@given(st.integers(0, 100), st.integers(1, 8))
def test_few_pictures_are_shared_by_all_threads(count: int, threads: int) -> None:
    assert pace_of(EncoderConfig(threads=threads), count).batch_size <= max(1, -(-count // threads))


@given(st.lists(st.integers(), max_size=30), st.integers(1, 4), st.integers(1, 5))
def test_batches_are_all_results_in_order(items: list[int], threads: int, size: int) -> None:
    batches = list(Pace(threads, size, threads).batches(lambda batch: batch, items))
    assert [item for batch in batches for item in batch] == items
    assert all(len(batch) == size for batch in batches[:-1])


def test_so_many_batches_are_encoded_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=DEADLINE_S)  # breaks unless two threads are in it
    chosen = Pace(threads=2, batch_size=1, encoders=2)
    assert len(list(chosen.batches(lambda _: chosen.encode(lambda _: both.wait(), 0), "abcd"))) == 4


def test_an_accelerator_encodes_one_batch_at_a_time() -> None:
    chosen, inside, most = Pace(threads=4, batch_size=1, encoders=1), 0, 0
    passed = threading.Barrier(4, timeout=DEADLINE_S)

    def embed(item: int) -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threading.Event().wait(0.002)  # long enough for another thread to come in
        inside -= 1
        return item

    def work(batch: list[int]) -> int:
        passed.wait()  # all four want to encode now
        return chosen.encode(embed, batch[0])

    assert list(chosen.batches(work, range(8))) == list(range(8))
    assert most == 1


def test_an_error_lets_the_next_batch_have_its_turn() -> None:
    chosen = Pace(threads=1, batch_size=1, encoders=1)
    with pytest.raises(ZeroDivisionError):
        chosen.encode(lambda item: 1 // item, 0)
    assert chosen.encode(lambda item: 1 // item, 1) == 1


def test_at_most_one_batch_for_each_thread_while_the_caller_works() -> None:
    begun = threading.Semaphore(0)
    count = 0

    def work(batch: list[int]) -> list[int]:
        nonlocal count
        count += 1
        begun.release()
        return batch

    with closing(Pace(threads=1, batch_size=3, encoders=1).batches(work, range(100))) as batches:
        assert next(batches) == [0, 1, 2]
        for _ in range(2):  # this batch, and the next one
            assert begun.acquire(timeout=DEADLINE_S)
        assert not begun.acquire(timeout=0.05)
    assert count == 2
