import pytest

from batchloom.pipelines.planning.limit import limited, words_for_left_out
from batchloom.pipelines.planning.shards import Shard
from batchloom.pipelines.planning.source import Source


def shards(*row_groups: tuple[int, ...]) -> list[Shard]:
    return [
        Shard(Source(f"{number}", f"/in/{number}", 1, "v"), groups, tuple(10 * rows for rows in groups))
        for number, groups in enumerate(row_groups)
    ]


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([2, 50, 90], 20, [2, 9, 9]),
        ([90, 2, 50], 21, [10, 2, 9]),
        ([5, 5, 5], 2, [0, 1, 1]),
        ([5, 0, 5], 100, [5, 0, 5]),
        ([7], None, [7]),
    ],
)
def test_each_shard_gives_as_many_rows_as_it_has_or_an_equal_share(sizes, limit, expected) -> None:
    found = shards(*((size,) for size in sizes))
    assert [shard.num_rows for shard in limited(found, limit)] == expected


def test_the_rows_are_the_first_ones_with_their_bytes() -> None:
    (first,) = limited(shards((4, 4, 4)), 6)
    assert list(first.pieces(0, first.num_rows)) == [(4, 40), (2, 20)]
    assert first.num_bytes == 60
    assert words_for_left_out(shards((4, 4, 4)), 6) == "input.limit leaves out 6 of 12 rows."
    assert words_for_left_out(shards((4,)), 4) == ""
