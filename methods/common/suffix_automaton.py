"""What followed the longest match before: a suffix automaton over a growing sequence, with counts. No torch.

A state stands for all substrings that end at the same places (Blumer et al. 1985, doi:10.1016/0304-3975(85)90157-4).
The suffix links of the state of the whole sequence lead through its suffixes, so the longest suffix that occurred
before is one link away. How often a substring occurs is kept for substrings of up to ``depth`` tokens: adding a token
changes at most ``depth`` counts, also in a sequence of one token repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

ROOT = 0
SEPARATOR = -1
"""Stands between sequences in one automaton; no match reaches over it, and it is never proposed."""


class Match(NamedTuple):
    """Where a text is in an automaton."""

    state: int
    """Of the matched tokens, or of the last ``depth`` of them."""
    length: int
    """Matched tokens; 0 for no match."""


class Continuation(NamedTuple):
    """Tokens that may follow."""

    tokens: list[int]
    expected: float
    """Number of them that can be expected to be right, by counts."""


class SuffixAutomaton:
    """All substrings of the tokens added so far.

    Args:
        depth: Longest substring whose occurrences are counted, >= 1.
    """

    def __init__(self, depth: int = 32) -> None:
        if depth < 1:
            raise ValueError(f"depth must be >= 1, got {depth}")
        self.depth = depth
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        self._count = [0]
        self._latest = [0]
        """Place of the newest occurrence's end."""
        self._last = ROOT
        self._suffix = ROOT
        """State of the last ``depth`` tokens, or of all while they are fewer."""
        self._size = 0

    def add(self, token: int) -> None:
        """Appends a token."""
        following, link, length = self._next, self._link, self._length
        current = self._state({}, length[self._last] + 1, 0)
        state = self._last
        while state != -1 and token not in following[state]:
            following[state][token] = current
            state = link[state]
        if state == -1:
            link[current] = ROOT
        else:
            link[current] = self._split(state, token, following[state][token])
        self._last = current
        # the state of the shorter text may have been split just now
        before = self._cut(self._suffix, min(self.depth, self._size))
        self._size += 1
        self._suffix = self._cut(following[before][token], min(self.depth, self._size))
        self._count_suffixes()

    def repeated_suffix(self) -> Match:
        """The longest suffix of the text that occurred before."""
        if self._size == 0:
            return Match(ROOT, 0)
        state = self._link[self._last]
        return Match(self._suffix if self._length[state] >= self.depth else state, self._length[state])

    def follow(self, match: Match, token: int) -> Match:
        """The longest suffix, of up to ``depth`` tokens, of a text plus ``token``; ``match`` is that of the text.

        The automaton may have grown since.
        """
        length = match.length
        state = self._cut(match.state, length)
        while state != -1 and token not in self._next[state]:
            state = self._link[state]
            length = self._length[state] if state != -1 else -1
        if state == -1:
            return Match(ROOT, 0)
        length = min(length + 1, self.depth)
        return Match(self._cut(self._next[state][token], length), length)

    def continuation(
        self, match: Match, num_tokens: int, *, factor: float, min_probability: float
    ) -> Continuation:
        """The continuation, after one of a match's suffixes, of which most tokens can be expected to be right.

        After each suffix the most frequent token follows, of equals the most recent. A token's probability is taken to
        be its share of the occurrences, and the expected number of right tokens is the sum of the products.

        Args:
            match: Where the text is.
            num_tokens: Most tokens.
            factor: Most tokens per matched token.
            min_probability: Stops where the product of the shares falls under this.
        """
        best = Continuation([], 0.0)
        state, length = self._cut(match.state, min(match.length, self.depth)), match.length
        while state > ROOT and length:
            most = min(num_tokens, int(factor * length))
            if most <= best.expected:
                break  # shorter suffixes allow no more
            best = max(best, self._after(state, most, min_probability), key=lambda item: item.expected)
            state = self._link[state]
            length = self._length[state]
        return best

    def _after(self, state: int, most: int, min_probability: float) -> Continuation:
        tokens: list[int] = []
        share, expected = 1.0, 0.0
        while len(tokens) < most:
            ways = self._next[state]
            total = sum(self._count[way] for way in ways.values())
            if not total:
                break
            token, way = max(ways.items(), key=lambda item: (self._count[item[1]], self._latest[item[1]]))
            share *= self._count[way] / total
            if token == SEPARATOR or share < min_probability:
                break
            tokens.append(token)
            expected += share
            state = self._cut(way, self.depth)
        return Continuation(tokens, expected)

    def occurrences(self, tokens: Sequence[int]) -> int:
        """How often a substring of 1 to ``depth`` tokens occurs.

        Raises:
            ValueError: If ``tokens`` has another length.
        """
        if not 1 <= len(tokens) <= self.depth:
            raise ValueError(f"tokens must be 1 to {self.depth} (depth), got {len(tokens)}")
        state = ROOT
        for token in tokens:
            if token not in self._next[state]:
                return 0
            state = self._next[state][token]
        return self._count[state]

    def _state(self, following: dict[int, int], length: int, like: int) -> int:
        self._next.append(following)
        self._length.append(length)
        self._link.append(self._link[like])
        self._count.append(self._count[like] if like else 0)
        self._latest.append(self._latest[like])
        return len(self._next) - 1

    def _split(self, state: int, token: int, longer: int) -> int:
        """The state of (the longest string of ``state``) + ``token``, made from ``longer`` if it has longer strings."""
        following, link, length = self._next, self._link, self._length
        if length[longer] == length[state] + 1:
            return longer
        clone = self._state(dict(following[longer]), length[state] + 1, longer)
        link[longer] = clone
        while state != -1 and following[state].get(token) == longer:
            following[state][token] = clone
            state = link[state]
        return clone

    def _cut(self, state: int, length: int) -> int:
        """The state of the last ``length`` tokens of a state's strings."""
        while state != ROOT and self._length[self._link[state]] >= length:
            state = self._link[state]
        return state

    def _count_suffixes(self) -> None:
        state = self._suffix
        while state != ROOT:
            self._count[state] += 1
            self._latest[state] = self._size
            state = self._link[state]
