"""The limit of pixels that threads hold together."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from system import DEADLINE_S

from fedclip_edge.vision.pixel_budget import PixelBudget


def test_the_threads_never_hold_more_together() -> None:
    budget, lock = PixelBudget(100), threading.Lock()
    held = most = 0

    def work(pixels: int) -> None:
        nonlocal held, most
        with budget.of(pixels):
            with lock:
                held += min(pixels, 100)
                most = max(most, held)
            with lock:
                held -= min(pixels, 100)

    with ThreadPoolExecutor(8) as pool:
        sizes = [1 + (7 * i) % 130 for i in range(400)]  # some are larger than the limit
        list(pool.map(work, sizes, timeout=DEADLINE_S))
    assert 0 < most <= 100


def test_a_thread_waits_until_enough_is_free() -> None:
    budget, inside = PixelBudget(100), threading.Event()

    def enter() -> None:
        with budget.of(60):
            inside.set()

    with budget.of(50):
        thread = threading.Thread(target=enter)
        thread.start()
        assert not inside.wait(0.05)
    assert inside.wait(DEADLINE_S)
    thread.join()


def test_an_error_gives_its_pixels_back() -> None:
    budget = PixelBudget(10)
    with pytest.raises(ValueError, match="broken"), budget.of(10):
        raise ValueError("broken")
    with budget.of(10):
        pass
