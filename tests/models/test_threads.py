"""Threads beside each other: each has its share of torch's threads, and nobody else's number changes."""

import threading

import pytest
import torch

from batchloom.models.threads import side_by_side, use_threads


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def numbers_of(num_workers):
    seen, both = [], threading.Barrier(max(1, num_workers))

    def work():
        both.wait(timeout=30)
        torch.ones(1000).sum()
        seen.append(torch.get_num_threads())

    side_by_side(work, num_workers, 4)
    return seen


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(("num_workers", "expected"), [(0, [4]), (1, [4]), (2, [2, 2]), (4, [1] * 4), (6, [1] * 6)])
def test_workers_run_at_once_and_share_the_threads(num_workers, expected):
    assert numbers_of(num_workers) == expected
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_a_thread_that_begins_meanwhile_or_later_has_what_there_was():
    """What a thread sets is what others begin with: a loader beside a single pass once went on with one thread."""
    seen = []

    def look():
        seen.append(torch.get_num_threads())

    def work():
        beginner = threading.Thread(target=look)
        beginner.start()
        beginner.join()

    side_by_side(work, 2, 4)
    work()
    assert seen == [4, 4, 4]


@pytest.mark.usefixtures("four_threads")
def test_a_thread_keeps_the_number_it_was_given_before_its_first_use_of_torch():
    """Set before the first use, it was taken over by the first operation."""
    seen, is_set, go_on = [], threading.Event(), threading.Event()

    def run():
        use_threads(1)
        is_set.set()
        go_on.wait(timeout=30)
        torch.ones(1000).sum()
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=run)
    thread.start()
    is_set.wait(timeout=30)
    torch.set_num_threads(4)
    go_on.set()
    thread.join()
    assert seen == [1]


@pytest.mark.usefixtures("four_threads")
def test_what_a_worker_raises_is_raised():
    def work():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        side_by_side(work, 3, 4)
    assert torch.get_num_threads() == 4
