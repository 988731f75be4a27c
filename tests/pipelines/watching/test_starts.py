"""A replica may be lost while it loads, but not for ever."""

import pytest

from batchloom.pipelines.watching.starts import KILLED, MAX_STARTS, Starts


def test_a_start_is_refused_after_as_many_that_were_lost_in_a_row() -> None:
    count = Starts()
    assert [count.begin("a") for _ in range(MAX_STARTS)] == [None] * MAX_STARTS
    assert count.begin("b") is None
    assert count.begin("a") == f"A replica was lost 4 times while it loaded the model. {KILLED}"


def test_a_replica_that_was_ready_begins_anew() -> None:
    count = Starts()
    for _ in range(3 * MAX_STARTS):
        assert count.begin("a") is None
        count.ready("a")


@pytest.mark.parametrize("words", ["Rank 1 ended with signal 9.", "no room"])
def test_last_words_are_told(words: str) -> None:
    count = Starts()
    for _ in range(MAX_STARTS):
        count.begin("a")
        count.lost("a", words)
    assert str(count.begin("a")).endswith(words)
