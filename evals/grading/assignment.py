"""Matching golds with answers where their order does not count."""

from __future__ import annotations

from collections.abc import Sequence


def assignable(matches: Sequence[Sequence[bool]]) -> bool:
    """Whether every row can have a column of its own that it matches (augmenting paths, Kuhn)."""
    owner: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, matched in enumerate(matches[row]):
            if matched and column not in tried:
                tried.add(column)
                if column not in owner or place(owner[column], tried):
                    owner[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(matches)))
