import itertools
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from batchloom.models.tokenizers.merge_table import MergeTable


def merge_plainly(merges: list[tuple[str, str]], symbols: list[str]) -> list[str]:
    """The loop as the paper has it: find the best pair, merge it everywhere, begin again."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    while len(symbols) > 1:
        best = min(itertools.pairwise(symbols), key=lambda pair: ranks.get(pair, inf))
        if best not in ranks:
            break
        merged, place = [], 0
        while place < len(symbols):
            if tuple(symbols[place : place + 2]) == best:
                merged.append(best[0] + best[1])
                place += 2
            else:
                merged.append(symbols[place])
                place += 1
        symbols = merged
    return symbols


_SYMBOLS = st.sampled_from(["a", "b", "c", "aa", "ab", "ba", "abc", "aab", "d</w>"])
_MERGES = st.lists(st.tuples(_SYMBOLS, _SYMBOLS), max_size=40)


@given(_MERGES, st.lists(_SYMBOLS, min_size=1, max_size=40))
@settings(max_examples=1000, deadline=None)
def test_merges_are_those_of_the_plain_loop(merges, symbols):
    assert MergeTable(merges).merge(symbols) == merge_plainly(merges, symbols)


def test_one_pair_is_finished_before_a_better_one_that_it_made():
    """Rank 3 makes `abc`, whose pairs have ranks 1 and 2. Taking the best place first would merge `abc d`."""
    merges = [("a", "b"), ("d", "abc"), ("abc", "d"), ("ab", "c")]
    assert MergeTable(merges).merge(list("abcdabc")) == ["abc", "dabc"]


def test_overlapping_pairs_merge_from_the_left():
    assert MergeTable([("a", "a")]).merge(list("aaaaa")) == ["aa", "aa", "a"]


def test_a_pair_listed_twice_has_its_later_rank():
    assert MergeTable([("a", "b"), ("b", "c"), ("a", "b")]).merge(list("abc")) == ["a", "bc"]


def test_a_word_of_a_million_characters_merges_in_seconds():
    merges = [("a", "b"), ("ab", "ab"), ("abab", "abab")]
    assert len(MergeTable(merges).merge(list("ab" * 500_000))) == 125_000
