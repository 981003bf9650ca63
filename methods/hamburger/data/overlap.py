"""Holds training texts against texts that must not be trained on, by their 13-grams of words.

A word is a run of letters and digits, in lower case: punctuation, underscores, white space and line ends make no
difference. Thirteen words in a row that both texts have are an overlap.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

NGRAM = 13
_WORD = re.compile(r"[^\W_]+")
_EXAMPLES = 10


def words_of(text: str) -> list[str]:
    """Returns the words of a text, see the module's docstring."""
    return _WORD.findall(text.casefold())


def ngrams(text: str) -> Iterator[tuple[str, ...]]:
    """Yields every 13 words in a row; none of a shorter text."""
    words = words_of(text)
    for start in range(len(words) - NGRAM + 1):
        yield tuple(words[start : start + NGRAM])


def answer_text(ids: Sequence[int], prompt: int, tokenizer: Any) -> str:
    """Returns prompt and answer as text, the answer on a line of its own: no word spans both."""
    parts = (tokenizer.decode(list(part), skip_special_tokens=True) for part in (ids[:prompt], ids[prompt:]))
    return "\n".join(parts)


def window_text(ids: Sequence[int], tokenizer: Any) -> str:
    """Returns a window as text, which goes on where its context ends."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True)
    return text


class Protected:
    """Texts that must not be trained on, as a sorted table of their 13-grams' hashes: 12 bytes for each."""

    def __init__(self) -> None:
        # a false match needs two of some million 13-grams among 2**64
        self._hashes: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._rows: npt.NDArray[np.int32] = np.empty(0, np.int32)
        self._unsorted: list[npt.NDArray[np.int64]] = []
        self.names: list[str] = []
        """One per row."""

    def add(self, name: str, texts: Iterable[str]) -> None:
        """Adds one row, which may have several texts; no 13-gram spans two of them."""
        hashes = {hash(gram) for text in texts for gram in ngrams(text)}
        self._unsorted.append(np.fromiter(hashes, np.int64, len(hashes)))
        self.names.append(name)

    @property
    def num_ngrams(self) -> int:
        """Number of distinct 13-grams."""
        return len(np.unique(self._table()[0]))

    def shared(self, text: str) -> dict[tuple[str, ...], list[int]]:
        """Returns the 13-grams of a text that rows have too, with the numbers of these rows."""
        hashes, rows = self._table()
        grams = list(ngrams(text))
        wanted = np.fromiter(map(hash, grams), np.int64, len(grams))
        firsts, ends = np.searchsorted(hashes, wanted), np.searchsorted(hashes, wanted, side="right")
        return {grams[i]: rows[firsts[i] : ends[i]].tolist() for i in np.flatnonzero(firsts < ends).tolist()}

    def _table(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Returns hashes in ascending order, and the row of each."""
        if self._unsorted:
            num_rows = len(self.names)
            numbers = np.arange(num_rows - len(self._unsorted), num_rows, dtype=np.int32)
            hashes = np.concatenate([self._hashes, *self._unsorted])
            rows = np.concatenate([self._rows, numbers.repeat([len(each) for each in self._unsorted])])
            order = hashes.argsort(kind="stable")
            self._hashes, self._rows, self._unsorted = hashes[order], rows[order], []
        return self._hashes, self._rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverlapExample:
    """One training text that shares words with a row."""

    text: str
    """Name of the training text."""
    row: str
    """Name of the first row that shares ``words``."""
    words: str
    """The first shared 13-gram."""
    num_shared: int
    """Distinct 13-grams that the text shares with any row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much a set of training texts shares with protected rows."""

    texts: int
    texts_sharing: int
    rows: int
    rows_sharing: int
    row_ngrams: int
    examples: tuple[OverlapExample, ...]
    """The texts that share most, ten at most."""


def overlap(texts: Iterable[tuple[str, str]], protected: Protected) -> Overlap:
    """Counts the training texts, given as name and text, and the rows that share any 13-gram."""
    num = 0
    rows: set[int] = set()
    examples = []
    for name, text in texts:
        num += 1
        shared = protected.shared(text)
        if not shared:
            continue
        rows.update(row for each in shared.values() for row in each)
        gram, where = next(iter(shared.items()))
        examples.append(
            OverlapExample(
                text=name, row=protected.names[where[0]], words=" ".join(gram), num_shared=len(shared)
            )
        )
    examples.sort(key=lambda each: -each.num_shared)
    return Overlap(
        texts=num,
        texts_sharing=len(examples),
        rows=len(protected.names),
        rows_sharing=len(rows),
        row_ngrams=protected.num_ngrams,
        examples=tuple(examples[:_EXAMPLES]),
    )
