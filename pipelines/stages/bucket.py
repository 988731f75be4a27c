"""Buckets: requests of like length, longest first, under a token budget. It knows lengths and nothing else.

    lengths [3, 9, 2, 8, 3], budget 18          bucket 0: [9 8]      18 positions for 17 tokens
                                                bucket 1: [3 3 2]     9 positions for  8 tokens

A bucket's cost is its grid: number of requests times the longest of them. Longest first means that what is left at the
end of a unit is short, and that a device too small for the largest bucket fails at once and not after hours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bucket:
    """Requests that may be computed as one grid."""

    members: tuple[int, ...]
    """Indices of the requests, longest first."""
    longest: int
    """Tokens of the longest member."""

    @property
    def num_padded_tokens(self) -> int:
        """Positions of the grid, padding included."""
        return len(self.members) * self.longest


def cut_into_buckets(lengths: Sequence[int], max_tokens: int) -> Iterator[Bucket]:
    """Every request in exactly one bucket; a request longer than `max_tokens` gets one of its own.

    Args: lengths in tokens; max_tokens, the budget of a bucket's grid.
    Requests of equal length keep their order, so the buckets of a unit are always the same.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    members: list[int] = []
    for index in order:
        if members and lengths[members[0]] * (len(members) + 1) > max_tokens:
            yield Bucket(tuple(members), lengths[members[0]])
            members = []
        members.append(index)
    if members:
        yield Bucket(tuple(members), lengths[members[0]])
