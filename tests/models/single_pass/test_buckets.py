"""Buckets hold every request once, in order of length, under their budget."""

from hypothesis import given
from hypothesis import strategies as st

from batchloom.models.single_pass.buckets import cut_into_buckets

LENGTHS = st.lists(st.integers(1, 50), max_size=60)


@given(LENGTHS, st.integers(1, 200))
def test_every_request_is_in_exactly_one_bucket(lengths: list[int], budget: int) -> None:
    members = [index for bucket in cut_into_buckets(lengths, budget) for index in bucket]
    assert sorted(members) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 200))
def test_a_bucket_keeps_to_its_budget_unless_it_holds_one_request(lengths: list[int], budget: int) -> None:
    for bucket in cut_into_buckets(lengths, budget):
        assert sum(lengths[index] for index in bucket) <= budget or len(bucket) == 1


@given(LENGTHS, st.integers(1, 200))
def test_requests_come_longest_first(lengths: list[int], budget: int) -> None:
    in_order = [lengths[index] for bucket in cut_into_buckets(lengths, budget) for index in bucket]
    assert in_order == sorted(lengths, reverse=True)


def test_the_example_of_the_docstring_is_true() -> None:
    assert list(cut_into_buckets([3, 9, 2, 8, 3], 18)) == [[1, 3], [0, 4, 2]]
