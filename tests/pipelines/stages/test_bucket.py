from hypothesis import given
from hypothesis import strategies as st

from batchloom.pipelines.stages.bucket import cut_into_buckets

LENGTHS = st.lists(st.integers(1, 50), max_size=60)


@given(LENGTHS, st.integers(1, 200))
def test_every_request_is_in_exactly_one_bucket(lengths: list[int], budget: int) -> None:
    members = [index for bucket in cut_into_buckets(lengths, budget) for index in bucket.members]
    assert sorted(members) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 200))
def test_a_bucket_keeps_to_its_budget_unless_it_holds_one_request(lengths: list[int], budget: int) -> None:
    for bucket in cut_into_buckets(lengths, budget):
        assert bucket.num_padded_tokens <= budget or len(bucket.members) == 1
        assert bucket.longest == max(lengths[index] for index in bucket.members)


@given(LENGTHS, st.integers(1, 200))
def test_requests_come_longest_first(lengths: list[int], budget: int) -> None:
    in_order = [lengths[index] for bucket in cut_into_buckets(lengths, budget) for index in bucket.members]
    assert in_order == sorted(lengths, reverse=True)


def test_the_example_of_the_docstring_is_true() -> None:
    buckets = list(cut_into_buckets([3, 9, 2, 8, 3], 18))
    assert [bucket.members for bucket in buckets] == [(1, 3), (0, 4, 2)]
    assert [bucket.num_padded_tokens for bucket in buckets] == [18, 9]
