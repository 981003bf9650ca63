"""A suffix automaton with counts over a growing sequence, which finds continuations of the longest match. No torch.

A state represents all substrings with the same end positions (Blumer et al. 1985, doi:10.1016/0304-3975(85)90157-4).
The suffix links of the whole sequence's state lead through its suffixes, so the longest suffix that occurred before is
one link away. Occurrences are counted for substrings of up to ``depth`` tokens. Adding a token changes at most
``depth`` counts, even if the sequence repeats one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

ROOT = 0
SEPARATOR = -1
"""Stands between sequences in one automaton; no match reaches over it, and it is never proposed."""


class Match(NamedTuple):
    """The position of a text in an automaton."""

    state: int
    """Of the matched tokens, or of the last ``depth`` of them."""
    length: int
    """Matched tokens; 0 for no match."""


class Continuation(NamedTuple):
    """A possible continuation."""

    tokens: list[int]
    expected: float
    """Number of them that can be expected to be right, by counts."""


class SuffixAutomaton:
    """All substrings of the tokens added so far.

    Args:
        depth: Length of the longest substrings to count, >= 1.
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
        """Returns the longest suffix of the text that occurred before."""
        if self._size == 0:
            return Match(ROOT, 0)
        state = self._link[self._last]
        return Match(self._suffix if self._length[state] >= self.depth else state, self._length[state])

    def follow(self, match: Match, token: int) -> Match:
        """Returns the longest suffix, of up to ``depth`` tokens, of a text plus ``token``.

        ``match`` is the text's match.

        The automaton may have grown since ``match``.
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
        """Returns the continuation of one of a match's suffixes with the highest expected number of right tokens.

        After each suffix it takes the most frequent token, or the most recent of equals. A token's probability is
        estimated by its share of the occurrences. The expected number of right tokens is the sum of the products.

        Args:
            match: Match of the text.
            num_tokens: Maximum number of tokens.
            factor: Maximum number of tokens per matched token.
            min_probability: Stops if the product of the shares falls below this.
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
        """Returns the number of occurrences of a substring of 1 to ``depth`` tokens.

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
        """Returns the state of (longest string of ``state``) + ``token``, split from ``longer`` if needed."""
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
        """Returns the state of the last ``length`` tokens of a state's strings."""
        while state != ROOT and self._length[self._link[state]] >= length:
            state = self._link[state]
        return state

    def _count_suffixes(self) -> None:
        state = self._suffix
        while state != ROOT:
            self._count[state] += 1
            self._latest[state] = self._size
            state = self._link[state]
