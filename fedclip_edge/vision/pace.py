"""Numbers of threads and of pictures in a batch, chosen from the cores of this machine.

A batch stays in one thread, which decodes its pictures and then has them encoded. On the CPU, each
thread encodes its own batch on one core, so no core waits for another. An accelerator encodes one
batch at a time, and all threads decode for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.processes.cores import usable_cores
from fedclip_edge.vision.prefetch import prefetch

T = TypeVar("T")
R = TypeVar("R")

# Pictures in a batch. On one core, more than 8 make ViT-B-32 no faster.
_ON_A_CORE, _ON_AN_ACCELERATOR = 8, 32
# Pictures in all batches at a time, unless a batch size is set. The limit is for the memory: on the
# CPU, it holds what an encoder computes in between, which is up to 50 MB for a picture.
_ON_THE_CPU_AT_ONCE, _AT_ONCE = 32, 96
_SPREADS = ("cpu", "openvino")  # providers that encode in several threads at the same time


@dataclass(frozen=True)
class Pace:
    """Settings of one run of the pipeline."""

    threads: int  # each has one batch
    batch_size: int
    encoders: int  # batches that are encoded at the same time
    _turns: threading.Semaphore = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_turns", threading.Semaphore(self.encoders))

    def encode(self, embed: Callable[[T], R], pixels: T) -> R:
        """Return `embed(pixels)`, when it is the turn of this thread."""
        with self._turns:
            return embed(pixels)

    def batches(self, work: Callable[[list[T]], R], items: Iterable[T]) -> Generator[R, None, None]:
        """Yield the result of `work` for each batch of `items`, in their order.

        `work` is called in threads, and beside the result that the caller has, at most `threads`
        others exist. `items` is iterated in the caller's thread.
        """
        chunks = _chunks(items, self.batch_size)
        return prefetch(work, chunks, threads=self.threads, ahead=self.threads)


def pace_of(config: EncoderConfig, count: int | None = None) -> Pace:
    """Return the numbers in `config`; those that are 0 are chosen.

    If fewer than `count` pictures make all batches full, the batches are smaller.
    """
    cores = threads_of(config)
    if config.runs_on in _SPREADS:
        threads = encoders = cores
        most, in_all = _ON_A_CORE, _ON_THE_CPU_AT_ONCE
    else:
        threads, encoders = cores + 1, 1  # one of them waits while its batch is encoded
        most, in_all = _ON_AN_ACCELERATOR, _AT_ONCE
    size = min(most, max(1, in_all // threads))
    if count is not None:
        size = min(size, max(1, -(-count // threads)))
    return Pace(threads, config.batch_size or size, encoders)


def threads_of(config: EncoderConfig) -> int:
    """Return the number of threads in `config`; if it is 0, one for each usable core."""
    return config.threads or usable_cores()


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
