"""The merges of a byte-pair encoding, applied to one word. It knows no ids and no text around the word."""

from collections import defaultdict
from collections.abc import Sequence
from heapq import heapify, heappop, heappush

_SWALLOWED = ""


class MergeTable:
    """Merges symbols by rank: the pair of the lowest rank everywhere in the word, left to right, then the next."""

    def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}

    def merge(self, symbols: Sequence[str]) -> list[str]:
        """Return the symbols after all merges, in O(n log n); source: Sennrich et al. 2016, algorithm 1.

            rank 0: l o    rank 1: lo w        l o w e r  ->  lo w e r  ->  low e r

        A pair is merged everywhere before the next pair. Fast implementations merge the best single occurrence each
        time, which differs where a merge creates a pair of lower rank than its own.
        """
        end = len(symbols)
        words = [*symbols, _SWALLOWED]  # a sentinel: a neighbour of the last symbol that pairs with nothing
        left_of = list(range(-1, end))
        right_of = list(range(1, end + 1))
        places: defaultdict[int, list[int]] = defaultdict(list)  # rank of a pair -> index of its left symbol
        for place in range(end - 1):
            self._note(places, words, place, place + 1)
        waiting = list(places)
        heapify(waiting)
        while waiting:
            rank = heappop(waiting)
            for place in sorted(places.pop(rank)):
                right = right_of[place]
                # Changed since it was noted: "a a a" has the pair (a, a) twice, but merges once
                if self._ranks.get((words[place], words[right])) != rank:
                    continue
                words[place] += words[right]
                words[right] = _SWALLOWED
                after = right_of[place] = right_of[right]
                left_of[after] = place
                for first, second in ((left_of[place], place), (place, after)):
                    new = self._note(places, words, first, second)
                    if new is not None:
                        heappush(waiting, new)
        return [word for word in words if word]

    def _note(self, places: defaultdict[int, list[int]], words: list[str], left: int, right: int) -> int | None:
        """Note the position of a pair that has a rank; return the rank if no such pair was waiting already."""
        rank = self._ranks.get((words[left], words[right]))
        if rank is None:
            return None
        places[rank].append(left)
        return rank if len(places[rank]) == 1 else None
