"""Byte-pair merges that are learned from captions.

Source: Sennrich et al. 2016, arXiv 1508.07909.

Law: the same texts give the same merges, and the same merges give the same bytes on disk.
"""

from __future__ import annotations

import collections
import gzip
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path


def learn_merges(texts: Iterable[str], limit: int) -> list[tuple[str, str]]:
    """Learn at most `limit` byte-pair merges of the words in `texts`, most frequent first.

    Words are separated by whitespace and must consist of ASCII letters. Ties are broken
    alphabetically, so the result depends on the texts and the limit only.
    """
    counts = collections.Counter(word for text in texts for word in text.split())
    words = {(*word[:-1], word[-1] + "</w>"): n for word, n in counts.items()}
    merges: list[tuple[str, str]] = []
    while len(merges) < limit:
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for symbols, n in words.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += n
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {_merged(symbols, best): n for symbols, n in words.items()}
    return merges


def _merged(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    i = 0
    while i < len(symbols):
        if symbols[i : i + 2] == pair:
            out.append(pair[0] + pair[1])
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return tuple(out)


def write_merges(merges: Sequence[tuple[str, str]], path: Path) -> None:
    """Write merges as a gzip file that open_clip's SimpleTokenizer reads.

    Equal merges give equal bytes. There is no line feed at the end: it would add an empty merge,
    and so shift the ids of the special tokens.
    """
    text = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)])
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        packed.write(text.encode("utf-8"))
