"""Batches side by side: every row once, within the budget, whatever has no room."""

import random
import threading

import pytest

from batchloom.models.single_pass.batches import Batches


class Machine:
    """Doubles its rows; has memory for `room` tokens at a time, of all workers together.

    The first `together` batches are in memory at the same time, whatever else this machine does.
    """

    def __init__(self, costs, room=10**9, together=1):
        self.costs, self.room = costs, room
        self.batches, self._held, self._changing = [], 0, threading.Lock()
        self._together, self._all_there = together, threading.Barrier(together)

    def __call__(self, rows):
        num_tokens = sum(self.costs[row] for row in rows)
        with self._changing:
            self.batches.append(rows)
            is_first = len(self.batches) <= self._together
            has_room = self._held + num_tokens <= self.room
            self._held += num_tokens if has_room else 0
        if is_first:
            self._all_there.wait(timeout=60)
        if not has_room:
            raise MemoryError
        with self._changing:
            self._held -= num_tokens
        return [2 * row for row in rows]


def costs_of(num_rows, seed=0):
    choice = random.Random(seed)
    return [choice.randint(1, 90) for _ in range(num_rows)]


@pytest.mark.parametrize("num_workers", [1, 2, 5])
@pytest.mark.parametrize("num_rows", [0, 1, 2, 60])
def test_every_row_is_computed_once_within_the_budget(num_workers, num_rows):
    costs = costs_of(num_rows)
    machine = Machine(costs)
    assert Batches(100, num_workers, 4).compute(costs, machine) == [2 * row for row in range(num_rows)]
    assert sorted(row for rows in machine.batches for row in rows) == list(range(num_rows))
    assert all(len(rows) == 1 or sum(costs[row] for row in rows) <= 100 for rows in machine.batches)


def test_little_work_is_shared_by_all_workers():
    machine = Machine([10] * 8)
    Batches(2048, 4, 4).compute([10] * 8, machine)
    assert sorted(map(len, machine.batches)) == [2, 2, 2, 2]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_where_memory_runs_out_batches_are_halved_and_no_row_is_lost(num_workers):
    costs = costs_of(60)
    machine, batches = Machine(costs, room=300), Batches(1000, num_workers, 4)
    assert batches.compute(costs, machine) == [2 * row for row in range(60)]
    assert batches.max_tokens < 1000


def test_a_row_without_room_beside_others_is_computed_alone():
    costs = [90, 80, 85, 70, 10]
    machine = Machine(costs, room=95, together=3)
    assert Batches(100, 3, 4).compute(costs, machine) == [0, 2, 4, 6, 8]
    assert len(machine.batches) >= 6, "of the first three two had no room and came again"


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_row_without_room_at_all_is_an_error(num_workers):
    costs = [10, 500, 20]
    with pytest.raises(MemoryError):
        Batches(100, num_workers, 4).compute(costs, Machine(costs, room=95))


def test_ranks_do_not_halve_on_their_own():
    costs, machine = [10] * 20, Machine([10] * 20, room=95)
    with pytest.raises(MemoryError):
        Batches(200, 1, 1).compute(costs, machine, may_halve=False)
    assert len(machine.batches) == 1


def test_after_another_failure_nobody_goes_on():
    batches = []

    def broken(rows):
        batches.append(rows)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        Batches(10, 3, 4).compute([10] * 50, broken)
    assert 1 <= len(batches) <= 3
