"""Numbers of threads and of pictures in a batch, chosen from the cores of this machine.

Decoding and encoding each get a thread for every core, and the operating system shares the cores
between them. Decoding pauses when enough batches are ready, so the encoder then has all cores.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TypeVar

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.processes.cores import usable_cores
from fedclip_edge.vision.prefetch import prefetch

T = TypeVar("T")
R = TypeVar("R")

# Pictures in a batch. 8 are fastest for ViT-B-32 on one core and on two, so that each core of a
# larger machine gets 4. The limit is for the memory.
_SMALLEST, _A_CORE, _LARGEST = 8, 4, 32
# Batches that are decoded before the encoder asks for them.
BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Pace:
    """Settings of one run of the pipeline."""

    threads: int  # that decode; as many of the encoder, if it runs on the CPU
    batch_size: int

    def batches(self, work: Callable[[T], R], items: Iterable[T]) -> Generator[list[R], None, None]:
        """Yield the results of `work` in batches, in the order of `items`.

        They are computed in threads. Beside the batch that the caller has, at most BATCHES_AHEAD
        batches of results are kept. `items` is iterated in the caller's thread.
        """
        batch: list[R] = []
        ahead = BATCHES_AHEAD * self.batch_size
        for result in prefetch(work, items, threads=self.threads, ahead=ahead):
            batch.append(result)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def pace_of(config: EncoderConfig) -> Pace:
    """Return the numbers in `config`; those that are 0 are chosen."""
    threads = threads_of(config)
    chosen = min(max(_SMALLEST, _A_CORE * threads), _LARGEST)
    return Pace(threads, config.batch_size or chosen)


def threads_of(config: EncoderConfig) -> int:
    """Return the number of threads in `config`; if it is 0, one for each usable core."""
    return config.threads or usable_cores()
